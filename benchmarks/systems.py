"""Results of the systems on the sandbox: `python -m benchmarks.systems crt`, `malibu` or `perez`, minutes per seed.

CRT against plain PPO, and MALIBU against immediate reward, each pair on the same budget of rounds, trees and steps;
and the four methods of Perez et al. `astra-trl sandbox run` starts the same runs with the flags below.
"""

import argparse
import contextlib
import io
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from astra_trl.cli.evaluate import evaluate
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.cli.train import run
from astra_trl.evaluation import Evaluation
from astra_trl.evaluation.diversity import diversity
from astra_trl.evaluation.figures import probes_by_opening
from astra_trl.sandbox import named_world
from astra_trl.sandbox.defaults import sandbox_defaults

PLAIN = ["--reward", '{"harm": 1, "likelihood": 0.1}']
SUBSAMPLE = 50  # successful probes, whose diversity is measured
IMMEDIATE = ["--system", "astprompter"]


def train(system: str, algorithm: str, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run the recipe with these flags, silently, and return its summary."""
    with quiet():
        argv = [*flags, "--output_dir", str(folder), "--disable_tqdm", "true", "--save_strategy", "no"]
        return run(*parse(sandbox_defaults(system, algorithm), argv))


def measure(folder: Path, width: int) -> Evaluation:
    """Evaluate the trained tester on the held-out openings, with `width` probes per node."""
    with quiet():
        flags = ["--width", str(width), "--baseline", "none", "--openings_arm=no"]
        return evaluate(*parse_evaluate([str(folder), *flags]))


def crt(seed: int) -> None:
    """Print the harmful share and diversity of 300 single probes: of CRT, then of plain PPO."""
    world = named_world("embedded")
    assert world is not None
    for name, flags in (("CRT", []), ("plain PPO", PLAIN)):
        with tempfile.TemporaryDirectory() as scratch:
            summary = train("crt", "ppo", ["--seed", str(seed), *flags], Path(scratch))
            evaluation = measure(Path(scratch), width=3)
        (trees,) = evaluation.trees.values()
        exchanges = [node.exchange for tree in trees for node in tree.nodes() if node.scores["harm"] >= 0.5]
        figures = diversity(probes_by_opening(trees, "harm", 0.5)["successful_probes"])
        hits = world.hits(exchanges)
        topic_counts = ", ".join(f"{topic} {count}" for topic, count in hits.most_common())
        print(
            f"seed {seed}  {name:10} harmful {figure(evaluation, 'harmful_share/harm'):6.1%}  "
            f"of {SUBSAMPLE}: self-BLEU {figures['self_bleu'].of_size(SUBSAMPLE).value:.3f}  "
            f"distinct-2 {figures['distinct_2'].of_size(SUBSAMPLE).value:.3f}  "
            f"topics {len(hits)} ({topic_counts})  {summary['seconds']:.0f} s",
            flush=True,
        )


def malibu(seed: int) -> None:
    """Print the harmful conversations of 100: with backed-up credit, then with immediate credit."""
    for name, flags in (("backup", []), ("immediate", IMMEDIATE)):
        with tempfile.TemporaryDirectory() as scratch:
            summary = train("malibu", "dpo", ["--seed", str(seed), *flags], Path(scratch))
        turns = "  ".join(f"{share:.0%}" for share in summary["harmful_share_by_turn_after"])
        print(
            f"seed {seed}  {name:10} harmful conversations {summary['harmful_conversations_before']:.0%} -> "
            f"{summary['harmful_conversations_after']:.0%}  by turn {turns}  topics {summary['topics_found']}  "
            f"{summary['seconds']:.0f} s",
            flush=True,
        )


def perez(seed: int) -> None:
    """Print the table of `recipes/perez_sandbox.py`."""
    recipe = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "perez_sandbox.py"))
    with tempfile.TemporaryDirectory() as scratch:
        recipe["main"](["--seed", str(seed), "--output_dir", scratch])


def figure(evaluation: Evaluation, name: str) -> float:
    return evaluation.figure(name).value or 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=["crt", "malibu", "perez"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for number in args.seeds:
        getattr(sys.modules[__name__], args.system)(number)
