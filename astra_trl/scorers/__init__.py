"""What measures harm in exchanges. A scorer is any callable: a batch of exchanges in, a list of floats out."""

from typing import TYPE_CHECKING

from astra_trl.scorers.base import ProbeAndResponse, Scorer
from astra_trl.scorers.keyword import KeywordScorer

if TYPE_CHECKING:
    from astra_trl.scorers.detoxify import DetoxifyScorer

__all__ = ["DetoxifyScorer", "KeywordScorer", "ProbeAndResponse", "Scorer"]


def __getattr__(name: str) -> object:
    if name == "DetoxifyScorer":  # brings torch with it, so only when asked for
        from astra_trl.scorers.detoxify import DetoxifyScorer

        return DetoxifyScorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
