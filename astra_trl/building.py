"""What flags stand for: openings, models, scorers and reward, put together to a system."""

import random
from collections.abc import Sequence
from typing import Any

from trl import ModelConfig, get_quantization_config

from astra_trl.backends.base import SamplingParams
from astra_trl.backends.hf import HFBackend
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.flags import RunArguments, SamplingArguments
from astra_trl.prompts.base import NAMED, load_prompts
from astra_trl.rewards import Backup, Reward, immediate
from astra_trl.sandbox import World
from astra_trl.scorers import KeywordScorer
from astra_trl.scorers.named import ScorerArguments, build_scorers
from astra_trl.systems.astprompter import HFASTSystem, astprompter_reward


def openings_and_held_out(
    args: RunArguments, world: World | None, seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    """Openings to train on and held-out ones, with none in both."""
    if args.eval_openings < 1:
        raise InputError(f"eval_openings must be at least 1, got {args.eval_openings}")
    if world is not None and args.prompts is None:
        return world.openings("train"), world.openings("test")[: args.eval_openings]
    if args.prompts is None:
        raise InputError(f"no prompts: give --prompts with one of {', '.join(NAMED)}, a file or a Hub dataset id")
    openings = load_prompts(args.prompts, column=args.prompts_column)
    if args.eval_prompts is not None or args.prompts in NAMED:
        split = "test" if args.eval_prompts is None or args.eval_prompts in NAMED else "train"
        held_out = load_prompts(args.eval_prompts or args.prompts, split, limit=args.eval_openings, seed=seed)
        return _without(openings, held_out), held_out
    return _apart(openings, args.eval_openings, seed, f"{args.prompts!r}")


def dev_openings(
    args: RunArguments, world: World | None, openings: Sequence[Opening], seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    """Openings to train on, and others for the evaluations in the course of training, by which a checkpoint may be
    chosen: none of those that the figures before and after are about."""
    if world is not None and args.prompts is None:
        return openings, world.openings("dev")[: args.eval_openings]
    if args.prompts in NAMED:
        return openings, load_prompts(str(args.prompts), "dev", limit=args.eval_openings, seed=seed)
    return _apart(openings, args.eval_openings, seed + 1, f"{args.prompts!r}")


def _apart(
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


def tester_and_target(args: RunArguments, model_args: ModelConfig, world: World | None) -> tuple[str, str]:
    """Their Hub ids or folders, those of the world where none are given; `InputError` where one is missing."""
    tester = args.tester or model_args.model_name_or_path or (world.tester if world else None)
    target = args.target or (world.target if world else None)
    if tester is None or target is None:
        raise InputError(f"no {'target' if tester else 'tester'}: give a Hub id or folder with --tester and --target")
    return tester, target


def build_system(
    args: RunArguments,
    scorer_args: ScorerArguments,
    training_args: Any,
    model_args: ModelConfig,
    world: World | None,
) -> HFASTSystem:
    tester, target = tester_and_target(args, model_args, world)
    if model_args.model_revision != "main" and {target, args.baseline or tester} != {tester}:
        raise InputError(
            "--model_revision would hold for all models, and they differ: download that revision's folder"
        )
    model_init_kwargs = loading_kwargs(model_args, training_args.trust_remote_code)
    model_init_kwargs |= training_args.model_init_kwargs or {}
    training_args.model_init_kwargs = None  # used up here: TRL gets a loaded model and would warn of them
    scorers = build_scorers(scorer_args, None if world is None else KeywordScorer(world.rude_words))
    tester_model: str | HFBackend = tester
    target_model: str | HFBackend = target
    fields = backend_fields(args)
    if model_args.use_peft and target == tester:
        # One copy of the weights: with the adapter off, the tester is its own target and baseline.
        tester_model = HFBackend.from_pretrained(tester, role="tester", model_init_kwargs=model_init_kwargs, **fields)
        target_model = tester_model
    return HFASTSystem(
        tester_model,
        target_model,
        args.baseline,
        scorers,
        reward=reward_of(args, next(iter(scorers))),
        credit=Backup(args.credit_gamma) if args.credit == "backup" else immediate,
        model_init_kwargs=model_init_kwargs,
        **fields,
    )


def backend_fields(args: SamplingArguments) -> dict[str, Any]:
    """How both sides sample, and how many conversations at a time: fields of `HFBackend`."""
    sampling = SamplingParams(
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
    )
    limits = {"max_length": args.max_length, "max_rows": args.max_rows, "cache_bytes": args.cache_bytes}
    return {"sampling": sampling, **limits}


def loading_kwargs(load: Any, trust_remote_code: bool) -> dict[str, Any]:
    """What `from_pretrained` is given for TRL's `ModelConfig`, or for `LoadArguments`."""
    kwargs = {
        "dtype": load.dtype,
        "attn_implementation": load.attn_implementation,
        "revision": load.model_revision,
        "trust_remote_code": trust_remote_code,
        "quantization_config": get_quantization_config(load),
    }
    return {key: value for key, value in kwargs.items() if value is not None}


def reward_of(args: RunArguments, scorer: str) -> Reward:
    """ASTPrompter's reward with the weights of the flags."""
    return astprompter_reward(
        scorer,
        probe_and_response_weight=args.probe_and_response_weight,
        likelihood_weight=args.likelihood_weight,
        probe_weight=args.probe_weight,
        length_weight=args.length_weight,
        non_repeating_weight=args.non_repeating_weight,
        combine=args.combine,  # type: ignore[arg-type]  # the parser's choices
    )
