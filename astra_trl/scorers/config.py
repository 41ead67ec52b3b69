"""Scorers from a configuration: a name, `"NAME:WHAT"`, a dotted path or a mapping with a type."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from astra_trl.backends.api.endpoint import is_behind_api, split_calling
from astra_trl.errors import InputError
from astra_trl.lookup import build, build_own, find, is_dotted_path, parameters
from astra_trl.scorers.base import Scorer

# A new scorer is a file in this package and a line here.
SCORERS = {
    "classifier": "astra_trl.scorers.classifier.ClassifierScorer",
    "detoxify": "astra_trl.scorers.detoxify.DetoxifyScorer",
    "judge": "astra_trl.scorers.judge.JudgeScorer",
    "keyword": "astra_trl.scorers.keyword.KeywordScorer",
    "llama_guard": "astra_trl.scorers.llama_guard.LlamaGuardScorer",
    "overlap": "astra_trl.scorers.overlap.OverlapScorer",
}

ScorerSpec: TypeAlias = str | Mapping[str, Any]


def scorer_settings(spec: ScorerSpec) -> dict[str, Any]:
    """Return a scorer's settings as a mapping with its `type`.

    What follows the colon of `"NAME:WHAT"` is the argument that the class names in `argument_of_name`, or else its
    first one: the model of a judge, the variant of Detoxify, the file of a word list.
    """
    if isinstance(spec, Mapping):
        if not isinstance(spec.get("type"), str):
            raise InputError(f"scorer {dict(spec)!r:.80} has no type: give one of {', '.join(SCORERS)}")
        return dict(spec)
    kind, colon, what = spec.partition(":")
    if is_dotted_path(spec) or not colon:
        return {"type": kind}
    scorer_class = find("scorer", kind if kind in SCORERS else spec, SCORERS)
    argument = getattr(scorer_class, "argument_of_name", None) or parameters(scorer_class)[0]
    return {"type": kind, argument: what}


def scorers_by_name(specs: Iterable[ScorerSpec], taken: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the settings of scorers by name: their type, or what was given if there are two of a type."""
    named: dict[str, dict[str, Any]] = {}
    for spec in specs:
        settings = scorer_settings(spec)
        name = settings["type"]
        if name in named or name in taken:
            name = spec if isinstance(spec, str) else f"{name}:{settings.get('model', len(named))}"
        if name in named or name in taken:
            raise InputError(f"scorer {name!r} is given twice: name each once")
        named[name] = settings
    return named


def build_scorer(
    spec: ScorerSpec,
    *,
    allow_pickle: bool = False,
    endpoint_kwargs: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> Scorer:
    """Build a scorer.

    Args:
        spec (`str` or `Mapping`):
            Name, `"NAME:WHAT"`, dotted path, or a mapping with `type` and the keyword arguments of its class. If the
            class loads a model, `dtype` is for that.
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether the weights of its model may be a pickle.
        endpoint_kwargs (`Callable`, *optional*):
            Returns the arguments of the [`OpenAIBackend`] of a judge behind an API from the judge's own settings for
            its calls, e.g. `max_retries`.

    Raises:
        InputError: the type is unknown, or an argument is missing, unknown or of the wrong type.
    """
    kwargs = scorer_settings(spec)
    kind = kwargs.pop("type")
    if kind not in SCORERS and is_dotted_path(kind):
        return build_own("scorer", kind, kwargs)
    scorer_class = find("scorer", kind, SCORERS)
    takes = parameters(scorer_class)
    if "model_init_kwargs" in takes:
        loading = {"dtype": kwargs.pop("dtype", "auto"), "allow_pickle": allow_pickle}
        kwargs["model_init_kwargs"] = {**loading, **(kwargs.get("model_init_kwargs") or {})}
    if "endpoint_kwargs" in takes and endpoint_kwargs is not None and is_behind_api(kwargs):
        kwargs, calling = split_calling(kwargs)
        kwargs["endpoint_kwargs"] = {**endpoint_kwargs(calling), **(kwargs.get("endpoint_kwargs") or {})}
    return build("scorer", kind, scorer_class, kwargs)
