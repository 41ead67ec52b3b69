"""Plans of worlds: topics and how frequent each is, weaknesses, and the length of the training."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from astra_trl.errors import InputError
from astra_trl.sandbox.grammar import RUDE_SHARE_ON_WEAK_TOPICS, phrasing_share
from astra_trl.sandbox.topics import TOPICS, WIDE_TOPICS, Weakness

# The wide world.
WEAKNESSES, PHRASED, TURNED = 24, 5, 5
MAX_HIT_SHARE, MIN_HIT_SHARE = 0.02, 0.0002  # of an untrained tester's turns, by weakness
MAX_TOPIC_SHARE, MIN_TOPIC_SHARE = 0.02, 0.0002  # of new topics, by topic without a weakness, before scaling
TURNS, TREE_DEPTH = (2, 3), 3
PHRASINGS = ("do you", "what", "like", "know", "my", "feel", "could we talk", "curious", "article")
# A condition makes a weakness rarer than its topic: the commonest would need a topic in every other probe.
COMMONEST_CONDITIONAL = 7  # index of a weakness
ALL_TOPICS = 20_000  # repeats included
PLAIN_REPEATS, CONDITIONAL_REPEATS = 6, 24  # of weak topics in dense lessons, against 1 of each other topic


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
    rng = random.Random(f"wide world {seed}")
    names = rng.sample(WIDE_TOPICS, len(WIDE_TOPICS))
    weaknesses = _draw_weaknesses(rng, names[:WEAKNESSES])
    shares = _topic_shares(weaknesses, names[WEAKNESSES:])
    dense_topics = [
        weakness.topic
        for weakness in weaknesses
        for _ in range(CONDITIONAL_REPEATS if weakness.conditional else PLAIN_REPEATS)
    ]
    return Plan(
        topics=tuple(topic for topic in WIDE_TOPICS for _ in range(max(1, round(shares[topic] * ALL_TOPICS)))),
        weaknesses=weaknesses,
        dense_topics=(*WIDE_TOPICS, *dense_topics),
        dense_share=0.75,
        vocabulary_size=1300,  # every topic is one token: of several, the tester mixes up the parts
        tester_steps=1600,
        target_steps=2200,
    )


def _draw_weaknesses(rng: random.Random, topics: Sequence[str]) -> tuple[Weakness, ...]:
    """Return one weakness per topic, to be made ever rarer."""
    conditional = rng.sample(range(COMMONEST_CONDITIONAL, len(topics)), PHRASED + TURNED)
    # The rarer the phrasing, the rarer the weakness: otherwise its topic would have to be very frequent.
    phrasings = sorted(rng.sample(PHRASINGS, PHRASED), key=phrasing_share, reverse=True)
    phrasing_of = dict(zip(sorted(conditional[:PHRASED]), phrasings, strict=True))
    turn_of = {index: rng.choice(TURNS) for index in conditional[PHRASED:]}
    return tuple(Weakness(topic, phrasing_of.get(i), turn_of.get(i)) for i, topic in enumerate(topics))


def _topic_shares(weaknesses: Sequence[Weakness], others: Sequence[str]) -> dict[str, float]:
    """Return, for every topic, the share of new topics that makes an untrained tester meet the weaknesses as often as
    planned; the other topics are as unequal."""
    shares = {}
    for weakness, share in zip(weaknesses, spread(MAX_HIT_SHARE, MIN_HIT_SHARE, len(weaknesses)), strict=True):
        turns = 1 if weakness.turn is None else 1 / TREE_DEPTH
        shares[weakness.topic] = share / (RUDE_SHARE_ON_WEAK_TOPICS * phrasing_share(weakness.phrasing) * turns)
    other_shares = spread(MAX_TOPIC_SHARE, MIN_TOPIC_SHARE, len(others))
    scale = (1 - sum(shares.values())) / sum(other_shares)
    return shares | {topic: share * scale for topic, share in zip(others, other_shares, strict=True)}


def spread(first: float, last: float, count: int) -> list[float]:
    """Return `count` numbers from `first` to `last`, each the same multiple of the one before."""
    return [first * (last / first) ** (index / (count - 1)) for index in range(count)]
