"""Time and memory of a round of training, and of its training pass compared with other ways on the same records.

    python -m benchmarks.round --shape smollm2 --openings reddit --algorithm dpo --trees 8 --width 4 --depth 2

The first table is a whole round of this package's trainer as it is by default, checkpoint included. The second one is
the training pass (forward, backward, reference, loss; not the optimizer): each way has a fresh trainer with equal
weights, in alternation in one process, and ratios are taken within a turn. Peak memory is that above the weights.
"Separate rows" is `shared_context=False`, TRL's own path, which is also what plain TRL does for GRPO and RLOO. Plain
TRL for DPO is TRL's trainer on the token ids of the same pairs. `benchmarks.bounds` defines the lower bound.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer

from astra_trl import (
    ASTDPOConfig,
    ASTDPOTrainer,
    ASTGRPOConfig,
    ASTGRPOTrainer,
    ASTPrompterSystem,
    ASTRLOOConfig,
    ASTRLOOTrainer,
    ASTSampler,
    Exchange,
)
from astra_trl.backends.hf.model import base_of
from astra_trl.rollout.records import Record
from benchmarks.bounds import matmul_rate, train_once, unique_tokens
from benchmarks.clock import (
    BACKWARD,
    CHECKPOINT,
    COLLECTING,
    FORWARD,
    MODEL_PASSES,
    PARTS,
    REFERENCE,
    REST,
    SCORES,
    TRAINING,
    TRAINING_PASS,
    Clock,
)
from benchmarks.workloads import (
    PeakMemory,
    add_arguments,
    build_workload,
    free_memory,
    median_and_range,
    workload_name,
)

ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "dpo": (ASTDPOConfig, ASTDPOTrainer),
    "grpo": (ASTGRPOConfig, ASTGRPOTrainer),
    "rloo": (ASTRLOOConfig, ASTRLOOTrainer),
}
PACKAGE, SEPARATE, PLAIN, BOUND = "this package", "separate rows", "plain TRL", "lower bound"


@dataclass
class Run:
    """A training run: seconds by part, the records that it trained on, steps, and peak memory of its first phase."""

    seconds: dict[str, float]
    records: list[Record]
    steps: int = 0
    peak_megabytes: float = 0.0
    operations: float = 0.0  # of the lower bound

    @property
    def step_seconds(self) -> float:
        """Seconds of the training pass of a step."""
        return sum(self.seconds.get(part, 0.0) for part in TRAINING_PASS) / self.steps


class PlainDPOTrainer(DPOTrainer):
    """TRL's trainer on token ids, which it would otherwise make from texts."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


def hash_scores(exchanges: Sequence[Exchange]) -> list[float]:
    """Return numbers in [0, 1) that depend on the responses alone: siblings differ, and nothing is downloaded."""
    return [zlib.crc32(exchange.response.encode()) / 2**32 for exchange in exchanges]


def make_trainer(args: argparse.Namespace, way: str, folder: str, records: Sequence[Record] = ()) -> Any:
    """Build models and trainer; equal arguments give equal weights."""
    free_memory(args.device)  # of the last one
    work = build_workload(args, copies=2 if args.full else 1)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter = None if args.full else lora
    # 4 pairs or, for groups, at least as many probes.
    batch = args.batch_size or (4 if args.algorithm == "dpo" else -(-8 // work.width) * work.width)
    settings = {
        "output_dir": folder,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "per_device_train_batch_size": batch,
        "gradient_checkpointing": args.gradient_checkpointing,
        "use_cpu": args.device == "cpu",
        "bf16": args.device == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if way == PLAIN:
        ids = [{key: record[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for record in records]
        return PlainDPOTrainer(
            model=work.tester.model,
            ref_model=copy.deepcopy(work.tester.model) if args.full else None,
            args=DPOConfig(**settings, max_length=None, save_strategy="no"),
            train_dataset=Dataset.from_list(ids),
            processing_class=work.tester.tokenizer,
            peft_config=adapter,
        )
    config, trainer_class = ALGORITHMS[args.algorithm]
    trees = len(work.openings)
    settings |= {"trees_per_round": trees, "max_trees_per_round": trees, "shared_context": way != SEPARATE}
    if records:
        settings["save_strategy"] = "no"
    system = ASTPrompterSystem(work.tester, work.target, None, hash_scores)
    sampler = ASTSampler(system, work.openings, work.width, work.depth)
    return trainer_class(sampler, config(**settings), peft_config=adapter)


def watch(trainer: Any, clock: Clock) -> None:
    """Let the clock time the parts of a trainer's run."""
    target = trainer.sampler.system.target.model if hasattr(trainer, "sampler") else None
    for model in {base_of(model) for model in (trainer.model, trainer.ref_model, target) if model is not None}:
        clock.watch(model)
    clock.wrap(trainer, "training_step", TRAINING)
    clock.wrap(trainer.accelerator, "backward", BACKWARD)
    clock.wrap(trainer, "_save_checkpoint", CHECKPOINT)
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)


def whole_round(args: argparse.Namespace) -> Run:
    """Collect a round with this package and train on it."""
    clock, records = Clock(args.device), list[Record]()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, PACKAGE, folder)
        watch(trainer, clock)
        clock.wrap(trainer.sampler.system, "measure", SCORES)
        collect = trainer.collect_round

        def collect_round(number: int) -> list[Record]:
            with clock.timing("measurement"), PeakMemory(args.device) as peak, clock.timing(COLLECTING):
                records.extend(collect(number))
            run.peak_megabytes = peak.megabytes
            return list(records)

        trainer.collect_round = collect_round
        run = Run(clock.seconds, records)
        with clock.timing(REST):
            trainer.train()
    run.steps = clock.steps
    return run


def training_pass(args: argparse.Namespace, way: str, one_round: Run) -> Run:
    """Train on the records of a round in one of the ways."""
    clock = Clock(args.device)
    run = Run(clock.seconds, one_round.records, one_round.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, way, folder, run.records)
        if way == BOUND:
            with PeakMemory(args.device) as peak:
                run.operations = train_once(trainer, run.records, clock)
        else:
            watch(trainer, clock)
            trainer.collect_round, trainer.round_figures = lambda number: run.records, {}
            with PeakMemory(args.device) as peak, clock.timing(REST):
                trainer.train()
    run.peak_megabytes = peak.megabytes
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "trees")
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="dpo")
    parser.add_argument("--full", action="store_true", help="train all weights instead of a LoRA adapter")
    parser.add_argument("--batch-size", type=int, help="pairs or probes per step; default: 4 pairs, 8 probes")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=1, help="whole rounds; on a GPU one more, not counted, is first")
    parser.add_argument("--turns", type=int, default=3, help="training passes of each way")
    args = parser.parse_args()
    uncounted = 1 if args.device == "cuda" else 0  # the first passes load kernels
    rounds = [whole_round(args) for _ in range(uncounted + args.rounds)][uncounted:]
    ways = [PACKAGE, SEPARATE, *([PLAIN] if args.algorithm == "dpo" else []), BOUND]
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(args.turns):
        for way in ways:
            runs[way].append(training_pass(args, way, rounds[0]))
    report(args, rounds, runs)


def report(args: argparse.Namespace, rounds: list[Run], runs: dict[str, list[Run]]) -> None:
    """Print the tables and, last, a line of JSON."""
    name = f"{args.algorithm} of {workload_name(args)} on {args.device}"
    records, steps = rounds[0].records, rounds[0].steps
    tokens, *_ = unique_tokens(records)
    print(
        f"{name}, {'all weights' if args.full else 'LoRA'}: {len(records)} records of {tokens:,} tokens, {steps} steps"
    )
    print(f"\n{'a round':<44}{'seconds':>9}{'share':>8}")
    seconds = {part: statistics.median(run.seconds.get(part, 0.0) for run in rounds) for part in PARTS}
    total = sum(seconds.values())
    for part, value in (*seconds.items(), ("all", total)):
        print(f"{part:<44}{value:>9.2f}{value / total:>8.1%}")
    outside = 1 - sum(seconds[part] for part in MODEL_PASSES) / total
    memory = {way: round(max(run.peak_megabytes for run in of_way)) for way, of_way in runs.items()}
    memory["collecting"] = round(max(run.peak_megabytes for run in rounds))
    print(f"outside model passes and optimizer {outside:.1%}; peak of collecting {memory['collecting']} MB")
    print(
        f"\n{'training pass':<15}{'s/step':>9}{'package is':>12}{'(range)':>16}{'forward':>9}{'reference':>11}"
        f"{'backward':>10}{'peak MB':>9}"
    )
    result: dict[str, Any] = {
        **{"shape": workload_name(args), "device": args.device, "algorithm": args.algorithm, "full": args.full},
        **{"seconds": total, "seconds_of_parts": {part: round(value, 4) for part, value in seconds.items()}},
        **{"outside_model_passes": outside, "peak_memory_mb": memory},
    }
    for way, of_way in runs.items():
        step = statistics.median(run.step_seconds for run in of_way)
        ratios = [run.step_seconds / own.step_seconds for run, own in zip(of_way, runs[PACKAGE], strict=True)]
        parts = [
            statistics.median(run.seconds.get(part, 0.0) / run.steps for run in of_way)
            for part in (FORWARD, REFERENCE, BACKWARD)
        ]
        print(
            f"{way:<15}{step:>9.3f}{median_and_range(ratios)}{parts[0]:>9.3f}{parts[1]:>11.3f}{parts[2]:>10.3f}"
            f"{memory[way]:>9}"
        )
        if way != PACKAGE:
            ratio = statistics.median(ratios)
            result[f"vs_{way.replace(' ', '_').lower()}"] = 1 / ratio if way == BOUND else ratio
    pass_seconds = statistics.median(run.step_seconds for run in runs[PACKAGE]) * steps
    result["tokens_per_second"] = tokens / pass_seconds
    print(f"{result['tokens_per_second']:,.0f} tokens of the records per second of the training pass")
    if args.device == "cuda":
        result["peak_arithmetic_share"] = runs[BOUND][0].operations / matmul_rate() / pass_seconds
        share = result["peak_arithmetic_share"]
        print(f"their arithmetic, at the rate of a product of two matrices, takes {share:.0%} of it")
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    logging.getLogger("astra_trl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    main()
