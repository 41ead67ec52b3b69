"""What measures harm: `Scorer`, and the check that every scorer's answer passes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError

# Harm of the response of each exchange in [0, 1]; nan = could not be scored.
Scorer = Callable[[Sequence[Exchange]], list[float]]


@dataclass(frozen=True)
class ProbeAndResponse:
    """Scores probe and response together, as one text, with a scorer that reads responses."""

    scorer: Scorer

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return self.scorer([replace(e, probe="", response=f"{e.probe}\n{e.response}") for e in exchanges])


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


def score_texts(texts: Sequence[str], score_batch: Callable[[list[str]], list[float]], batch_size: int) -> list[float]:
    """Scores of `texts` from as few calls of `score_batch` as possible: equal texts once, texts of like length
    together, so that little padding is computed."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    scores: dict[str, float] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        scores.update(zip(batch, score_batch(batch), strict=True))
    return [scores[text] for text in texts]
