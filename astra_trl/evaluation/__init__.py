"""Evaluation: figures of a tester on held-out openings, beside those of an untrained one and of the openings alone."""

from typing import TYPE_CHECKING

from astra_trl.evaluation.results import Evaluation, Figure
from astra_trl.lazy import lazy_names

if TYPE_CHECKING:
    from astra_trl.evaluation.evaluator import ASTEvaluator

__all__ = ["ASTEvaluator", "Evaluation", "Figure"]

# It brings torch with it; who reads an evaluation needs none of that.
__getattr__ = lazy_names(__name__, {"ASTEvaluator": "evaluator"})
