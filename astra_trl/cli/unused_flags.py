"""Settings that a user gives and that nothing would read, because of another setting: refused, and never ignored.

Fields of TRL's configs that nothing reads at all are refused by the configs themselves (`unread` in
`trainers/config.py`).
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from astra_trl.backends.api.endpoint import endpoint_of, is_behind_api, target_model
from astra_trl.errors import InputError
from astra_trl.lookup import is_dotted_path
from astra_trl.scorers.config import scorer_settings
from astra_trl.systems import system_class

OFF: tuple[Any, ...] = (None, False, 0, "", "none", [], {})  # values that ask for nothing
LORA = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save",
    "lora_task_type", "use_rslora", "use_dora",
)  # fmt: skip
FEW_SHOT = ("shots", "example_temperature", "example_format")
UNSENT = ("min_new_tokens", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class Rule:
    """Settings that have no effect if `applies` is true of all settings, `because` of another one that it names."""

    names: tuple[str, ...]
    applies: Callable[[Any], Any]
    because: str
    off: tuple[Any, ...] = OFF


def _targets(s: Any) -> list[Any]:
    return s.target if isinstance(s.target, list) else [s.target] if s.target else []


def _is_function(target: Any) -> bool:
    return is_dotted_path(target_model(target))


def _is_greedy(s: Any) -> bool:
    return (s.target_sampling or {}).get("temperature", s.temperature) == 0


def _scorers(s: Any) -> list[dict[str, Any]]:
    specs = (s.scorers or {}).values() or [*([s.scorer] if s.scorer else []), *(s.held_out_scorers or [])]
    return [scorer_settings(spec) for spec in specs if spec != "none"]


def _has_own_opening(s: Any) -> bool:
    return system_class(s.system).own_opening(s.system_kwargs or {}) is not None


def _judges_by_goal(s: Any) -> bool:
    first = next(iter(_scorers(s)), {})
    return not s.world and first.get("type") == "judge" and not first.get("rubric")


def _models_are_folders(s: Any) -> bool:
    named = [model for model in (s.tester, s.model_name_or_path, *_targets(s), s.baseline) if model not in OFF]
    return bool(named or s.world) and all(os.path.isdir(target_model(model)) for model in named)


def _any_api(s: Any) -> bool:
    return any(endpoint_of(target) for target in _targets(s)) or any(map(is_behind_api, _scorers(s)))


def _loads_with(key: str) -> Callable[[Any], bool]:
    return lambda s: key in (s.model_init_kwargs or {})


RULES = (
    # models
    Rule(("model_name_or_path",), lambda s: s.tester, "beside --tester: give one of them"),
    Rule(
        ("model_revision",), _models_are_folders, "on models that are folders: name them by their Hub ids", ("main",)
    ),
    Rule(("dtype",), _loads_with("dtype"), "beside dtype of --model_init_kwargs: give one of them"),
    Rule(
        ("attn_implementation",),
        _loads_with("attn_implementation"),
        "beside attn_implementation of --model_init_kwargs: give one of them",
    ),
    Rule(LORA, lambda s: not s.use_peft, "without --use_peft: give it too"),
    Rule(
        LORA,
        lambda s: os.path.isfile(os.path.join(s.tester or s.model_name_or_path or "", "adapter_config.json")),
        "on --tester, an adapter that is trained further with its own settings: leave it out",
    ),
    Rule(
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        lambda s: not s.load_in_4bit,
        "without --load_in_4bit: give it too",
    ),
    Rule(
        ("chat",),
        lambda s: s.chat == "target" and _targets(s) and all(endpoint_of(t) or _is_function(t) for t in _targets(s)),
        "on a --target behind an API (its api is chat or completions) or of your own: leave it out",
    ),
    Rule(
        ("target_sampling",),
        lambda s: _targets(s) and all(map(_is_function, _targets(s))),
        "on a --target that is a function: leave it out",
    ),
    Rule(
        ("target_sampling",),
        lambda s: _targets(s) and all(map(endpoint_of, _targets(s))) and set(UNSENT) & set(s.target_sampling or ()),
        f"on a --target behind an API by {', '.join(UNSENT)}, which endpoints do not have: leave these out",
    ),
    Rule(
        ("top_p",),
        lambda s: s.temperature == 0 and _is_greedy(s),
        "with --temperature 0, which is greedy: leave it out",
        (*OFF, 1),
    ),
    Rule(
        ("top_k",),
        lambda s: s.temperature == 0 and _is_greedy(s),
        "with --temperature 0, which is greedy: leave it out",
    ),
    Rule(
        ("target_sampling",),
        lambda s: _is_greedy(s) and {"top_p", "top_k"} & set(s.target_sampling or ()),
        "by its top_p or top_k with temperature 0, which is greedy: leave them out",
    ),
    Rule(
        ("max_completion_length", "response_length"),
        lambda s: (s.max_completion_length or s.response_length) not in (None, s.max_new_tokens),
        "beside --max_new_tokens, the longest probe: give that",
    ),
    # openings
    Rule(
        ("prompts", "prompts_column", "eval_prompts"),
        _has_own_opening,
        "with --system {s.system}, in which every conversation has the same opening: leave it out",
    ),
    Rule(("prompts_column", "eval_prompts"), lambda s: not s.prompts, "without --prompts: give them too"),
    Rule(
        ("teaching_pairs",),
        lambda s: s.teach_fraction is None,
        "with --algorithm {s.algorithm}, which learns from no given pairs: leave it out",
    ),
    Rule(("teaching_pairs",), lambda s: s.teach_fraction == 0, "without --teach_fraction above 0: give it too"),
    Rule(("teach_fraction",), lambda s: not s.teaching_pairs, "without --teaching_pairs: give them too"),
    # system, scorers, reward
    Rule(
        ("goal",),
        lambda s: _has_own_opening(s) and not _judges_by_goal(s),
        "with --system {s.system}, whose tester gets an instruction of its own: leave it out",
    ),
    Rule(
        ("scorer", "scorers"),
        lambda s: s.world,
        "with --world, whose own scorer is trained on: leave it out, or give --held_out_scorers",
    ),
    Rule(("scorer",), lambda s: s.scorers, "beside --scorers, the first of which is trained on: give one of them"),
    Rule(
        ("examples",),
        lambda s: (s.system_kwargs or {}).get("method") != "few_shot",
        'without few_shot: give --system perez --system_kwargs \'{{"method": "few_shot"}}\' too',
    ),
    Rule(
        ("system_kwargs",),
        lambda s: set(FEW_SHOT) & set(s.system_kwargs or ()) and s.system_kwargs.get("method") != "few_shot",
        f"by {', '.join(FEW_SHOT)} without method few_shot: give it too, to `astra-trl evaluate`",
    ),
    Rule(("response_cache",), lambda s: not _any_api(s), "without a --target or judge behind an API: leave it out"),
    # training
    Rule(
        ("num_generations",),
        lambda s: s.num_generations not in (None, s.tree_width),
        "beside --tree_width, the size of a group: give that",
    ),
    Rule(
        ("warmup_steps", "lr_scheduler_kwargs"),
        lambda s: s.lr_scheduler_type == "constant",
        "with --lr_scheduler_type constant: give constant_with_warmup, linear, ...",
    ),
    Rule(("logging_steps",), lambda s: s.logging_strategy != "steps", "without --logging_strategy steps: give it too"),
    Rule(("save_steps",), lambda s: s.save_strategy in ("no", "best"), "without --save_strategy steps: give it too"),
    Rule(("save_total_limit",), lambda s: s.save_strategy == "no", "with --save_strategy no: give steps or epoch"),
    Rule(("eval_steps",), lambda s: s.eval_strategy != "steps", "without --eval_strategy steps: give it too"),
    Rule(("eval_delay", "do_eval"), lambda s: s.eval_strategy == "no", "without --eval_strategy: give it too"),
    Rule(("liger_kernel_config",), lambda s: not s.use_liger_kernel, "without --use_liger_kernel: give it too"),
    Rule(("push_transcripts",), lambda s: not s.push_to_hub, "without --push_to_hub: give it too"),
)


class _Settings(SimpleNamespace):
    # Settings of a run or of an evaluation; `None` for those of the other.
    def __getattr__(self, name: str) -> None:
        return None


def refuse_unused(called: Mapping[str, str], *parts: Any) -> None:
    """Check that what a user gives has an effect, and that the system takes its `system_kwargs`.

    Args:
        called (`Mapping[str, str]`):
            The settings that are given, each with its name for messages: `--scorer`, or a file and a key.
        parts (`Any`):
            Dataclasses of all settings, with defaults, the first of which holds if two have a field of the same name.

    Raises:
        InputError: a setting has no effect, or the system does not take an argument.
    """
    settings = _Settings(**{key: value for part in reversed(parts) for key, value in vars(part).items()})
    for rule in RULES:
        for name in rule.names:
            if name in called and getattr(settings, name) not in rule.off and rule.applies(settings):
                raise InputError(f"{called[name]} has no effect {rule.because.format(s=settings)}")
    arguments = ["reward", "goals", *(settings.system_kwargs or {})]  # that `build_system` passes
    _check_arguments(system_class(settings.system), settings.system, arguments)


def _check_arguments(cls: type, name: str, arguments: Sequence[str]) -> None:
    # A class passes on what its base classes take.
    taken = {
        key
        for base in cls.__mro__
        if "__init__" in vars(base)
        for key, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if unknown := [key for key in arguments if key not in taken]:
        known = ", ".join(
            sorted(taken - {"reward", "goals", "sampling", "target_sampling", "tree_width", "tree_depth"})
        )
        raise InputError(f"system {name!r} takes no argument {unknown[0]!r}: its system_kwargs are {known}")
