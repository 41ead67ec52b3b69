"""Gibberish in probes, a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass

from astra_trl.callables import check_callable
from astra_trl.errors import InputError
from astra_trl.scorers.base import Scorer, measuring, validate_scores
from astra_trl.tree import Node

GIBBERISH = "madhurjindal/autonlp-Gibberish-Detector-492513457"
GIBBERISH_LABELS = ("mild gibberish", "noise", "word salad")  # the fourth is "clean"


@dataclass(frozen=True)
class Gibberish:
    """Score in [0, 1] that a scorer of gibberish gives to the probe alone; nan if it cannot score the probe.

    With a negative weight it is the penalty of curiosity-driven red teaming (huggingface.co/papers/2402.19464). The
    scorer belongs to the term: an evaluation would report a scorer of the system as harm.

    Args:
        scorer (`Scorer`):
            The paper's, which [`load_gibberish`] loads, scores one minus the probability of clean text.
    """

    scorer: Scorer

    def __post_init__(self) -> None:
        check_callable("the scorer of gibberish", self.scorer, "exchanges")

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return validate_scores("gibberish", measuring(self.scorer, "probe"), [node.exchange for node in nodes])


def load_gibberish(
    model: str = GIBBERISH, labels: Sequence[str | int] = GIBBERISH_LABELS, allow_pickle: bool = False
) -> Gibberish:
    """Load the classifier of a [`Gibberish`] term: a Hub id or folder, and its labels that mean gibberish."""
    from astra_trl.scorers.classifier import ClassifierScorer

    try:
        return Gibberish(ClassifierScorer(model, labels, of="probe", model_init_kwargs={"allow_pickle": allow_pickle}))
    except InputError as error:
        raise InputError(f"{error}; a reward without the term 'gibberish' does not need it") from error
