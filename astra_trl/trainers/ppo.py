"""PPO by TRL's PPOTrainer: it samples probes for the contexts of fresh trees, and the target answers them."""

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import get_peft_model
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from astra_trl.backends.base import Sample, derive_seed
from astra_trl.backends.hf.backend import UNTRAINED
from astra_trl.conversation import as_text
from astra_trl.errors import InputError, RunStopped
from astra_trl.processes import stopped_together
from astra_trl.rollout.collector import collect_contexts
from astra_trl.rollout.records import Record
from astra_trl.rollout.run_folder import exchange_line
from astra_trl.rollout.sampler import ASTSampler, Context
from astra_trl.trainers.ppo_modules import TargetReward, ValueModel
from astra_trl.trainers.roles import (
    reference_model,
    switch_dropout_off,
    tester_to_train,
    trainable_tester,
    use_sampling,
)
from astra_trl.trainers.rounds import RoundRecords, RoundsConfig, RoundsMixin
from astra_trl.trainers.trl_ppo import PPOConfig, ResumablePPOTrainer
from astra_trl.tree import Node, Tree

# Fields of transformers' and TRL's configs that neither TRL's loop nor this package reads for PPO.
NOT_READ = (
    # training
    "label_smoothing_factor", "neftune_noise_alpha", "torch_empty_cache_steps", "auto_find_batch_size",
    "average_tokens_across_devices", "include_num_input_tokens_seen", "use_liger_kernel", "liger_kernel_config",
    "use_cache", "full_determinism", "data_seed", "accelerator_config", "parallelism_config",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
    # its data loader
    "dataloader_drop_last", "remove_unused_columns", "label_names", "train_sampling_strategy", "length_column_name",
    "ignore_data_skip",
    # evaluations, in which conversations are grown
    "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
    "eval_use_gather_object", "include_for_metrics", "batch_eval_metrics", "num_sample_generations",
    # logging and checkpoints
    "logging_nan_inf_filter", "log_level", "log_level_replica", "debug", "enable_jit_checkpoint",
    "restore_callback_states_from_checkpoint",
    # what TRL's scripts read, or sets by itself
    "sft_model_path", "reward_model_path", "model_adapter_name", "ref_adapter_name", "stop_token_id", "world_size",
    "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size",
    "mini_batch_size",
)  # fmt: skip
# Of work that there is none of, and no result depends on: they may stand in a file that other algorithms share.
ONLY_SPEED = (
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_in_order",
    "dataloader_multiprocessing_context", "dataset_num_proc", "per_device_eval_batch_size",
    "eval_accumulation_steps", "skip_memory_metrics",
)  # fmt: skip


@dataclass
class ASTPPOConfig(RoundsConfig, PPOConfig):
    """TRL's `PPOConfig` with what a round is.

    > These parameters have default values different from [`~trl.experimental.ppo.PPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `gradient_accumulation_steps` 4, `num_train_epochs` 1000, `lr_scheduler_type`
    > `"constant"`, `stop_token` `"eos"`, `num_sample_generations` 0. `temperature` and `response_length` are the
    > tester's.

    TRL samples the probes here, from the whole distribution: the tester's `top_p`, `top_k`, `repetition_penalty` and
    `min_new_tokens` hold for growing trees and for evaluation only. A probe ends at any end token of the tester, at a
    stop string, and where the system ends it. Settings that nothing here reads are refused.
    """

    unit: ClassVar[str] = "context"
    _VALID_DICT_FIELDS = [*PPOConfig._VALID_DICT_FIELDS, "model_init_kwargs"]

    # TRL's other configs have these two, for recipes to load models with.
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for from_pretrained when models are loaded from ids."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether models may bring Python code of their own from the Hub."}
    )
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Forward passes an update: probes sampled and answered together."}
    )
    contexts_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Contexts a round trains on, one probe each. Default: as many whole batches as trees_per_round "
            "trees hold."
        },
    )
    temperature: float | None = field(default=None, metadata={"help": "As the tester samples."})
    response_length: int | None = field(default=None, metadata={"help": "Longest probe: the tester's max_new_tokens."})
    stop_token: str | None = field(
        default="eos", metadata={"help": "Leave it at 'eos': a probe ends where the tester ends it."}
    )
    num_sample_generations: int = field(
        default=0, metadata={"help": "Leave it at 0: exchanges.jsonl has every sample."}
    )

    def __post_init__(self: Any) -> None:
        super().__post_init__()
        default = PPOConfig(
            self.output_dir, report_to="none", bf16=False, use_cpu=self.use_cpu, num_sample_generations=0
        )
        for name in (name for name in NOT_READ if hasattr(default, name)):
            if getattr(self, name) != getattr(default, name):
                raise InputError(
                    f"{name}={getattr(self, name)!r} has no effect in PPO: leave it out, or train with GRPO"
                )
        if self.stop_token != "eos":
            raise InputError(f"stop_token={self.stop_token!r}: a probe ends where the tester ends it: leave it out")


class ASTPPOTrainer(RoundsMixin, ResumablePPOTrainer):
    """Trains the tester of a system with PPO: a round's contexts are those of fresh trees, grown by the tester as it
    is then; TRL samples a probe for each, the target answers, and the exchange's credit is the score. Where credit
    needs later turns, the tree's remaining ones are grown below the answer.

    A probe whose exchange could not be measured gets the mean reward of those beside it, so that it teaches nothing
    in particular; it is counted as failed, empty or unrewarded.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTPPOConfig`, *optional*):
            Defaults to `ASTPPOConfig("tester")`.
        eval_dataset (`Sequence[Opening]`, `Dataset` or `str`, *optional*):
            Held-out openings for `evaluate` and `eval_strategy`; or a dictionary of several such.
        value_model (`nn.Module`, *optional*):
            As TRL takes it; defaults to a head on a copy of the tester or, with an adapter, on the tester without it.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the tokenizer of the system's tester.
        callbacks, optimizers, peft_config:
            As in TRL.
    """

    _tag_names = ["trl", "astra-trl", "ppo"]
    found = "contexts"
    _numbers: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # the generators' states where an update began

    def __init__(
        self,
        sampler: ASTSampler,
        args: ASTPPOConfig | None = None,
        *,
        eval_dataset: Any = None,
        value_model: torch.nn.Module | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args or ASTPPOConfig("tester")
        tester, system = tester_to_train(sampler.system, peft_config), sampler.system
        use_sampling(args, tester, temperature="temperature", response_length="max_new_tokens")
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        size, max_trees = args.full_round(sampler.groups_per_tree, batch * PartialState().num_processes)
        reference = reference_model(system, peft=peft_config is not None)
        model = tester.model if peft_config is None else get_peft_model(tester.model, peft_config)
        self.sampler = sampler
        # TRL looks for one end token of several, so the penalty for none is taken off here.
        self._missing_end_penalty, args.missing_eos_penalty = args.missing_eos_penalty, None
        super().__init__(
            args=args,
            processing_class=processing_class or tester.tokenizer,
            model=model,
            ref_model=reference,
            reward_model=TargetReward(self.rewards_of),
            value_model=value_model or ValueModel(model),
            train_dataset=RoundRecords(size),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        args.missing_eos_penalty = self._missing_end_penalty
        self.start_rounds(sampler, size, max_trees, eval_dataset)
        switch_dropout_off(self.model)
        if UNTRAINED in getattr(model, "peft_config", ()):
            self.ref_adapter_name = UNTRAINED

    def response_lengths(self, responses: list[list[int]]) -> list[int]:
        """Of each row of sampled ids, how many are the probe: through the first end token or stop string, and not
        what the system leaves off its end."""
        tester, rows = trainable_tester(self.sampler.system), torch.tensor(responses)
        lengths = torch.full((len(rows),), rows.shape[1])
        for count in range(rows.shape[1], 0, -1):
            lengths[tester.ends(rows[:, :count])] = count
        said = [ids[:count] for ids, count in zip(responses, lengths.tolist(), strict=True)]
        samples = [Sample(text, [], ids) for text, ids in zip(tester.texts(said), said, strict=True)]
        kept, _ = self.sampler.system.probes_in(samples)
        return [len(sample.ids) for sample in kept]

    def ended(self, responses: torch.Tensor) -> torch.Tensor:
        return trainable_tester(self.sampler.system).ends(responses)

    def end_tokens(self) -> list[int]:
        return sorted(trainable_tester(self.sampler.system).eos)

    def tester_in(self, trained: Any) -> PreTrainedModel:
        return trained.policy

    def collect_round(self, number: int) -> list[Record]:
        start = time.perf_counter()
        with self.collecting(number) as (draws, wanted, on_exchanges):
            contexts = collect_contexts(self.sampler, draws, wanted, on_exchanges)
        found = [_record(context) for context in contexts]
        trees = len({record["tree"] for record in found})
        records = self.filled(number, found, trees)
        random.Random(derive_seed(self.args.seed, "order", number)).shuffle(records)  # each batch of all depths
        self.nodes: list[Node] = []
        self.round_figures = {
            "trees": trees,
            self.found: len(found),
            "collect_seconds": time.perf_counter() - start,
        }
        if self.is_world_process_zero():
            self.folder.write_records(number, records, self.round_figures)
        return records

    def resume_round(self, number: int) -> list[Record]:
        self.nodes = self.folder.read_nodes(number)
        return super().resume_round(number)

    def forget_later(self, number: int) -> None:
        def later(line: dict[str, Any]) -> bool:
            step = line.get("step", math.inf)  # a round's own line is written at its end
            return line["round"] >= number + (number == self._kept) or (
                line["round"] == number and step > self.state.global_step
            )

        self.folder.forget(later)

    def rewards_of(self, rows: list[list[int]]) -> list[float]:
        """What TRL's scores are made of: the credit of each row's exchange, once the target has answered its probe."""
        first = len(self._update)
        records = self._records[first : first + len(rows)]
        tester = trainable_tester(self.sampler.system)
        contexts = [_context(record) for record in records]
        prompts = [context.tester.prompt_ids for context in contexts]
        for row, prompt in zip(rows, prompts, strict=True):
            assert row[: len(prompt)] == prompt, "TRL scores other rows than it was given"
        said = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
        texts = tester.texts(said)
        probes = [Sample(text, prompt, ids) for text, prompt, ids in zip(texts, prompts, said, strict=True)]
        reward = self.sampler.system.reward
        if reward.needs_sampling_logprobs:
            found = tester.sampling_logprobs(prompts, said, tester.sampling.temperature)
            probes = [replace(probe, logprobs=row) for probe, row in zip(probes, found, strict=True)]
        if reward.needs_tester_logprob:
            found = tester.sampling_logprobs(prompts, said, 1.0)
            probes = [replace(probe, untempered_logprobs=row) for probe, row in zip(probes, found, strict=True)]
        place = (self.args.seed, "answer", self.state.global_step, self.accelerator.process_index)
        seeds = [derive_seed(*place, first + index) for index in range(len(rows))]
        try:
            nodes = stopped_together(lambda: self.sampler.answer(contexts, probes, seeds))
        except RunStopped:
            self.checkpoint_of_now()
            raise
        self._update += [
            [(context.tree, (*context.path, *path), below) for path, below in Tree((), [node]).walk()]
            for context, node in zip(contexts, nodes, strict=True)
        ]
        scores = by_depth([(len(context.path), node.credit) for context, node in zip(contexts, nodes, strict=True)])
        if scores is None:
            raise InputError(
                f"none of {len(nodes)} exchanges has a reward, as in each one the call failed, the response is empty "
                "or a reward term is nan: check the target and the scorer"
            )
        if self._missing_end_penalty is None:
            return scores
        missing = [len(ids) == self.args.response_length and not tester.ends(torch.tensor([ids]))[0] for ids in said]
        return [score - self._missing_end_penalty * late for score, late in zip(scores, missing, strict=True)]

    def batches(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        args, position = self.args, self.accelerator.process_index * self.args.local_batch_size
        for update in range(first, self.updates_per_epoch):
            start = update * args.batch_size + position
            self._records = self.train_dataset.records[start : start + args.local_batch_size]
            self._update: list[list[tuple[int, tuple[int, ...], Node]]] = []  # of each row, and what grew below it
            self._numbers = (torch.get_rng_state(), torch.cuda.get_rng_state_all())
            prompts = {"input_ids": [record["prompt_ids"] for record in self._records]}
            yield self.processing_class.pad(prompts, padding_side="left", return_tensors="pt")

    def checkpoint_of_now(self) -> None:
        # Of before the update that TRL has begun: it has counted its episodes, and sampled with random numbers that
        # are to be drawn again.
        self.state.episode -= self.args.batch_size
        if self._numbers is not None:
            torch.set_rng_state(self._numbers[0])
            torch.cuda.set_rng_state_all(self._numbers[1])
        super().checkpoint_of_now()

    def end_update(self) -> None:
        self._numbers = None
        update = [exchange for row in gather_object(self._update) for exchange in row]
        self.nodes += [node for _, _, node in update]
        self.sampler.system.remember([node for _, _, node in update])
        if self.is_world_process_zero():
            lines = (exchange_line(node, tree, path) for tree, path, node in update)
            number = math.ceil(self.state.epoch)
            self.folder.write_exchanges(number, ({"step": self.state.global_step, **line} for line in lines))
        self.save_usage()

    def end_round(self, number: int) -> None:
        self.round_figures |= self.figures_of(self.nodes)
        if self.is_world_process_zero():
            self.folder.write_figures(number, self.round_figures)
        super().end_round(number)


def by_depth(credits: Sequence[tuple[int, float | None]]) -> list[float] | None:
    """The credit of each probe, given with its depth. One without gets the mean of those of its depth, so that it
    teaches nothing in particular: of all if no other of that depth has one; `None` if none has."""
    known = [credit for _, credit in credits if credit is not None]
    if not known:
        return None
    of_depth: dict[int, list[float]] = {}
    for depth, credit in credits:
        if credit is not None:
            of_depth.setdefault(depth, []).append(credit)
    return [fmean(of_depth.get(depth, known)) if credit is None else credit for depth, credit in credits]


def _record(context: Context) -> Record:
    return {
        "tree": context.tree,
        "depth": len(context.path),
        "prompt": as_text(context.conversation),
        "prompt_ids": context.tester.prompt_ids,
        "context": json.dumps(asdict(context)),
    }


def _context(record: Record) -> Context:
    return Context.from_json(json.loads(record["context"]))
