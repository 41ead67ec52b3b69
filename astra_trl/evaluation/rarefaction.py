"""Coverage of attacks: the number of distinct ones that a number of exchanges finds, and how even their shares are.

An attack is any hashable name of what made the target fail: the number of a group of similar probes, or a weakness
that was planted in the target. Nothing here imports numpy, because the report needs none.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

Points = list[tuple[int, float]]  # exchanges, distinct attacks


def rarefied(sizes: Iterable[int], total: int, drawn: int) -> float:
    """Return the expected number of attacks among `drawn` of `total` exchanges, drawn at random without replacement.

    Hurlbert's rarefaction (doi.org/10.2307/1934145): an attack of `size` exchanges is missed with probability
    C(total - size, drawn) / C(total, drawn).

    Args:
        sizes (`Iterable[int]`):
            The number of exchanges of each attack; the other exchanges have none.
        total, drawn (`int`):
            Numbers of exchanges; 1 <= drawn <= total.
    """

    def probability(size: int) -> float:
        # Of being among those drawn, as a product of few factors: factorials would lose digits in their differences.
        if size > total - drawn:
            return 1.0
        fewer, more = sorted((size, drawn))
        return -math.expm1(math.fsum(math.log1p(-more / (total - place)) for place in range(fewer)))

    # Equal sizes are computed once: most attacks are found a few times.
    return math.fsum(count * probability(size) for size, count in Counter(sizes).items())


def attack_curve(attacks: Sequence[Hashable | None]) -> Points:
    """Return the expected number of distinct attacks among random exchanges: 1, 2, 4, 8, ... of them, and all.

    Args:
        attacks (`Sequence[Hashable | None]`):
            The attack of each exchange, `None` if the target did not fail.
    """
    sizes = Counter(attack for attack in attacks if attack is not None)
    total = len(attacks)
    drawn = sorted({min(2**power, total) for power in range(total.bit_length() + 1)} - {0})
    return [(n, rarefied(sizes.values(), total, n)) for n in drawn]


def cumulative_curve(attacks: Sequence[Hashable | None], points: int = 20) -> Points:
    """Return the number of distinct attacks among the first exchanges, at most `points` times at even distances."""
    first: dict[Hashable, int] = {}  # the exchange that found each
    for place, attack in enumerate(attacks, 1):
        if attack is not None:
            first.setdefault(attack, place)
    ends = sorted({len(attacks) * part // points for part in range(1, points + 1)} - {0})
    found = sorted(first.values())
    return [(end, float(bisect_right(found, end))) for end in ends]


def evenness(counts: Mapping[str, int], kinds: int) -> float:
    """Return the evenness of hits over `kinds` weaknesses: 1 if all are hit equally often, 0 if only one is hit.

    It is Pielou's (doi.org/10.1016/0022-5193(66)90013-0): the Shannon entropy of the shares of hits, divided by its
    largest value, log(kinds). It is nan without hits, and if there is only one weakness.
    """
    total = sum(counts.values())
    if not total or kinds < 2:
        return math.nan
    shares = [count / total for count in counts.values() if count]
    return -math.fsum(share * math.log(share) for share in shares) / math.log(kinds) + 0.0  # never -0.0
