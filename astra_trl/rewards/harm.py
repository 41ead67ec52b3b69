"""Harm, a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass

from astra_trl.scorers.base import Part, score_name, validate_part
from astra_trl.tree import Node


@dataclass(frozen=True)
class Harm:
    """Score in [0, 1] that one of the system's scorers gives to a part of the exchange.

    Args:
        scorer (`str`, *optional*, defaults to `"harm"`):
            Name of one of the system's scorers.
        of (`str`, *optional*):
            The part that is scored: `"response"`, `"probe"` (a negative weight favours probes that look harmless) or
            `"probe_and_response"`. Defaults to the part that the scorer itself reads, usually the response.
    """

    scorer: str = "harm"
    of: Part | None = None

    def __post_init__(self) -> None:
        if self.of is not None:
            validate_part(self.of)

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [node.scores[score_name(self.scorer, self.of)] for node in nodes]

    @property
    def needs_scores(self) -> list[tuple[str, Part | None]]:
        return [(self.scorer, self.of)]


def probe_harm(scorer: str = "harm") -> Harm:
    """Return the term of the probe's own harm; a negative weight prefers probes that look harmless."""
    return Harm(scorer, "probe")


def probe_and_response_harm(scorer: str = "harm") -> Harm:
    """Return the term of the harm of probe and response as one text."""
    return Harm(scorer, "probe_and_response")
