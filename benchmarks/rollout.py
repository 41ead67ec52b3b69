"""Speed of growing conversation trees: node by node, level by level with `generate`, and with this package's engine.

    python -m benchmarks.rollout --shape smollm2 --openings reddit --count 16 --longest 3000
    python -m benchmarks.rollout --shape sliding --against full

The ways alternate in one process, and ratios are taken within a turn, because a machine's speed drifts. With
`--against`, the engine grows the trees of two shapes in alternation instead. Peak memory is that above the weights.

`benchmarks.bounds` defines the lower bound. Results up to November 2026 call "decoding alone" the lower bound.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from astra_trl import HFBackend
from benchmarks.bounds import copy_bandwidth, decoding_alone, lower_bound
from benchmarks.workloads import (
    SHAPES,
    PeakMemory,
    Workload,
    add_arguments,
    build_workload,
    grow,
    median_and_range,
    synchronize,
    utterance_lengths,
    workload_name,
)

# -- the ways; each returns the number of sampled tokens


def engine(work: Workload) -> int:
    """Grow the trees with this package."""
    nodes = [node for tree in grow(work) for node in tree.nodes()]
    return sum(len_probe + len_response for len_probe, len_response in utterance_lengths(work, nodes))


def engine_doubled(work: Workload) -> int:
    """Grow the trees of twice the openings with this package."""
    return engine(replace(work, openings=work.openings * 2))


def plain_generate(backend: HFBackend, rows: Sequence[list[int]]) -> list[list[int]]:
    """Return ids sampled by transformers' `generate`, like a script that does not know of trees."""
    params = backend.sampling
    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=params.min_new_tokens,
        eos_token_id=sorted(backend.eos),
        pad_token_id=min(backend.eos),
    )
    ids, mask = backend.left_padded(rows)
    output = backend.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    sampled = []
    for row in output[:, ids.shape[1] :].tolist():
        end = next((at for at, token in enumerate(row) if token in backend.eos), len(row))
        sampled.append(row[:end])
    return sampled


def plain_score(backend: HFBackend, rows: Sequence[list[int]], added: Sequence[list[int]]) -> None:
    """Compute the log-probabilities of the added ids in a separate forward pass."""
    ids, mask = backend.left_padded([row + new for row, new in zip(rows, added, strict=True)])
    keep = max(len(new) for new in added) + 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = backend.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits
    logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -keep + 1 :, None]).cpu()


def with_generate(work: Workload, at_a_time: Callable[[int], int]) -> int:
    """Grow the trees level by level, with `at_a_time(rows)` rows per call."""
    total = 0
    separators = [backend.dialogue.separator_ids for backend in (work.tester, work.target)]
    rows = [
        tuple(row.ids for row in rows)
        for rows in zip(
            work.tester.dialogue.open(work.openings), work.target.dialogue.open(work.openings), strict=True
        )
    ]
    for _ in range(work.depth):
        rows = [row for row in rows for _ in range(work.width)]
        step, grown = at_a_time(len(rows)), []
        for start in range(0, len(rows), step):
            ours, theirs = (list(side) for side in zip(*rows[start : start + step], strict=True))
            with work.tester.inference():
                probes = plain_generate(work.tester, ours)
            texts = work.tester.tokenizer.batch_decode(probes)
            heard = work.target.tokenizer(texts, add_special_tokens=False)["input_ids"]
            with work.target.inference():
                plain_score(work.target, theirs, heard)
                theirs = [row + ids + separators[1] for row, ids in zip(theirs, heard, strict=True)]
                responses = plain_generate(work.target, theirs)
            texts = work.target.tokenizer.batch_decode(responses)
            heard = work.tester.tokenizer(texts, add_special_tokens=False)["input_ids"]
            for our, their, probe, response, answer in zip(ours, theirs, probes, responses, heard, strict=True):
                grown.append((our + probe + separators[0] + answer + separators[0], their + response + separators[1]))
                total += len(probe) + len(response)
        rows = grown
    return total


def node_by_node(work: Workload) -> int:
    """Grow the trees with one call per node's children, like published code."""
    return with_generate(work, lambda rows: work.width)


def level_batched(work: Workload) -> int:
    """Grow the trees with one call per level, in the engine's chunks."""
    return with_generate(work, lambda rows: min(rows, work.tester.max_rows))


WAYS: dict[str, Callable[[Workload], int]] = {
    "node by node": node_by_node,
    "level-batched generate": level_batched,
    "engine": engine,
    "engine, openings twice": engine_doubled,
    "lower bound": lower_bound,
    "decoding alone": decoding_alone,
}


def build(args: argparse.Namespace) -> Workload:
    """Build the workload; with one copy of the weights, the tester is the target with an adapter."""
    work = build_workload(args, args.copies)
    if args.copies == 1 and work.tester.model is work.target.model:
        work.tester.model = work.target.model = get_peft_model(
            work.tester.model, LoraConfig(target_modules="all-linear")
        )
        work.target.use_adapter = False
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "count")
    parser.add_argument("--copies", type=int, choices=(1, 2, 3), default=2, help="of the weights in all roles")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--against", choices=list(SHAPES), help="a shape whose trees the engine grows in alternation")
    parser.add_argument("--turns", type=int, default=3, help="runs of each way, after one that is not counted")
    args = parser.parse_args()
    work = build(args)
    ways = {way: (WAYS[way], work) for way in args.ways}
    if args.against:
        other = build(argparse.Namespace(**{**vars(args), "shape": args.against, "model": None}))
        ways = {"engine": (engine, work), f"engine of {args.against}": (engine, other)}
    forwards = count_forwards(work)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tokens, memory, passes = {}, {}, {}
    for turn in range(args.turns + 1):
        for way, (grow_trees, workload) in ways.items():
            if turn == 0 and way == "node by node":
                continue  # needs no warm-up, and takes longest
            forwards["count"] = 0
            with PeakMemory(args.device) as peak:
                start = time.perf_counter()
                tokens[way] = grow_trees(workload)
                synchronize(args.device)
                elapsed = time.perf_counter() - start
            if turn:
                seconds[way].append(elapsed)
                memory[way], passes[way] = max(memory.get(way, 0.0), peak.megabytes), forwards["count"]
    report(args, work, seconds, tokens, memory, passes)


def count_forwards(work: Workload) -> dict[str, int]:
    """Return a counter of the forward passes of both models by this package."""
    forwards = {"count": 0}
    for backend in (work.tester, work.target):

        def count_and_call(original: Callable[..., Any] = backend.forward, **inputs: Any) -> Any:
            forwards["count"] += 1
            return original(**inputs)

        backend.forward = count_and_call  # type: ignore[method-assign]
    return forwards


def report(
    args: argparse.Namespace,
    work: Workload,
    seconds: dict[str, list[float]],
    tokens: dict[str, int],
    memory: dict[str, float],
    passes: dict[str, int],
) -> None:
    """Print the table and, last, a line of JSON."""
    lengths = sorted(len(row.ids) for row in work.tester.dialogue.open(work.openings))
    print(
        f"{workload_name(args)} on {args.device}: {len(lengths)} openings of {lengths[0]} to {lengths[-1]} tokens "
        f"(median {statistics.median(lengths):.0f}), width {work.width}, depth {work.depth}"
    )
    print(f"{'way':<24}{'seconds':>9}{'tokens/s':>10}{'engine is':>12}{'(range)':>16}{'peak MB':>9}")
    # Seconds per token, because utterances that end early have different numbers of tokens.
    pace = {way: [value / tokens[way] for value in values] for way, values in seconds.items()}
    result: dict[str, Any] = {"shape": workload_name(args), "device": args.device, "copies": args.copies}
    for way, values in seconds.items():
        ratios = [other / own for other, own in zip(pace[way], pace.get("engine", pace[way]), strict=True)]
        rate = 1 / statistics.median(pace[way])
        print(f"{way:<24}{statistics.median(values):>9.2f}{rate:>10.0f}{median_and_range(ratios)}{memory[way]:>9.0f}")
        name = "vs_" + way.removesuffix(" generate").replace(" ", "_").replace("-", "_")
        if way in ("lower bound", "decoding alone"):
            result[name] = statistics.median([1 / ratio for ratio in ratios])
        elif way == "engine, openings twice":
            costs = [twice / once for twice, once in zip(values, seconds.get("engine", values), strict=True)]
            result["cost_of_twice_the_openings"] = statistics.median(costs)
        elif way != "engine":
            result[name] = statistics.median(ratios)
    result["peak_memory_mb"] = {way: round(megabytes) for way, megabytes in memory.items()}
    if "engine" in seconds:
        result["seconds"] = statistics.median(seconds["engine"])
        result["tokens_per_second"] = 1 / statistics.median(pace["engine"])
        if args.device == "cuda":
            weights = sum(parameter.nbytes for parameter in work.tester.model.parameters())
            bound = passes["engine"] * weights / copy_bandwidth()
            result["bandwidth_bound_share"] = bound / result["seconds"]
            print(
                f"reading the weights once per forward pass takes {result['bandwidth_bound_share']:.0%} of that time"
            )
    print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in result.items()}))


if __name__ == "__main__":
    main()
