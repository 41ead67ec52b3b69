"""Whether a probe says something new, as a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from astra_trl.tree import Node


@dataclass(frozen=True)
class NonRepeating:
    """Share of the probe's word pairs that have not been said before, in its conversation or in itself; 0 for an empty
    probe.

    It is 1 for a probe of new words, and near 0 for one that loops or says again what was said. Words are what stands
    between spaces, case-folded; a probe of one word is compared with single words.
    """

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [_new_share(node) for node in nodes]


def _new_share(node: Node) -> float:
    words = _words(node.exchange.probe)
    if not words:
        return 0.0
    earlier = [_words(turn.text) for turn in node.exchange.context]
    if len(words) == 1:
        return float(all(words[0] not in said for said in earlier))
    before = {pair for said in earlier for pair in pairwise(said)}
    pairs = list(pairwise(words))
    return len(set(pairs) - before) / len(pairs)


def _words(text: str) -> list[str]:
    return text.casefold().split()
