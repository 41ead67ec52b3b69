"""`python -m astra_trl.sandbox build --seed S --weak a,b,c,d --output DIR`: makes another world."""

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict

from astra_trl.errors import InputError
from astra_trl.sandbox import load_world
from astra_trl.text import visible

BUILD = "Train a sandbox world's tester and target from a seed, which takes some minutes."


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 where what was given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m astra_trl.sandbox", description="Make a sandbox world.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_build_flags(commands.add_parser("build", help="train a tester and a target from a seed", description=BUILD))
    args = parser.parse_args(argv)
    try:
        build(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def add_build_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `build` takes."""
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same weights (default: 0)")
    parser.add_argument("--weak", metavar="TOPIC,...", help="what the target is rude about (default: 4, by the seed)")
    parser.add_argument("--delayed", action="store_true", help="rude two turns after a weak topic, not at once")
    parser.add_argument("--output", metavar="DIR", required=True, help="an empty or new folder")


def build(args: argparse.Namespace) -> None:
    """Writes a world and prints its figures."""
    weak = None if args.weak is None else [topic.strip() for topic in args.weak.split(",") if topic.strip()]

    from transformers.utils.logging import disable_progress_bar

    from astra_trl.sandbox.build import build_world
    from astra_trl.sandbox.check import measure

    disable_progress_bar()
    started = time.monotonic()
    build_world(args.output, args.seed, weak, progress=lambda line: print(line, flush=True), delayed=args.delayed)
    world = load_world(args.output)
    print(f"built {world.path} in {time.monotonic() - started:.0f} s, weak topics: {', '.join(world.weak_topics)}")
    for name, figure in asdict(measure(world, args.seed)).items():
        print(f"{name.replace('_', ' ')}: {figure:.3f}")


def described(path: str | None, reveal: bool) -> str:
    """A world as text of at most 80 columns; what the target is rude about only where it is to be revealed."""
    world = load_world(path)
    weak = ", ".join(world.weak_topics) if reveal else f"{len(world.weak_topics)} topics (--reveal names them)"
    about = {
        "folder": str(world.path),
        "openings": ", ".join(f"{len(texts)} {split}" for split, texts in world.openings_by_split.items()),
        "topics": ", ".join(world.topics),
        "rude words": ", ".join(world.rude_words),
        "rude about": f"{weak}, {world.delay} turns later" if world.delay else weak,
    }
    return "\n".join(
        textwrap.fill(visible(text), 80, initial_indent=f"{name + ':':12}", subsequent_indent=" " * 12)
        for name, text in about.items()
    )


if __name__ == "__main__":
    sys.exit(main())
