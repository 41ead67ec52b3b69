"""Held-out figures: what a tester finds, beside what an untrained one and the openings alone do."""

from astra_trl.evaluation.evaluator import ASTEvaluator
from astra_trl.evaluation.figures import figures
from astra_trl.evaluation.results import Evaluation, Figure

__all__ = ["ASTEvaluator", "Evaluation", "Figure", "figures"]
