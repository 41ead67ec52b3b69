"""Harm as a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass

from astra_trl.tree import Node


@dataclass(frozen=True)
class Harm:
    """The score that the system's scorer of this name gave."""

    scorer: str = "harm"

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [node.scores[self.scorer] for node in nodes]
