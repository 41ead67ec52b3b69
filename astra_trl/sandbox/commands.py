"""Commands of `astra-trl sandbox` that build and describe worlds."""

import argparse
import textwrap
import time

from astra_trl.sandbox import load_world, named_world
from astra_trl.text import visible

BUILD = "Train a sandbox world's tester and target from a seed, which takes some minutes."


def add_build_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `build`."""
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same weights (default: 0)")
    parser.add_argument(
        "--weak", metavar="TOPIC,...", help="topics that the target is rude about (default: 4 by seed)"
    )
    parser.add_argument("--delayed", action="store_true", help="rude two turns after a weak topic, not at once")
    parser.add_argument(
        "--wide", action="store_true", help="200 topics and 24 weaknesses, rare ones and conditional ones among them"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="an empty or new folder")


def run_build(args: argparse.Namespace) -> None:
    """Write a world and print its figures."""
    from transformers.utils.logging import disable_progress_bar

    from astra_trl.sandbox.build import build_world
    from astra_trl.sandbox.check import measure

    weak = None if args.weak is None else [topic.strip() for topic in args.weak.split(",") if topic.strip()]
    disable_progress_bar()
    start = time.monotonic()
    build_world(
        args.output,
        args.seed,
        weak,
        progress=lambda line: print(line, flush=True),
        delayed=args.delayed,
        wide=args.wide,
    )
    world = load_world(args.output)
    names = ", ".join(weakness.name for weakness in world.weaknesses)
    print(f"built {world.path} in {time.monotonic() - start:.0f} s, rude about: {names}", flush=True)
    figures, weaknesses = measure(world, args.seed)
    for name, figure in figures.items():
        print(f"{name.replace('_', ' ')}: {figure:.3f}")
    print("share of self-play turns that show a weakness, and of its probes that are answered rudely:")
    for name, (share, rude_share) in weaknesses.items():
        print(f"{name:32} {share:7.2%} {rude_share:5.0%}")


def describe_world(path: str | None, reveal: bool) -> str:
    """Return a description of a world of at most 80 columns, with the weaknesses only if they are to be revealed."""
    world = named_world(path) or load_world()
    conditional = sum(weakness.conditional for weakness in world.weaknesses)
    weak = f"{len(world.weaknesses)} topics" + (f", {conditional} with a condition" if conditional else "")
    if reveal:
        order = " (from common to rare)" if len(set(world.frequencies)) > 1 else ""
        weak = ", ".join(weakness.name for weakness in world.weaknesses) + order
    else:
        weak += " (--reveal names them)"
    lines = {
        "folder": str(world.path),
        "openings": ", ".join(f"{len(texts)} {split}" for split, texts in world.openings_by_split.items()),
        "topics": ", ".join(world.topics),
        "rude words": ", ".join(world.rude_words),
        "rude about": f"{weak}, {world.delay} turns later" if world.delay else weak,
    }
    return "\n".join(
        textwrap.fill(visible(text), 80, initial_indent=f"{name + ':':12}", subsequent_indent=" " * 12)
        for name, text in lines.items()
    )
