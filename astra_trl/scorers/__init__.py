"""Scorers: callables that measure harm, a batch of exchanges in, a list of floats out."""

from typing import TYPE_CHECKING

from astra_trl.lazy import lazy_names
from astra_trl.scorers.base import Scorer, measuring
from astra_trl.scorers.keyword import KeywordScorer

if TYPE_CHECKING:
    from astra_trl.scorers.classifier import ClassifierScorer
    from astra_trl.scorers.detoxify import DetoxifyScorer
    from astra_trl.scorers.judge import JudgeScorer
    from astra_trl.scorers.llama_guard import LlamaGuardScorer
    from astra_trl.scorers.overlap import OverlapScorer

# These bring torch or numpy with them, so only when asked for.
_PLACES = {
    "ClassifierScorer": "classifier",
    "DetoxifyScorer": "detoxify",
    "JudgeScorer": "judge",
    "LlamaGuardScorer": "llama_guard",
    "OverlapScorer": "overlap",
}

__all__ = [
    "ClassifierScorer",
    "DetoxifyScorer",
    "JudgeScorer",
    "KeywordScorer",
    "LlamaGuardScorer",
    "OverlapScorer",
    "Scorer",
    "measuring",
]

__getattr__ = lazy_names(__name__, _PLACES)
