"""A run from its configuration: openings, models, scorers and reward, put together to a system."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelerate import PartialState
from trl import ModelConfig, get_quantization_config

from astra_trl.backends.api.endpoint import LIMITS, Endpoint, endpoint_of, is_behind_api, target_model
from astra_trl.backends.api.limits import Limiter, Limits
from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.backends.function import FunctionBackend
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.loading import adapter_base
from astra_trl.cli.config import RunArguments, SystemArguments
from astra_trl.errors import InputError
from astra_trl.lookup import build, build_own, is_dotted_path, looks_like_code, unknown
from astra_trl.rewards.config import build_reward
from astra_trl.sandbox import World
from astra_trl.scorers import KeywordScorer, Scorer
from astra_trl.scorers.base import try_out
from astra_trl.scorers.config import SCORERS, build_scorer, scorer_settings, scorers_by_name
from astra_trl.systems import Goal, System, system_class
from astra_trl.systems.base import SAMPLING
from astra_trl.systems.models import Model, load_models, role_fields


def tester_and_target(args: RunArguments, model_args: ModelConfig, world: World | None) -> tuple[str, Any]:
    """Return the tester and the target, those of the world if none are given.

    Raises:
        InputError: one is missing.
    """
    tester = args.tester or model_args.model_name_or_path or (world.tester if world else None)
    target = args.target or (world.target if world else None)
    if tester is None or target is None:
        raise InputError(f"no {'target' if tester else 'tester'}: give a Hub id or folder with --tester and --target")
    return tester, target


def local_target(target: Any) -> str | None:
    """Return the Hub id or folder of a target, or `None` if it is behind an API or a function."""
    if endpoint_of(target) is not None:
        return None
    model = target_model(target)
    if looks_like_code(model):
        raise unknown("target", model, "give a Hub id or folder, or ")
    return None if is_dotted_path(model) else model


def build_system(args: RunArguments, training_args: Any, model_args: ModelConfig, world: World | None) -> System:
    """Build the system of a run and load its models."""
    tester, target = tester_and_target(args, model_args, world)
    calls = Calls(args, [target])
    model_id = local_target(target)
    loaded_too = {args.baseline or tester, *(() if model_id is None else (model_id,))}
    if model_args.model_revision != "main" and loaded_too != {tester}:
        raise InputError(
            "--model_revision would apply to all models, and they differ: download that revision's folder"
        )
    model_init_kwargs = loading_kwargs(model_args, training_args.trust_remote_code, args.allow_pickle)
    model_init_kwargs |= training_args.model_init_kwargs or {}
    training_args.model_init_kwargs = None  # used here: TRL gets a loaded model and would warn about them
    models: dict[str, Any] = {"model_init_kwargs": model_init_kwargs}
    tester_model: Model = tester
    target_model: Any = model_id or calls.target(target)
    baseline: Model | None = args.baseline
    # If the target gives no likelihood, the tester before training gives it.
    reads = _needs_reader(args, target_model) and baseline is None
    # An adapter that is trained further is the tester; its base, and what it was before, lie below it.
    base = adapter_base(tester, "tester", model_init_kwargs.get("revision"))
    shared = model_id is not None and model_id == (base or tester)
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
    return system_of(args, world, tester_model, target_model, baseline, calls, **models)


def _needs_reader(args: SystemArguments, target: Any) -> bool:
    terms: Any = args.reward
    return (
        bool(terms.get("likelihood")) and not isinstance(target, str) and not getattr(target, "gives_logprobs", False)
    )


def system_of(
    args: SystemArguments,
    world: World | None,
    tester: Model,
    target: Any,
    baseline: Model | None,
    calls: "Calls",
    **models: Any,
) -> System:
    """Build the system that settings describe, on models that are loaded if they are named."""
    cls, terms, kwargs = system_class(args.system), args.reward, dict(args.system_kwargs or {})  # type: ignore[arg-type]
    if not isinstance(terms, dict):
        raise InputError("the reward has no terms: give --reward '{\"harm\": 1}'")
    scorers, goals = _scorers_and_goals(args, world, calls)
    combine: Any = args.combine
    reward = build_reward(terms, next(iter(scorers)), combine=combine, allow_pickle=args.allow_pickle)
    roles = load_models(tester, target, baseline, **talking(args), **models)
    kwargs = {"reward": reward, "goals": goals, **kwargs}
    return cls(*roles, scorers, **kwargs)


def talking(args: SystemArguments) -> dict[str, Any]:
    """Return the arguments of `load_models` and `role_fields`: sampling, chat templates and batch sizes."""
    sampling = SamplingParams(**{name: getattr(args, name) for name in SAMPLING})
    changes: Any = args.target_sampling
    target_sampling = None
    if changes:
        longest = changes.get("max_new_tokens", sampling.max_new_tokens)
        changes = {"min_new_tokens": min(sampling.min_new_tokens, longest), **changes}
        target_sampling = build("target_sampling", "target", SamplingParams, {**asdict(sampling), **changes})
    return {
        "sampling": sampling,
        "target_sampling": target_sampling,
        "chat": args.chat,
        "max_length": args.max_length,
        "max_rows": args.max_rows,
        "cache_bytes": args.cache_bytes,
    }


def loading_kwargs(load: Any, trust_remote_code: bool, allow_pickle: bool) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for TRL's `ModelConfig`, or for `LoadArguments`."""
    kwargs = {
        "dtype": load.dtype,
        "attn_implementation": load.attn_implementation,
        "revision": load.model_revision,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "quantization_config": get_quantization_config(load),
    }
    return {key: value for key, value in kwargs.items() if value is not None}


# -- scorers and endpoints


def scorer_specs(args: SystemArguments, world: World | None) -> dict[str, dict[str, Any]]:
    """Return the settings of the scorers by name, the one that is trained on first; without a sandbox world's own."""
    scorers, held_out = args.scorers, args.held_out_scorers
    if isinstance(scorers, dict):
        if held_out:
            raise InputError("both scorers and held_out_scorers: name all in scorers, the first is trained on")
        return {name: scorer_settings(spec) for name, spec in scorers.items()}
    held_out = [] if held_out in (None, ["none"]) else held_out
    specs: list[Any] = [*(() if world or args.scorer is None else (args.scorer,)), *(held_out or ())]
    return scorers_by_name(specs, taken=("harm",) if world else ())


@dataclass
class Calls:
    """Calls of endpoints: limits hold for a run's target and judges together, and are given in one place."""

    args: SystemArguments
    targets: Sequence[Any]
    response_cache: str | None = None

    def __post_init__(self) -> None:
        given = {str(spec): endpoint for spec in self.targets if (endpoint := endpoint_of(spec)) is not None}
        limits = {name: _given_limits(endpoint) for name, endpoint in given.items()}
        for name, settings in scorer_specs(self.args, None).items():
            if settings["type"] in SCORERS and is_behind_api(settings):
                limits[f"scorer {name}"] = {key: settings[key] for key in LIMITS if key in settings}
        different = {name: found for name, found in limits.items() if found}
        if len({str(sorted(found.items())) for found in different.values()}) > 1:
            raise InputError(f"limits of endpoints hold together, and are given by {', '.join(different)}: give one")
        found = next(iter(different.values()), {})
        self.limits = build("limits", "endpoint", Limits, found)
        self.limiter = Limiter(self.limits.share(PartialState().num_processes))
        self._first = next(iter(given.values()), Endpoint(model=""))

    def kwargs(self, settings: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Return arguments of an [`OpenAIBackend`], for a judge with its own settings over the target's."""
        own = {"max_retries": self._first.max_retries, "request_timeout": self._first.request_timeout, **settings}
        kwargs = {"max_retries": own["max_retries"], "timeout": own["request_timeout"], "limiter": self.limiter}
        kwargs["extra_body"] = own.get("extra_body")
        return kwargs if self.response_cache is None else {**kwargs, "response_cache": self.response_cache}

    def target(self, spec: Any) -> Backend:
        """Return the backend of a target behind an API, or of a function of the user's."""
        endpoint = endpoint_of(spec)
        if endpoint is None:
            return FunctionBackend(build_own("target", target_model(spec), {}))
        from astra_trl.backends.api.openai import OpenAIBackend

        talks = talking(self.args)
        return OpenAIBackend(
            endpoint.model,
            base_url=endpoint.base_url,
            chat=endpoint.api == "chat",
            sampling=talks["target_sampling"] or talks["sampling"],
            prompt_logprobs=endpoint.logprobs,
            **self.kwargs(vars(endpoint)),
        )


def _given_limits(endpoint: Endpoint) -> dict[str, Any]:
    default = Limits()
    return {name: getattr(endpoint, name) for name in LIMITS if getattr(endpoint, name) != getattr(default, name)}


def _scorers_and_goals(
    args: SystemArguments, world: World | None, calls: Calls
) -> tuple[dict[str, Scorer], list[Goal]]:
    goals = [Goal(text) for text in args.goal or ()]
    specs = scorer_specs(args, world)
    first = next(iter(specs.values()), {})
    judged = bool(goals) and world is None and first.get("type") == "judge" and not first.get("rubric")
    if judged:
        first["rubric"] = _rubric(goals[0])
    scorers: dict[str, Scorer] = {} if world is None else {"harm": KeywordScorer(world.rude_words)}
    for name, spec in specs.items():
        scorers[name] = build_scorer(spec, allow_pickle=args.allow_pickle, endpoint_kwargs=calls.kwargs)
    if not scorers:
        raise InputError("no scorer: give one with --scorer")
    try_out({name: scorers[name] for name, spec in specs.items() if is_dotted_path(spec["type"])})
    if judged:
        judge: Any = next(iter(scorers.values()))
        goals = [replace(goal, scorer=judge.with_rubric(_rubric(goal))) for goal in goals]
    return scorers, goals


def _rubric(goal: Goal) -> str:
    return f"Is this true of it: {goal.text.strip()}?"
