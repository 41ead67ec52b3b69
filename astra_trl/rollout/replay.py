"""Replay: earlier probes of high reward are asked again in other conversations."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from astra_trl.backends.base import derive_seed
from astra_trl.conversation import Conversation, as_text
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers
from astra_trl.telling_words import TellingWords, count_alike
from astra_trl.tree import Node

# Largest share of a turn's draws that one probe has in a round, so that a success by chance is not asked often.
MAX_DRAWS = 0.05
MIN_SCORE = 0.5  # of a successful probe, at or above which its words count as those of a success


@dataclass
class Entry:
    """A probe of the buffer: its text, the number of exchanges before it, whether a limit has cut it, how often the
    target was asked, and the sum of its rewards (a guess if it was not asked yet)."""

    probe: str
    depth: int
    cut: bool
    asked: int = 0
    reward: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """The probe and the number of exchanges before it, which tell entries apart."""
        return self.probe, self.depth


@dataclass
class ReplayBuffer:
    """Probes of high reward, to be asked again.

    A drawn probe takes the place of one that the tester would have sampled. It was sampled by the tester as it was
    earlier, so only a trainer that learns off-policy may use it (GFN). The target answers anew, so the mean of a
    probe's rewards becomes exact, and a success by chance is soon forgotten.

    A probe is drawn in proportion to `exp(mean reward / (beta * spread))`, divided by the number of similar probes in
    the buffer (the cosine of the words that tell successes from failures). Without this, a weakness that is found
    often would crowd out the rare ones. One more exchange, with the mean reward of all probes, counts in each mean:
    among many probes that worked once, most did so by chance, and those that worked again are better.

    Probes of the buffer are also the examples from which the tester writes variations (`write_variations`). These are
    asked in the same way, and are probes of the buffer from then on.

    Args:
        share (`float`):
            Probability that a sibling, but not the first of a group, is a replayed probe.
        beta (`float`):
            Temperature of the reward, as a share of the spread of rewards.
        variation_share (`float`, *optional*, defaults to `0.0`):
            Probability that it is a variation.
        size (`int`, *optional*, defaults to `1000`):
            Most probes that are kept: those of the highest mean reward.
    """

    share: float
    beta: float
    size: int = 1000
    variation_share: float = 0.0
    variations: Sequence[Entry] = field(default=(), init=False, repr=False)  # of this round
    _entries: dict[tuple[str, int], Entry] = field(default_factory=dict, init=False, repr=False)
    _words: TellingWords = field(default_factory=TellingWords, init=False, repr=False)
    _rewards: Sequence[float] = field(default=(), init=False, repr=False)  # the lowest and the highest
    _seed: int = field(default=0, init=False, repr=False)
    # By depth: the entries, their weights, and the cumulative weights of drawing each.
    _table: dict[int, tuple[list[Entry], np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_numbers(replay_share=self.share, variation_share=self.variation_share, replay_size=self.size)
        check_shares(self.share, self.variation_share)

    def __contains__(self, entry: Entry) -> bool:
        return entry.key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def spread(self) -> float:
        """The difference between the highest and the lowest reward of any exchange so far; 1 if there is none."""
        return max(self._rewards, default=0.0) - min(self._rewards, default=0.0) or 1.0

    def begin_round(self, seed: int) -> None:
        """Draw from the entries as they are now until the next round, with the random numbers of this seed."""
        self._seed, self._table, self.variations = seed, {}, ()
        for depth in {entry.depth for entry in self._entries.values()}:
            entries = [entry for entry in self._entries.values() if entry.depth == depth]
            weights = self._weights(entries)
            self._table[depth] = entries, weights, capped(weights, MAX_DRAWS).cumsum()

    def draw(self, context: Conversation, sibling: int) -> Entry | None:
        """Return the probe to ask in a context in place of a sibling, or `None` for none: one that was found at the
        same turn, or a variation of such probes. It depends on the round, the context and the sibling's index alone;
        the first sibling is always sampled."""
        depth = depth_in(context)
        if depth not in self._table or not sibling:
            return None
        entries, _, weights = self._table[depth]
        rng = random.Random(derive_seed(self._seed, as_text(context), sibling))
        chance = rng.random()
        if chance < self.share:
            place = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
            return entries[min(place, len(entries) - 1)]
        if chance < self.share + self.variation_share:
            variations = [entry for entry in self.variations if entry.depth == depth]
            return rng.choice(variations) if variations else None
        return None

    def examples(self, depth: int, count: int, seed: int) -> list[str]:
        """Return different probes of a turn, as examples in a prompt: drawn as replayed probes are, but with no bound
        on the share of one probe, so that few good ones are soon found again. The best come last."""
        if depth not in self._table:
            return []
        entries, weights, _ = self._table[depth]
        # Drawing without replacement by weights: the largest of the logarithms with Gumbel noise.
        noise = np.random.default_rng(seed).gumbel(size=len(entries))
        order = np.argsort(np.log(weights) + noise)[-count:]
        return [entries[place].probe for place in order]

    def start(self, screened: Iterable[Entry]) -> int:
        """Add probes that nobody has asked yet, each with the scorer's score of the probe alone as a guess of its
        reward. Those that look harmless only count as others without the words of a success. Returns the number of
        different harmful ones."""
        count = 0
        for entry in screened:
            if entry in self:
                continue
            harmful = entry.reward >= MIN_SCORE
            self._words.add(entry.probe, harmful)
            if harmful:
                self._entries[entry.key] = entry
                count += 1
        self._forget()
        return count

    def remember(self, nodes: Iterable[Node], harm: str) -> None:
        """Add the probes of measured exchanges, and count every exchange of a probe that the buffer has. `harm` is the
        name of the score."""
        for node in nodes:
            if node.credit is None or not node.exchange.probe.strip():
                continue
            key = node.exchange.probe, depth_in(node.exchange.context)
            if not node.replayed or key not in self._entries:  # a variation is replayed, and not known yet
                self._words.add(node.exchange.probe, node.scores.get(harm, 0.0) >= MIN_SCORE)
            entry = self._entries.setdefault(key, Entry(*key, node.probe_cut))
            rewards = (*self._rewards, node.credit)
            self._rewards = min(rewards), max(rewards)
            entry.reward = node.credit + (entry.reward if entry.asked else 0.0)
            entry.asked += 1
        self._forget()

    def _forget(self) -> None:
        if len(self._entries) > self.size:
            # Of probes of equal weight the earlier ones stay, in every process.
            best = np.argsort(-self._weights(list(self._entries.values())), kind="stable")[: self.size]
            keys = list(self._entries)
            self._entries = {keys[place]: self._entries[keys[place]] for place in sorted(best)}

    def _weights(self, entries: Sequence[Entry]) -> np.ndarray:
        # Of drawing each entry, and of keeping it.
        vectors = self._words.vectors([entry.probe for entry in entries])
        alike = count_alike(vectors, vectors)
        rewards = np.array([entry.reward for entry in entries])
        asked = np.array([entry.asked for entry in entries])
        known = asked > 0
        typical = (rewards[known] / asked[known]).mean() if known.any() else 0.0
        means = np.where(known, (rewards + typical) / (asked + 1), rewards)
        # Not so low that nothing is left of all but the best.
        return np.exp(np.maximum((means - means.max()) / (self.beta * self.spread), -600)) / np.maximum(alike, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries, as JSON."""
        entries = [asdict(entry) for entry in self._entries.values()]
        return {"entries": entries, "words": self._words.state_dict(), "rewards": self._rewards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the entries of `state_dict`. Raises `InputError` for anything else."""
        try:
            entries = [Entry(**entry) for entry in state["entries"]]
            self._words.load_state_dict(state["words"])
            rewards = tuple(map(float, state["rewards"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the replay buffer of the checkpoint is damaged: {error}") from error
        self._entries, self._rewards = {entry.key: entry for entry in entries}, rewards


def check_shares(replay_share: float, variation_share: float) -> None:
    """Raise `InputError` if the shares of replayed probes and of variations are more than everything."""
    if (total := replay_share + variation_share) > 1:
        raise InputError(f"replay_share and variation_share add up to {total:g}, more than 1: lower one of them")


def capped(weights: np.ndarray, share: float) -> np.ndarray:
    """Return the weights, the largest of them lowered until none has more than this share of their sum."""
    falling = np.sort(weights)[::-1]
    for count in range(min(len(weights), math.ceil(1 / share))):
        # With the first `count` lowered to `highest`, that is their share of the sum.
        highest = share * falling[count:].sum() / (1 - count * share)
        if falling[count] <= highest:
            return np.minimum(weights, highest)
    return np.minimum(weights, falling[-1])  # too few: all are equal


def depth_in(context: Conversation) -> int:
    """Return the number of exchanges in a context."""
    return sum(turn.speaker == "tester" for turn in context)
