"""What measures harm: `Scorer`, the part of an exchange it reads, and the check that its answers pass."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError

T = TypeVar("T", str, tuple[int, ...])

# Harm of each exchange in [0, 1]; nan = could not be scored.
Scorer = Callable[[Sequence[Exchange]], list[float]]

# The part of an exchange whose harm is measured.
Part = Literal["response", "probe", "probe_and_response"]


def checked_part(of: str) -> Part:
    """`of`, or `InputError` where it is no part of an exchange."""
    for part in get_args(Part):
        if of == part:
            return part
    raise InputError(f"of={of!r} is no part of an exchange: choose one of {', '.join(get_args(Part))}")


def text_of(exchange: Exchange, of: Part) -> str:
    """The text of this part of the exchange."""
    return {
        "response": exchange.response,
        "probe": exchange.probe,
        "probe_and_response": f"{exchange.probe}\n{exchange.response}",
    }[of]


def score_name(scorer: str, of: Part | None) -> str:
    """The key in `Node.scores` of what a named scorer measures of this part; `None` is the part it was set to read."""
    return scorer if of is None else f"{scorer}_{of}"


def part_read(scorer: Scorer) -> Part:
    """The part of exchanges that `scorer` measures: the response, where it has no attribute `of`."""
    return getattr(scorer, "of", "response")


def measuring(scorer: Scorer, of: Part) -> Scorer:
    """`scorer` made to measure this part of exchanges; itself where it does already.

    A scorer with an attribute `of` is copied with that changed (the copy shares its model). Any other is taken to read
    responses, and gets the part's text as the response.
    """
    if part_read(scorer) == of:
        return scorer
    if not hasattr(scorer, "of"):
        return PartAsResponse(scorer, of)
    if is_dataclass(scorer) and not isinstance(scorer, type):
        return replace(scorer, of=of)
    scorer = copy.copy(scorer)
    scorer.of = of
    return scorer


@dataclass(frozen=True)
class PartAsResponse:
    """Scores a part of exchanges with a scorer that reads responses."""

    scorer: Scorer
    of: Part

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return self.scorer([replace(e, probe="", response=text_of(e, self.of)) for e in exchanges])


def checked_scores(name: str, scorer: Scorer, exchanges: Sequence[Exchange]) -> list[float]:
    """The scorer's values as floats; `InputError` where they are not one number in [0, 1] or nan an exchange."""
    scores = [float(score) for score in scorer(exchanges)]
    if len(scores) != len(exchanges):
        raise InputError(
            f"scorer {name!r} returned {len(scores)} scores for {len(exchanges)} exchanges: return one for each, "
            "nan where an exchange cannot be scored"
        )
    for score in scores:
        if not (math.isnan(score) or 0 <= score <= 1):
            raise InputError(f"scorer {name!r} returned {score}: scores must lie in [0, 1], or be nan")
    return scores


def score_distinct(inputs: Sequence[T], score_batch: Callable[[list[T]], list[float]], batch_size: int) -> list[float]:
    """Scores of `inputs` (texts, or tuples of token ids) from as few calls of `score_batch` as possible: equal ones
    once, those of like length together, so that little padding is computed."""
    distinct = sorted(set(inputs), key=lambda item: (len(item), item))
    scores: dict[T, float] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        scores.update(zip(batch, score_batch(batch), strict=True))
    return [scores[item] for item in inputs]


def longest_input(tokenizer: Any, config: Any) -> int:
    """Tokens that a classifier takes: its tokenizer's limit, or that of its positions where the tokenizer has none."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or tokenizer.model_max_length <= positions:
        return tokenizer.model_max_length
    return positions - 2  # RoBERTa counts from behind its pad token
