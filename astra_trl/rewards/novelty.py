"""Novelty of probes among all earlier ones of the run: reward terms with a memory."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from astra_trl.backends.base import derive_seed
from astra_trl.embedding import Embedder, load_embedder
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers
from astra_trl.tree import Node

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"

_TOKENIZER = Tokenizer13a()


@dataclass(eq=False)
class SelfBLEUNovelty:
    """One minus the mean BLEU in [0, 1] of the probe, with all earlier probes as references.

    It is 1 for a probe of new words and for the first probe, and 0 for a probe that was sampled before and for one
    without words.

    The term of curiosity-driven red teaming (huggingface.co/papers/2402.19464), scaled to [0, 1]. BLEU of each order
    equals sacrebleu's sentence BLEU with `effective_order`. Earlier probes are those passed to `remember`; scoring
    does not add to them. The time of scoring does not grow with their number, but memory does: about 0.5 GB with
    100,000 probes of 15 words.

    Args:
        orders (`Sequence[int]`, *optional*, defaults to `(2, 3, 4, 5)`):
            Largest n-grams of the BLEUs that are averaged.
        max_history (`int`, *optional*, defaults to `100000`):
            Probes to compare with: a uniform sample of all earlier ones, if there are more.
        seed (`int`, *optional*, defaults to `0`):
            Seed of that sample.
    """

    orders: Sequence[int] = (2, 3, 4, 5)
    max_history: int = 100_000
    seed: int = 0
    # Number of probes remembered so far, and the sample of them.
    seen: int = field(default=0, init=False)
    _probes: list[str] = field(default_factory=list, init=False, repr=False)
    # All that BLEU needs of references: the number of them with each n-gram (see `_ngrams`), and with each length.
    _gram_counts: Counter[bytes] = field(default_factory=Counter, init=False, repr=False)
    _length_counts: Counter[int] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        self.orders = tuple(self.orders)
        if not self.orders or min(self.orders) < 1:
            raise InputError(f"orders={self.orders}: give at least one, and none below 1")
        require_numbers(max_history=self.max_history)

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [self._compute_novelty(_tokenize(node.exchange.probe)) for node in nodes]

    def remember(self, nodes: Sequence[Node]) -> None:
        """Add the nodes' probes to those that later ones are compared with."""
        for node in nodes:
            place = self.seen
            self.seen += 1
            if place >= self.max_history:
                place = derive_seed(self.seed, place) % self.seen
                if place >= self.max_history:
                    continue
                self._remove(self._probes[place])
            self._probes[place : place + 1] = [node.exchange.probe]  # appended if the place is the next
            self._add(node.exchange.probe)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores."""
        return {"seen": self.seen, "probes": list(self._probes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; raise `InputError` if it is of a different `max_history`."""
        if len(state["probes"]) != min(state["seen"], self.max_history):
            raise InputError(
                f"the history has {len(state['probes'])} of {state['seen']} probes, which does not fit max_history="
                f"{self.max_history}: resume with the max_history that the run was started with"
            )
        self.seen = state["seen"]
        self._probes = list(state["probes"])
        self._gram_counts, self._length_counts = Counter(), Counter()
        for probe in self._probes:
            self._add(probe)

    def _compute_novelty(self, words: Sequence[bytes]) -> float:
        if not words:
            return 0.0
        if not self._probes:
            return 1.0
        grams = _ngrams(words, max(self.orders))
        matches = [sum(gram in self._gram_counts for gram in of_order) for of_order in grams]
        totals = [len(of_order) for of_order in grams]
        # The shorter of two that are equally near, as in sacrebleu.
        closest = min(self._length_counts, key=lambda length: (abs(length - len(words)), length))
        scores = [
            BLEU.compute_bleu(
                matches[:n], totals[:n], len(words), closest, "exp", effective_order=True, max_ngram_order=n
            ).score
            for n in self.orders
        ]
        # A perfect score can exceed 100 by rounding.
        return max(0.0, 1 - sum(scores) / len(scores) / 100)

    def _add(self, probe: str) -> None:
        words = _tokenize(probe)
        self._length_counts[len(words)] += 1
        self._gram_counts.update(chain.from_iterable(_ngrams(words, max(self.orders))))

    def _remove(self, probe: str) -> None:
        words = _tokenize(probe)
        _decrement(self._length_counts, [len(words)])
        _decrement(self._gram_counts, chain.from_iterable(_ngrams(words, max(self.orders))))


@dataclass(eq=False)
class CosineNovelty:
    """One minus the mean cosine of the probe's sentence embedding to those of all earlier probes, in [0, 2].

    It is about 0 if all earlier probes mean the same, 1 if they are unrelated, and 1 for the first probe; nan if the
    embedding is not finite.

    The term of curiosity-driven red teaming (huggingface.co/papers/2402.19464), as a mean. The mean of cosines to
    unit vectors is the dot product with their mean, so a sum and a count are the exact history at any length. An
    embedding of zeros has cosine 0 to everything and is counted; one that is not finite is not remembered.

    Args:
        embedder (`Embedder` or `str`, *optional*, defaults to all-MiniLM-L6-v2):
            Function from texts to an array with one row per text, or a model of sentence-transformers, e.g.
            `"sentence-transformers/all-MiniLM-L6-v2"` (`pip install 'astra-trl[novelty]'`).
        allow_pickle (`bool`, *optional*, defaults to `False`):
            `True` if that model's weights may be a pickle.
    """

    in_unit_interval: ClassVar[bool] = False
    embedder: Embedder | str = EMBEDDER
    allow_pickle: bool = False
    embed: Embedder = field(init=False, repr=False)
    # Number of earlier probes, and the sum of their embeddings, each scaled to length 1.
    seen: int = field(default=0, init=False)
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def __post_init__(self) -> None:
        self.embed = (
            load_embedder(self.embedder, allow_pickle=self.allow_pickle)
            if isinstance(self.embedder, str)
            else self.embedder
        )

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        vectors = self._unit_vectors(nodes)
        mean = self._sum / self.seen if self.seen else np.zeros(vectors.shape[1])
        return (1 - vectors @ mean).tolist()

    def remember(self, nodes: Sequence[Node]) -> None:
        """Add the nodes' probes to those that later ones are compared with."""
        vectors = self._unit_vectors(nodes)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if len(vectors):
            self._sum = vectors.sum(axis=0) + (self._sum if self.seen else 0.0)
            self.seen += len(vectors)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores."""
        return {"seen": self.seen, "sum": self._sum.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.seen = state["seen"]
        self._sum = np.array(state["sum"], dtype=float)

    def _unit_vectors(self, nodes: Sequence[Node]) -> np.ndarray:
        # One row per node, of length 1, or 0 if the embedding is 0; with a nan if it is not finite.
        if not nodes:
            return np.zeros((0, len(self._sum)))
        vectors = np.asarray(self.embed([node.exchange.probe for node in nodes]), dtype=float)
        if vectors.ndim != 2 or len(vectors) != len(nodes):
            raise InputError(
                f"the embedder returned an array of shape {vectors.shape} for {len(nodes)} texts: return one row per "
                "text"
            )
        if self.seen and vectors.shape[1] != len(self._sum):
            raise InputError(
                f"the embedder returned vectors of {vectors.shape[1]} numbers, and those of earlier probes have "
                f"{len(self._sum)}: resume with the embedder that the run was started with"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinity divided by infinity
            return vectors / np.where(norms == 0, 1.0, norms)


def _tokenize(text: str) -> list[bytes]:
    # Like sacrebleu, which strips trailing space first. Bytes take less memory than characters.
    return _TOKENIZER(text.rstrip()).encode("utf-8", "surrogatepass").split()


def _ngrams(words: Sequence[bytes], max_n: int) -> list[list[bytes]]:
    # The n-grams of one word, of two, ... A repetition has its number appended, so that a text has each only once. The
    # n-grams of a probe that any reference has are then BLEU's matches: of each at most its count in one reference.
    by_order: list[list[bytes]] = []
    for n in range(1, max_n + 1):
        counts: Counter[bytes] = Counter()
        by_order.append([])
        for start in range(len(words) - n + 1):
            gram = b" ".join(words[start : start + n])
            counts[gram] += 1
            by_order[-1].append(gram if counts[gram] == 1 else b"%b\n%d" % (gram, counts[gram]))
    return by_order


def _decrement(counts: Counter[Any], keys: Iterable[Any]) -> None:
    for key in keys:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]
