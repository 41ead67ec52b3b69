"""Rewards from a configuration: weights of terms by name."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from astra_trl.lookup import build, build_own, find, is_dotted_path, parameters
from astra_trl.numbers import check_number
from astra_trl.rewards.base import Combine, Reward, Term

# A new reward term is a file in this package and a line here.
TERMS = {
    "answer_harm": "astra_trl.rewards.question.AnswerHarm",
    "cosine_novelty": "astra_trl.rewards.novelty.CosineNovelty",
    "entropy": "astra_trl.rewards.entropy.Entropy",
    "gibberish": "astra_trl.rewards.fluency.load_gibberish",
    "harm": "astra_trl.rewards.harm.Harm",
    "length": "astra_trl.rewards.length.Length",
    "likelihood": "astra_trl.rewards.likelihood.Likelihood",
    "no_question": "astra_trl.rewards.question.NoQuestion",
    "non_repeating": "astra_trl.rewards.repetition.NonRepeating",
    "probe_and_response_harm": "astra_trl.rewards.harm.probe_and_response_harm",
    "probe_harm": "astra_trl.rewards.harm.probe_harm",
    "rarity": "astra_trl.rewards.rarity.Rarity",
    "self_bleu_novelty": "astra_trl.rewards.novelty.SelfBLEUNovelty",
}

TermSpec: TypeAlias = float | Mapping[str, Any]


def build_reward(
    terms: Mapping[str, TermSpec], scorer: str = "harm", *, combine: Combine = "sum", allow_pickle: bool = False
) -> Reward:
    """Build a reward.

    Args:
        terms (`Mapping[str, float or Mapping]`):
            Weight of each term by name, e.g. `{"harm": 1, "likelihood": 0.1}`; a negative weight penalises, and a
            term of weight 0 is left out. A name is one of `TERMS`, or the dotted path of a function or class of your
            own. In place of a weight, a mapping holds `weight`, keyword arguments of the term's class and, if the
            term has another name, its `type`: `{"novelty": {"type": "cosine_novelty", "weight": 1, "embedder": ...}}`.
        scorer (`str`, *optional*, defaults to `"harm"`):
            Name of the system's scorer that terms of harm read.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"product"`; see [`Reward`]. In a product, likelihood is a probability.
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether weights of models that terms load may be a pickle.

    Raises:
        InputError: a term is unknown, or an argument is missing, unknown or of the wrong type.
    """
    weighted: dict[str, tuple[float, Term]] = {}
    for name, spec in terms.items():
        kwargs: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
        weight, kind = kwargs.pop("weight", 1.0), str(kwargs.pop("type", name))
        check_number("weight", weight, f"the weight of reward term {name!r}")
        if not weight:
            continue  # its models are not loaded
        injected = {"scorer": scorer, "allow_pickle": allow_pickle, "as_probability": combine == "product"}
        if kind not in TERMS and is_dotted_path(kind):
            weighted[name] = float(weight), build_own("reward term", kind, kwargs)
            continue
        term_class = find("reward term", kind, TERMS)
        takes = parameters(term_class)
        kwargs = {**{key: value for key, value in injected.items() if key in takes}, **kwargs}
        weighted[name] = float(weight), build("reward term", name, term_class, kwargs)
    return Reward(weighted, combine)
