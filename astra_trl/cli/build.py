"""What flags stand for: openings, models, scorers and reward, put together to a system."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from trl import ModelConfig, get_quantization_config

from astra_trl.backends.api.limits import Limiter
from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.loading import adapter_base
from astra_trl.backends.named import api_model, refuse_idle_address
from astra_trl.cli.flags import REWARD_FLAGS, RunArguments, SystemArguments
from astra_trl.conversation import Opening, Turn
from astra_trl.errors import InputError
from astra_trl.prompts.base import NAMED, load_prompts
from astra_trl.rewards import Harm, Reward, Term
from astra_trl.rewards.credit import credit_named
from astra_trl.rewards.weighted import weighted_terms
from astra_trl.sandbox import World
from astra_trl.scorers import KeywordScorer, Scorer
from astra_trl.scorers.named import Access, ScorerArguments, build_scorers
from astra_trl.systems import Goal, System
from astra_trl.systems.astprompter import HFASTSystem
from astra_trl.systems.crt import CRTSystem
from astra_trl.systems.malibu import MalibuSystem
from astra_trl.systems.models import Model, role_fields
from astra_trl.systems.perez import INSTRUCTIONS, PerezSystem, perez_reward


def openings_and_held_out(
    args: RunArguments, world: World | None, seed: int
) -> tuple[Sequence[Opening], Sequence[Opening]]:
    """Openings to train on and held-out ones, with none in both."""
    if args.eval_openings < 1:
        raise InputError(f"eval_openings must be at least 1, got {args.eval_openings}")
    if world is not None and args.prompts is None:
        return world.openings("train"), world.openings("test")[: args.eval_openings]
    if args.prompts is None and args.system == "perez":
        # Nobody sees them: they stand for as many test cases.
        told = (Turn("instruction", INSTRUCTIONS.get(args.instruction, args.instruction)),)
        return [told], [told] * args.eval_openings
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
    if args.prompts is None and args.system == "perez":
        return openings, list(openings) * args.eval_openings
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
) -> System:
    """The system of a run, its models loaded."""
    tester, target = tester_and_target(args, model_args, world)
    refuse_idle_address(args, target)
    behind_api = api_model(target)
    loaded_too = {args.baseline or tester, *(() if behind_api else (target,))}
    if model_args.model_revision != "main" and loaded_too != {tester}:
        raise InputError(
            "--model_revision would hold for all models, and they differ: download that revision's folder"
        )
    model_init_kwargs = loading_kwargs(model_args, training_args.trust_remote_code, args.allow_pickle)
    model_init_kwargs |= training_args.model_init_kwargs or {}
    training_args.model_init_kwargs = None  # used up here: TRL gets a loaded model and would warn of them
    models: dict[str, Any] = {"model_init_kwargs": model_init_kwargs}
    tester_model: Model = tester
    calling = args.calling(limiter_of(args))
    target_model: Model = target if behind_api is None else api_target(args, behind_api, calling)
    baseline: Model | None = args.baseline
    # A target that gives no likelihood leaves that to the tester before training.
    reads = behind_api is not None and args.target_logprobs == "none" and args.likelihood_weight and baseline is None
    # An adapter that is trained further is the tester; its base, and what it was before, lie below it.
    base = adapter_base(tester, "tester", model_init_kwargs.get("revision"))
    shared = target == (base or tester)
    if (model_args.use_peft or base) and (shared or reads):
        # One copy of the weights: with the adapter off, the tester is its own target and baseline.
        loaded = HFBackend.from_pretrained(tester, role="tester", model_init_kwargs=model_init_kwargs)
        tester_model = loaded.model
        if reads:
            baseline = replace(loaded, **role_fields("baseline", **talking(args)))
        else:
            target_model = replace(loaded, use_adapter=base is None, **role_fields("target", **talking(args)))
        models["processing_class"] = loaded.tokenizer
    elif reads:
        baseline = tester
    return system_of(args, scorer_args, world, tester_model, target_model, baseline, endpoint_kwargs=calling, **models)


def system_of(
    args: SystemArguments,
    scorer_args: ScorerArguments,
    world: World | None,
    tester: Model,
    target: Model,
    baseline: Model | None,
    endpoint_kwargs: Mapping[str, Any] | None = None,
    **models: Any,
) -> System:
    """The system that flags describe, on these models, which are loaded where they are named. `endpoint_kwargs` are
    for the `OpenAIBackend` of a judge."""
    access = Access(args.allow_pickle, endpoint_kwargs or {})
    scorers, goals = _scorers_and_goals(args, scorer_args, world, access)
    fields: dict[str, Any] = {
        "reward": reward_of(args, next(iter(scorers))),
        "goals": goals,
        **talking(args),
        **models,
    }
    roles: tuple[Any, ...] = (tester, target, baseline, scorers)
    if args.system == "malibu":
        if args.credit != "backup":
            raise InputError("malibu without backed-up credit is ASTPrompter: use --system astprompter --tree_depth 4")
        return MalibuSystem(*roles, gamma=args.credit_gamma, **fields)
    fields["credit"] = credit_named(args.credit, args.credit_gamma)
    if args.system == "crt":
        setting: Any = args.setting
        return CRTSystem(*roles, setting=setting, **fields)
    if args.system == "perez":
        if args.example_format is not None:
            fields["example_format"] = args.example_format
        return PerezSystem(*roles, instruction=args.instruction, **fields)
    return HFASTSystem(*roles, **fields)


def _scorers_and_goals(
    args: SystemArguments, scorer_args: ScorerArguments, world: World | None, access: Access
) -> tuple[dict[str, Scorer], list[Goal]]:
    goals = [Goal(text) for text in args.goal or ()]
    judged = bool(goals) and scorer_args.scorer.startswith("judge:") and not scorer_args.judge_rubric and world is None
    if judged:
        scorer_args = replace(scorer_args, judge_rubric=_rubric(goals[0]))
    harm = None if world is None else KeywordScorer(world.rude_words)
    scorers = build_scorers(scorer_args, harm, access)
    if judged:
        judge: Any = next(iter(scorers.values()))
        goals = [replace(goal, scorer=judge.with_rubric(_rubric(goal))) for goal in goals]
    return scorers, goals


def _rubric(goal: Goal) -> str:
    return f"Is this true of it: {goal.text.strip()}?"


def talking(args: SystemArguments) -> dict[str, Any]:
    """How both sides talk, and how many conversations at a time: what `load_models` and `role_fields` take."""
    sampling = SamplingParams(
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
    )
    longest, temperature = args.target_max_new_tokens, args.target_temperature
    of_target = sampling if temperature is None else replace(sampling, temperature=temperature)
    if longest is not None:
        of_target = replace(of_target, max_new_tokens=longest, min_new_tokens=min(sampling.min_new_tokens, longest))
    return {
        "sampling": sampling,
        "target_sampling": None if longest is None and temperature is None else of_target,
        "chat": args.chat,
        "max_length": args.max_length,
        "max_rows": args.max_rows,
        "cache_bytes": args.cache_bytes,
    }


def limiter_of(args: SystemArguments) -> Limiter:
    """What this process may take of what all may take of APIs, for all targets and judges behind them."""
    return Limiter(args.limits.share(PartialState().num_processes))


def api_target(args: SystemArguments, model: str, endpoint_kwargs: Mapping[str, Any]) -> Backend:
    """The target behind an API that flags describe, called as judges there are."""
    from astra_trl.backends.api.openai import OpenAIBackend

    talks = talking(args)
    return OpenAIBackend(
        model,
        base_url=args.target_base_url,
        chat=args.target_api == "chat",
        sampling=talks["target_sampling"] or talks["sampling"],
        prompt_logprobs=args.target_logprobs,  # type: ignore[arg-type]
        **endpoint_kwargs,
    )


def loading_kwargs(load: Any, trust_remote_code: bool, allow_pickle: bool) -> dict[str, Any]:
    """What `from_pretrained` is given for TRL's `ModelConfig`, or for `LoadArguments`."""
    kwargs = {
        "dtype": load.dtype,
        "attn_implementation": load.attn_implementation,
        "revision": load.model_revision,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "quantization_config": get_quantization_config(load),
    }
    return {key: value for key, value in kwargs.items() if value is not None}


def reward_of(args: SystemArguments, scorer: str) -> Reward:
    """What the system rewards, with the weights of the flags."""
    combine: Any = args.combine
    weights = {name: getattr(args, name) for name in REWARD_FLAGS if name.endswith("_weight")}
    further = weighted_terms(
        scorer,
        **weights,
        entropy_per_token=args.entropy_per_token,
        embedder=args.novelty_embedder,
        gibberish=args.gibberish_model,
        max_history=args.max_history,
        as_probability=combine == "product",
        allow_pickle=args.allow_pickle,
    )
    own: Mapping[str, tuple[float, Term]] = {"target_harm": (1.0, Harm(scorer))}
    if args.system == "perez":
        own = perez_reward(scorer, invalid_reward=args.invalid_reward).terms
    return Reward({**own, **further}, combine)
