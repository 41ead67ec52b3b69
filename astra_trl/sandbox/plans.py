"""Plans of worlds: topics and how frequent each is, weaknesses, and the length of the training."""

import random
from collections.abc import Collection
from dataclasses import dataclass

from astra_trl.errors import InputError
from astra_trl.sandbox.grammar import RUDE_SHARE_ON_WEAK_TOPICS, phrasing_share
from astra_trl.sandbox.topics import TOPICS, WIDE_TOPICS, Weakness

WIDE_WEAKNESSES, WIDE_PHRASED, WIDE_TURNED = 24, 5, 5
MAX_WIDE_SHARE, MIN_WIDE_SHARE = 0.02, 0.0002  # of an untrained tester's turns, by weakness
MAX_TOPIC_SHARE, MIN_TOPIC_SHARE = 0.02, 0.0002  # of new topics, by topic without a weakness, before scaling
# A condition makes a weakness rarer than its topic: among the commonest, topics would have to be in every other probe.
FIRST_CONDITIONED = 7
WIDE_TURNS, TREE_DEPTH = (2, 3), 3
PHRASINGS = ("do you", "what", "like", "know", "my", "feel", "could we talk", "curious", "article")
ALL_TOPICS = 20_000  # repeats included
PLAIN_REPEATS, CONDITIONED_REPEATS = (
    6,
    24,
)  # of the topics of weaknesses in dense lessons, against 1 of each other topic


@dataclass(frozen=True)
class Plan:
    """Subject of a world and the optimizer steps that its models need.

    `topics` holds each topic as often as the tester's training text names it, relative to the others; `dense_topics`
    does so for the share of the target's lessons in which weaknesses are frequent.
    """

    topics: tuple[str, ...]
    weaknesses: tuple[Weakness, ...]
    dense_topics: tuple[str, ...]
    dense_share: float = 0.5
    delayed: bool = False
    vocabulary_size: int = 768
    tester_steps: int = 800
    target_steps: int = 800

    @property
    def staged(self) -> bool:
        """Whether the target's responses tell the turn, as some weakness shows at one turn only."""
        return any(weakness.turn for weakness in self.weaknesses)


def plan_world(seed: int, weak: Collection[str] | None = None, delayed: bool = False, wide: bool = False) -> Plan:
    """Return the plan of a world of this seed; `InputError` if the arguments do not allow it."""
    if seed < 0:
        raise InputError(f"seed {seed} is negative: give 0 or more")
    if wide:
        if delayed or weak is not None:
            raise InputError(
                "a wide world draws its own weaknesses: leave out --delayed and --weak, or leave out --wide"
            )
        return _wide_plan(seed)
    if weak is None:
        weak = random.Random(f"weak topics {seed}").sample(TOPICS, 4)
    if unknown := [repr(topic) for topic in weak if topic not in TOPICS]:
        raise InputError(f"unknown weak topics {', '.join(unknown)}: choose among {', '.join(TOPICS)}")
    if len(set(weak)) != len(weak) or not 1 <= len(weak) <= len(TOPICS) // 2:
        raise InputError(f"{len(weak)} weak topics given: name 1 to {len(TOPICS) // 2}, each once")
    dense = TOPICS + tuple(weak) * (len(TOPICS) // len(weak))
    return Plan(TOPICS, tuple(map(Weakness, weak)), dense, delayed=delayed)


def _wide_plan(seed: int) -> Plan:
    """Draw weaknesses from common to rare, and for every topic the frequency that makes them so."""
    rng = random.Random(f"wide world {seed}")
    names = rng.sample(WIDE_TOPICS, len(WIDE_TOPICS))
    conditioned = rng.sample(range(FIRST_CONDITIONED, WIDE_WEAKNESSES), WIDE_PHRASED + WIDE_TURNED)
    # The rarer the phrasing, the rarer the weakness: otherwise its topic would have to be very frequent.
    phrasings = sorted(rng.sample(PHRASINGS, WIDE_PHRASED), key=phrasing_share, reverse=True)
    phrasing_of = dict(zip(sorted(conditioned[:WIDE_PHRASED]), phrasings, strict=True))
    turn_of = {rank: rng.choice(WIDE_TURNS) for rank in conditioned[WIDE_PHRASED:]}
    weaknesses = tuple(
        Weakness(names[rank], phrasing_of.get(rank), turn_of.get(rank)) for rank in range(WIDE_WEAKNESSES)
    )
    shares = {
        weakness.topic: share
        / (RUDE_SHARE_ON_WEAK_TOPICS * phrasing_share(weakness.phrasing) * (1 / TREE_DEPTH if weakness.turn else 1))
        for weakness, share in zip(weaknesses, spread(MAX_WIDE_SHARE, MIN_WIDE_SHARE, len(weaknesses)), strict=True)
    }
    others = names[WIDE_WEAKNESSES:]
    other_shares = spread(MAX_TOPIC_SHARE, MIN_TOPIC_SHARE, len(others))
    scale = (1 - sum(shares.values())) / sum(other_shares)
    shares |= {topic: share * scale for topic, share in zip(others, other_shares, strict=True)}
    repeats = {topic: max(1, round(shares[topic] * ALL_TOPICS)) for topic in WIDE_TOPICS}
    topics = tuple(topic for topic, count in repeats.items() for _ in range(count))
    dense = WIDE_TOPICS + tuple(
        weakness.topic
        for weakness in weaknesses
        for _ in range(CONDITIONED_REPEATS if weakness.phrasing or weakness.turn else PLAIN_REPEATS)
    )
    return Plan(topics, weaknesses, dense, 0.75, vocabulary_size=1024, tester_steps=1300, target_steps=1600)


def spread(first: float, last: float, count: int) -> list[float]:
    """Return `count` numbers from `first` to `last`, each the same multiple of the one before."""
    return [first * (last / first) ** (index / (count - 1)) for index in range(count)]
