"""What measures harm in exchanges. A scorer is any callable: a batch of exchanges in, a list of floats out."""

import importlib
from typing import TYPE_CHECKING

from astra_trl.scorers.base import Scorer, measuring
from astra_trl.scorers.keyword import KeywordScorer

if TYPE_CHECKING:
    from astra_trl.scorers.classifier import ClassifierScorer
    from astra_trl.scorers.detoxify import DetoxifyScorer
    from astra_trl.scorers.judge import JudgeScorer
    from astra_trl.scorers.llama_guard import LlamaGuardScorer

# These bring torch with them, so only when asked for.
_PLACES = {
    "ClassifierScorer": "classifier",
    "DetoxifyScorer": "detoxify",
    "JudgeScorer": "judge",
    "LlamaGuardScorer": "llama_guard",
}

__all__ = [
    "ClassifierScorer",
    "DetoxifyScorer",
    "JudgeScorer",
    "KeywordScorer",
    "LlamaGuardScorer",
    "Scorer",
    "measuring",
]


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
