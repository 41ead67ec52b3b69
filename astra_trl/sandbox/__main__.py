"""`python -m astra_trl.sandbox build --seed S --weak a,b,c,d --output DIR`: makes another world."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from astra_trl.errors import InputError
from astra_trl.sandbox import load_world


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 where what was given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m astra_trl.sandbox", description="Make a sandbox world.")
    build = parser.add_subparsers(dest="command", required=True).add_parser(
        "build", help="train a tester and a target from a seed", description="Train a tester and a target from a seed."
    )
    build.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: 0)")
    build.add_argument("--weak", metavar="TOPIC,...", help="what the target is rude about (default: 4, by the seed)")
    build.add_argument("--output", metavar="DIR", required=True, help="an empty or new folder")
    args = parser.parse_args(argv)
    weak = None if args.weak is None else [topic.strip() for topic in args.weak.split(",") if topic.strip()]

    from transformers.utils.logging import disable_progress_bar

    from astra_trl.sandbox.build import build_world
    from astra_trl.sandbox.check import measure

    disable_progress_bar()
    started = time.monotonic()
    try:
        build_world(args.output, args.seed, weak, progress=lambda line: print(line, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    world = load_world(args.output)
    print(f"built {world.path} in {time.monotonic() - started:.0f} s, weak topics: {', '.join(world.weak_topics)}")
    for name, figure in asdict(measure(world, args.seed)).items():
        print(f"{name.replace('_', ' ')}: {figure:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
