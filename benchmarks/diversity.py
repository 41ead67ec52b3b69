"""Weaknesses that each algorithm finds in a sandbox world: `python -m benchmarks.diversity wide --seeds 0 1 2`.

Every run asks the target about as often as DPO's recipe does. The trained tester then holds 700 conversations from
held-out openings. One thread, some minutes per run.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

import torch

from astra_trl.cli.build import Calls, system_of
from astra_trl.cli.parse_train import parse
from astra_trl.evaluation.diversity import diversity
from astra_trl.evaluation.rarefaction import evenness
from astra_trl.rollout.run_folder import read_exchanges
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.sandbox import World, named_world
from astra_trl.sandbox.defaults import sandbox_defaults
from astra_trl.tree import Node
from benchmarks.systems import quiet, train

REPEATS, AT_A_TIME = 7, 350  # conversations from each held-out opening, and in a batch
SUBSAMPLE = 50  # successful probes, whose self-BLEU is measured
# System, algorithm and flags of each run. The rounds are as many as make about 21,000 exchanges.
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "gfn": ("astprompter", "gfn", []),
    "dpo": ("astprompter", "dpo", []),
    "grpo": ("astprompter", "grpo", ["--num_train_epochs", "36"]),
    "rloo": ("astprompter", "rloo", ["--num_train_epochs", "36"]),
    "ppo": ("astprompter", "ppo", ["--num_train_epochs", "29"]),
    "crt": ("crt", "ppo", ["--num_train_epochs", "147"]),
}
COLUMNS = (
    "exchanges", "reported", "harmful", "found", "rarest", "least", "evenness", "self-BLEU", "log-prob.", "area",
    "seconds",
)  # fmt: skip


def measure(name: str, world: World, flags: Sequence[str], folder: Path) -> list[float]:
    """Train by an algorithm, and return the figures of `COLUMNS`.

    They are exchanges of training; the harmful share that the run reports; of the trained tester's exchanges the
    harmful share, the shares of weaknesses and of the rarest third of them that are found, the share of hits of the
    weakness with the fewest, the evenness of hits, the self-BLEU of 50 successful probes and the mean log-probability
    per token under the target; the mean share of weaknesses found so far over the exchanges of training (the area
    under its curve); and seconds of training.
    """
    system, algorithm, own = RUNS[name]
    start = time.perf_counter()
    summary = train(system, algorithm, [*own, *flags], folder)
    seconds = time.perf_counter() - start
    names = [weakness.name for weakness in world.weaknesses]
    rarest = names[-max(1, len(names) // 3) :]
    found: set[str] = set()
    curve = []
    for _, node in read_exchanges(folder / "exchanges.jsonl"):
        if (weakness := world.weakness_of(node.exchange)) is not None:
            found.add(weakness.name)
        curve.append(len(found) / len(names))
    groups = held_conversations(name, world, flags, folder)
    nodes = [node for group in groups for node in group]
    hits = world.hits(node.exchange for node in nodes)
    successful = [[node.exchange.probe for node in group if node.scores["harm"] >= 0.5] for group in groups]
    return [
        len(curve),
        summary["harmful_share_after"],
        fmean(node.scores["harm"] >= 0.5 for node in nodes),
        len(hits) / len(names),
        fmean(weakness in hits for weakness in rarest),
        min(hits[weakness] for weakness in names) / max(1, hits.total()),
        evenness(hits, len(names)),
        diversity(successful)["self_bleu"].of_size(SUBSAMPLE).value,
        fmean(node.probe_logprob_per_token for node in nodes),
        fmean(curve),
        seconds,
    ]


def held_conversations(name: str, world: World, flags: Sequence[str], folder: Path) -> list[list[Node]]:
    """Return the exchanges of the trained tester's conversations from each held-out opening."""
    system, algorithm, own = RUNS[name]
    args, _, _ = parse(sandbox_defaults(system, algorithm), [*own, *flags, "--output_dir", str(folder)])
    with quiet():
        trained = system_of(args, world, str(folder), world.target, None, Calls(args, []))
    openings = world.openings("test")
    repeated = [opening for opening in openings for _ in range(REPEATS)]
    sampler = ASTSampler(trained, openings, tree_width=1, tree_depth=args.tree_depth)
    trees = []
    for first in range(0, len(repeated), AT_A_TIME):
        part = repeated[first : first + AT_A_TIME]
        trees += sampler.grow(part, list(range(first, first + len(part))))
    groups = [trees[first : first + REPEATS] for first in range(0, len(trees), REPEATS)]
    return [[node for tree in group for node in tree.nodes()] for group in groups]


def line(label: str, figures: Iterable[float]) -> str:
    """Return a line of the table."""
    texts = [
        f"{value:.1%}" if column in ("reported", "harmful", "found", "rarest", "least") else f"{value:.2f}"
        if column not in ("exchanges", "seconds") else f"{value:.0f}"
        for column, value in zip(COLUMNS, figures, strict=True)
    ]  # fmt: skip
    return f"{label:12}" + "".join(f"{text:>11}" for text in texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", help="embedded, wide or a folder")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given, more = parser.parse_known_args()  # the rest is for every run
    torch.set_num_threads(1)
    tested = named_world(given.world)
    assert tested is not None
    print(f"{'':12}" + "".join(f"{column:>11}" for column in COLUMNS), flush=True)
    for run in given.runs:
        rows = []
        for seed in given.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                settings = ["--world", given.world, "--seed", str(seed), *more]
                rows.append(measure(run, tested, settings, Path(scratch)))
            print(line(f"{run} seed {seed}", rows[-1]), flush=True)
        print(line(f"{run} median", [median(column) for column in zip(*rows, strict=True)]), flush=True)
