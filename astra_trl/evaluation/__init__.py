"""Evaluation of a tester on held-out openings, beside an untrained tester and the openings alone."""

from astra_trl.evaluation.evaluator import ASTEvaluator
from astra_trl.evaluation.figures import figures
from astra_trl.evaluation.results import Evaluation, Figure

__all__ = ["ASTEvaluator", "Evaluation", "Figure", "figures"]
