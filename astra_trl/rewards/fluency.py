"""Whether the probe is gibberish, as a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass

from astra_trl.scorers.base import Scorer, checked_scores, measuring
from astra_trl.tree import Node


@dataclass(frozen=True)
class Gibberish:
    """The score in [0, 1] that a scorer of gibberish gives to the probe alone; nan where it cannot tell.

    With a negative weight it is the penalty of curiosity-driven red teaming (huggingface.co/papers/2402.19464). The
    scorer is the term's own and not one of the system's, which an evaluation would report as harm.

    Args:
        scorer (`Scorer`):
            The paper's, whose score is one minus the probability of clean text, is
            `ClassifierScorer("madhurjindal/autonlp-Gibberish-Detector-492513457", ["mild gibberish", "noise", "word
            salad"])`.
    """

    scorer: Scorer

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return checked_scores("gibberish", measuring(self.scorer, "probe"), [node.exchange for node in nodes])
