"""Evaluation: figures of a tester on held-out openings, beside those of an untrained one and of the openings alone."""

from typing import TYPE_CHECKING

from astra_trl.evaluation.results import Evaluation, Figure
from astra_trl.lazy import lazy_imports

if TYPE_CHECKING:
    from astra_trl.evaluation.evaluator import ASTEvaluator as ASTEvaluator

# It brings torch with it; who reads an evaluation needs none of that.
__getattr__, __all__ = lazy_imports(__name__)
__all__ += ["Evaluation", "Figure"]
