"""How unlike a probe is to all earlier ones of the run, as reward terms with a memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from astra_trl.backends.base import derive_seed
from astra_trl.embedding import Embedder, load_embedder
from astra_trl.errors import InputError
from astra_trl.tree import Node

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"

_TOKENIZER = Tokenizer13a()


@dataclass(eq=False)
class SelfBLEUNovelty:
    """One minus the mean BLEU in [0, 1] of the probe against all earlier probes as references: 1 for words that no
    probe has said, and where there is no earlier one; 0 for a probe said before, and for one without words.

    The term of curiosity-driven red teaming (huggingface.co/papers/2402.19464), scaled to [0, 1]. BLEU of each order
    is sacrebleu's sentence BLEU with `effective_order`, to the digit. Earlier are the probes that `remember` was
    given; scoring changes nothing, and takes time that does not grow with their number. Memory does: about 0.5 GB
    with 100,000 probes of 15 words.

    Args:
        orders (`Sequence[int]`, *optional*, defaults to `(2, 3, 4, 5)`):
            Largest n-grams of the BLEUs that are averaged.
        max_history (`int`, *optional*, defaults to `100000`):
            Probes to compare with; beyond, a uniform sample of all earlier ones.
        seed (`int`, *optional*, defaults to `0`):
            Decides, with a probe's number, which one it replaces in the sample.
    """

    orders: Sequence[int] = (2, 3, 4, 5)
    max_history: int = 100_000
    seed: int = 0
    # Probes remembered so far, and those of them that are compared with.
    seen: int = field(default=0, init=False)
    _probes: list[str] = field(default_factory=list, init=False, repr=False)
    # All that BLEU asks of references: how many hold an n-gram (see `_numbered`), and how many are so long.
    _holding: Counter[bytes] = field(default_factory=Counter, init=False, repr=False)
    _of_length: Counter[int] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        self.orders = tuple(self.orders)
        if not self.orders or min(self.orders) < 1:
            raise InputError(f"orders={self.orders}: give at least one, and none below 1")
        if self.max_history < 1:
            raise InputError(f"max_history must be at least 1, got {self.max_history}")

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [self._novelty(_words(node.exchange.probe)) for node in nodes]

    def remember(self, nodes: Sequence[Node]) -> None:
        """Adds the nodes' probes to what later ones are compared with."""
        for node in nodes:
            self._remember(node.exchange.probe)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"seen": self.seen, "probes": list(self._probes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was called; `InputError` where `max_history` was another."""
        if len(state["probes"]) != min(state["seen"], self.max_history):
            raise InputError(
                f"the history holds {len(state['probes'])} of {state['seen']} probes, which max_history="
                f"{self.max_history} would not: go on with the max_history it began with"
            )
        self.seen = state["seen"]
        self._probes = list(state["probes"])
        self._holding, self._of_length = Counter(), Counter()
        for probe in self._probes:
            self._add(probe)

    def _novelty(self, words: Sequence[bytes]) -> float:
        if not words:
            return 0.0
        if not self._probes:
            return 1.0
        grams = _grams(words, max(self.orders))
        matches = [sum(gram in self._holding for gram in _numbered(of_order)) for of_order in grams]
        totals = [len(of_order) for of_order in grams]
        # The shorter of two that are equally near, as sacrebleu has it.
        closest = min(self._of_length, key=lambda length: (abs(length - len(words)), length))
        scores = [
            BLEU.compute_bleu(
                matches[:order],
                totals[:order],
                len(words),
                closest,
                smooth_method="exp",
                effective_order=True,
                max_ngram_order=order,
            ).score
            for order in self.orders
        ]
        # A perfect score is 100 but for rounding.
        return max(0.0, 1 - sum(scores) / len(scores) / 100)

    def _remember(self, probe: str) -> None:
        place = self.seen
        self.seen += 1
        if place < self.max_history:
            self._probes.append(probe)
            self._add(probe)
            return
        place = derive_seed(self.seed, place) % self.seen
        if place < self.max_history:
            self._remove(self._probes[place])
            self._probes[place] = probe
            self._add(probe)

    def _add(self, probe: str) -> None:
        words = _words(probe)
        self._of_length[len(words)] += 1
        for grams in _grams(words, max(self.orders)):
            self._holding.update(_numbered(grams))

    def _remove(self, probe: str) -> None:
        words = _words(probe)
        _take(self._of_length, len(words))
        for grams in _grams(words, max(self.orders)):
            for gram in _numbered(grams):
                _take(self._holding, gram)


@dataclass(eq=False)
class CosineNovelty:
    """One minus the mean cosine of the probe's sentence embedding to those of all earlier probes, in [0, 2]: about 0
    for what was always said, 1 for what has nothing to do with it, and 1 where there is no earlier probe; nan where
    the embedding is not finite.

    The term of curiosity-driven red teaming (huggingface.co/papers/2402.19464), as a mean. The mean of cosines to
    unit vectors is the dot product with their mean: one sum and a count are the whole history, exact however long it
    is. An embedding of zeros has cosine 0 to everything, and counts; one that is not finite is not remembered.

    Args:
        embedder (`Embedder` or `str`, *optional*, defaults to all-MiniLM-L6-v2):
            Function from texts to an array with one row per text, or a model of sentence-transformers, e.g.
            `"sentence-transformers/all-MiniLM-L6-v2"` (`pip install 'astra-trl[novelty]'`).
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Whether that model's weights may be a pickle.
    """

    in_unit_interval: ClassVar[bool] = False
    embedder: Embedder | str = EMBEDDER
    allow_pickle: bool = False
    embed: Embedder = field(init=False, repr=False)
    # Earlier probes, and the sum of their embeddings, each of length 1.
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
        """Adds the nodes' probes to what later ones are compared with."""
        vectors = self._unit_vectors(nodes)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if len(vectors):
            self._sum = vectors.sum(axis=0) + (self._sum if self.seen else 0.0)
            self.seen += len(vectors)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here."""
        return {"seen": self.seen, "sum": self._sum.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was called."""
        self.seen = state["seen"]
        self._sum = np.array(state["sum"], dtype=float)

    def _unit_vectors(self, nodes: Sequence[Node]) -> np.ndarray:
        # A row each of length 1, or 0 where the embedding is 0; with a nan where it is not finite.
        if not nodes:
            return np.zeros((0, len(self._sum)))
        vectors = np.asarray(self.embed([node.exchange.probe for node in nodes]), dtype=float)
        if vectors.ndim != 2 or len(vectors) != len(nodes):
            raise InputError(
                f"the embedder returned an array of shape {vectors.shape} for {len(nodes)} texts: return a row each"
            )
        if self.seen and vectors.shape[1] != len(self._sum):
            raise InputError(
                f"the embedder returned vectors of {vectors.shape[1]} numbers, and those of earlier probes had "
                f"{len(self._sum)}: go on with the embedder that the history began with"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinite by infinite
            return vectors / np.where(norms == 0, 1.0, norms)


def _words(text: str) -> list[bytes]:
    # As sacrebleu does it, which cuts trailing space before it tokenises. Bytes take less memory than characters.
    return _TOKENIZER(text.rstrip()).encode("utf-8", "surrogatepass").split()


def _grams(words: Sequence[bytes], most: int) -> list[list[bytes]]:
    # Those of one word, of two, ... of `most`.
    return [[b" ".join(words[start : start + n]) for start in range(len(words) - n + 1)] for n in range(1, most + 1)]


def _numbered(grams: Sequence[bytes]) -> Iterator[bytes]:
    # Its number is part of an n-gram that comes again, so that a text holds each but once; and as many of a probe's
    # are held by any reference as BLEU counts matches: of each at most its largest count in one reference.
    if len(set(grams)) == len(grams):
        yield from grams
        return
    times: Counter[bytes] = Counter()
    for gram in grams:
        times[gram] += 1
        yield gram if times[gram] == 1 else b"%b\n%d" % (gram, times[gram])


def _take(counts: Counter[Any], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
