"""Scorers: callables that measure harm, a batch of exchanges in, a list of floats out."""

from typing import TYPE_CHECKING

from astra_trl.lazy import lazy_imports
from astra_trl.scorers.base import Scorer, measuring
from astra_trl.scorers.keyword import KeywordScorer

if TYPE_CHECKING:
    from astra_trl.scorers.classifier import ClassifierScorer as ClassifierScorer
    from astra_trl.scorers.detoxify import DetoxifyScorer as DetoxifyScorer
    from astra_trl.scorers.judge import JudgeScorer as JudgeScorer
    from astra_trl.scorers.llama_guard import LlamaGuardScorer as LlamaGuardScorer
    from astra_trl.scorers.overlap import OverlapScorer as OverlapScorer

__getattr__, __all__ = lazy_imports(__name__)
__all__ += ["KeywordScorer", "Scorer", "measuring"]
