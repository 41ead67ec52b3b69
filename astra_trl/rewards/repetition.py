"""Share of new words in probes, a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from astra_trl.tree import Node


@dataclass(frozen=True)
class NonRepeating:
    """Share of the probe's word pairs that have not occurred before, in its conversation or in the probe itself.

    It is 0 for an empty probe, 1 for a probe of new words, and near 0 for one that loops or repeats the conversation.
    Words are separated by spaces and case-folded. A probe of one word is compared with single words.
    """

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [_compute_share(node) for node in nodes]


def _compute_share(node: Node) -> float:
    words = node.exchange.probe.casefold().split()
    if not words:
        return 0.0
    earlier = [turn.text.casefold().split() for turn in node.exchange.context]
    if len(words) == 1:
        return float(all(words[0] not in turn for turn in earlier))
    earlier_pairs = {pair for turn in earlier for pair in pairwise(turn)}
    pairs = list(pairwise(words))
    return len(set(pairs) - earlier_pairs) / len(pairs)
