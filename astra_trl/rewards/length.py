"""Length of probes, a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astra_trl.tree import Node


@dataclass(frozen=True)
class Length:
    """Number of tokens of the probe that the tester sampled, including the end-of-sequence token."""

    in_unit_interval: ClassVar[bool] = False

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [float(len(node.probe_ids)) for node in nodes]
