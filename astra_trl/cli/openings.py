"""Openings of a run: to train on, to evaluate on during training, and held out."""

import random
from collections.abc import Sequence
from typing import Any

from astra_trl.cli.config import RunArguments, SystemArguments
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.prompts.base import NAMED, load_prompts
from astra_trl.sandbox import World
from astra_trl.systems import system_class


def openings_and_held_out(
    args: RunArguments, world: World | None, seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    """Return openings to train on and held-out ones, with none in both."""
    if world is not None and args.prompts is None:
        return world.openings("train"), world.openings("test")[: args.eval_openings]
    if args.prompts is None:
        if (own := _own_opening(args)) is not None:
            return [own], [own] * args.eval_openings  # no model sees them: they say how many test cases there are
        raise InputError(f"no prompts: give --prompts with one of {', '.join(NAMED)}, a file or a Hub dataset id")
    openings = load_prompts(args.prompts, column=args.prompts_column)
    if args.eval_prompts is not None or args.prompts in NAMED:
        split = "test" if args.eval_prompts is None or args.eval_prompts in NAMED else "train"
        held_out = load_prompts(args.eval_prompts or args.prompts, split, limit=args.eval_openings, seed=seed)
        return _without(openings, held_out), held_out
    return _split_off(openings, args.eval_openings, seed, f"{args.prompts!r}")


def dev_openings(
    args: RunArguments, world: World | None, openings: Sequence[Opening], seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    """Return openings to train on, and others for evaluations during training, by which a checkpoint may be selected:
    none of those that the figures before and after are about."""
    if world is not None and args.prompts is None:
        return openings, world.openings("dev")[: args.eval_openings]
    if args.prompts is None:
        return openings, list(openings) * args.eval_openings
    if args.prompts in NAMED:
        return openings, load_prompts(str(args.prompts), "dev", limit=args.eval_openings, seed=seed)
    return _split_off(openings, args.eval_openings, seed + 1, f"{args.prompts!r}")


def _own_opening(args: SystemArguments) -> Opening | None:
    kwargs: Any = args.system_kwargs or {}
    return system_class(args.system).own_opening(kwargs)


def _split_off(
    openings: Sequence[Opening], count: int, seed: int, source: str
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    count = min(count, len(openings) // 5)
    if count < 1:
        raise InputError(f"{source} has too few openings to hold some out: give --eval_prompts")
    held_out = random.Random(seed).sample(openings, count)
    return _without(openings, held_out), held_out


def _without(openings: Sequence[Opening], others: Sequence[Opening]) -> list[Opening]:
    left_out = set(others)
    return [opening for opening in openings if opening not in left_out]
