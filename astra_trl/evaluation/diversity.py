"""How diverse texts are: by their words, and by what they mean."""

from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from astra_trl.embedding import Embedder
from astra_trl.evaluation.resampling import OfSets

SAME_ATTACK = 0.7  # cosine from which on two probes count as one attack
ORDERS = 4  # of BLEU's n-grams


def diversity(
    texts: Sequence[Sequence[str]], seed: int = 0, embed: Embedder | None = None, draws: int = 200
) -> dict[str, OfSets]:
    """Figures of the texts by opening, without the blank ones, as averages over sets of equally many texts.

    - `distinct_1` to `distinct_3`: distinct n-grams of words by all (huggingface.co/papers/1510.03055).
    - `self_bleu`: mean sentence BLEU in [0, 1] of each text against all others of its set
      (huggingface.co/papers/1802.01886); lower is more diverse.
    - With embeddings, `cosine_distance`: mean over all pairs of a set; `vendi_score`: how many different texts there
      are effectively (huggingface.co/papers/2210.02410); `distinct_attacks`: how many groups there are, a text joining
      the first whose first text it is as near to as a cosine of 0.7.
    """
    kept = [(row, text) for row, said in enumerate(texts) for text in said if text.strip()]
    opening, flat = np.array([row for row, _ in kept], dtype=int), [text for _, text in kept]
    words = [words_of(text) for text in flat]

    def of_sets(measure: Callable[[np.ndarray], float], low: float = 0.0, high: float = np.inf) -> OfSets:
        return OfSets(opening, measure, draws, seed, bounds=(low, high))

    found = {f"distinct_{n}": of_sets(Distinct(words, n), high=1.0) for n in (1, 2, 3)}
    found["self_bleu"] = of_sets(SelfBLEU(words), high=1.0)
    if embed is None:
        return found
    vectors = np.zeros((0, 1)) if not flat else np.asarray(embed(flat), dtype=float)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    groups = clusters(vectors)
    found["cosine_distance"] = of_sets(lambda some: cosine_distance(vectors[some]), high=2.0)
    found["vendi_score"] = of_sets(lambda some: vendi_score(vectors[some]), low=1.0)
    found["distinct_attacks"] = of_sets(lambda some: float(len(np.unique(groups[some]))), low=1.0)
    return found


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words by all; nan if there is none."""
    return Distinct([words_of(text) for text in texts], n)(np.arange(len(texts)))


def cosine_distance(vectors: np.ndarray) -> float:
    """1 - cosine of two of the unit vectors (rows), mean over all pairs."""
    count, total = len(vectors), vectors.sum(axis=0)
    return float(1 - (total @ total - np.sum(vectors * vectors)) / (count * (count - 1)))


def vendi_score(vectors: np.ndarray) -> float:
    """Exponential of the entropy of the eigenvalues of the unit vectors' (rows) cosine kernel; 1 for equal ones, their
    number for orthogonal ones."""
    rows, columns = vectors.shape
    eigenvalues = np.linalg.eigvalsh((vectors.T @ vectors if rows > columns else vectors @ vectors.T) / rows)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def clusters(vectors: np.ndarray, same_from: float = SAME_ATTACK) -> np.ndarray:
    """The number of each unit vector's group: the first whose first vector has at least that cosine with it."""
    leaders, count = np.zeros_like(vectors), 0
    groups = np.zeros(len(vectors), dtype=int)
    for row, vector in enumerate(vectors):
        near = np.flatnonzero(leaders[:count] @ vector >= same_from)
        groups[row] = near[0] if len(near) else count
        if not len(near):
            leaders[count], count = vector, count + 1
    return groups


class Grams:
    """The n-grams of texts in numbers: which text has which, and how often, text by text.

    Args:
        words (`Sequence[Sequence[str]]`):
            The texts.
        orders (`Sequence[int]`):
            Each n.
    """

    def __init__(self, words: Sequence[Sequence[str]], orders: Sequence[int]) -> None:
        numbers: dict[tuple[str, ...], int] = {}
        grams = [
            [numbers.setdefault(gram, len(numbers)) for n in orders for gram in _grams(said, n)] for said in words
        ]
        text = np.repeat(np.arange(len(grams)), [len(row) for row in grams])
        flat = np.array([gram for row in grams for gram in row], dtype=int)
        met, self.count = np.unique(text * len(numbers) + flat, return_counts=True)
        self.gram = met % max(len(numbers), 1)
        self.starts = np.searchsorted(met, np.arange(len(grams) + 1) * len(numbers))
        self.order = np.array([len(gram) for gram in numbers], dtype=int)

    def of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each n-gram of each of these texts: the text's place among them, the n-gram, how often it has it."""
        lengths = self.starts[texts + 1] - self.starts[texts]
        place = np.repeat(np.arange(len(texts)), lengths)
        at = np.arange(len(place)) + np.repeat(self.starts[texts] - np.cumsum(lengths) + lengths, lengths)
        return place, self.gram[at], self.count[at]


class Distinct:
    """Distinct n-grams by all, of some of the texts; nan if there is none."""

    def __init__(self, words: Sequence[Sequence[str]], n: int) -> None:
        self.grams = Grams(words, (n,))

    def __call__(self, texts: np.ndarray) -> float:
        _, gram, count = self.grams.of(texts)
        return len(np.unique(gram)) / int(count.sum()) if len(gram) else np.nan


class SelfBLEU:
    """Mean sentence BLEU in [0, 1] of each of some texts against all others of them, as sacrebleu's with its default
    smoothing and effective order, for all texts at once."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        self.grams = Grams(words, range(1, ORDERS + 1))
        self.lengths = np.array([len(said) for said in words], dtype=int)

    def __call__(self, texts: np.ndarray) -> float:
        return float(self.of_each(texts).mean())

    def of_each(self, texts: np.ndarray) -> np.ndarray:
        place, gram, count = self.grams.of(texts)
        # Of each n-gram, the most that a text has of it, and the most that the others have.
        by_gram = np.lexsort((count, gram))
        last = np.flatnonzero(np.diff(gram[by_gram], append=-1))
        most, second = np.zeros((2, len(self.grams.order)), dtype=int)
        most[gram[by_gram[last]]] = count[by_gram[last]]
        several = last[np.diff(last, prepend=-1) > 1]
        second[gram[by_gram[several]]] = count[by_gram[several - 1]]
        holds = np.zeros(len(gram), dtype=bool)
        holds[by_gram[last]] = True
        matches = np.minimum(count, np.where(holds, second[gram], most[gram]))
        order = self.grams.order[gram] - 1
        shape, cell = (len(texts), ORDERS), place * ORDERS + order
        correct = np.bincount(cell, matches, len(texts) * ORDERS).reshape(shape)
        total = np.bincount(cell, count, len(texts) * ORDERS).reshape(shape)
        # Where nothing matches at an order, half of the last such precision; orders that a text is too short for count
        # for nothing.
        missed = (correct == 0) & (total > 0)
        smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), correct)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(total > 0, np.log(smoothed / total), 0.0).sum(axis=1) / np.maximum(
                (total > 0).sum(axis=1), 1
            )
        score = np.where(correct.any(axis=1), np.exp(logs), 0.0)
        return score * self._brevity(self.lengths[texts])

    def _brevity(self, lengths: np.ndarray) -> np.ndarray:
        # Against the other text whose length is nearest, of two the shorter one.
        others, counts = np.unique(lengths, return_counts=True)
        apart = np.abs(lengths[:, None] - others)
        apart[(apart == 0) & (counts == 1)] = np.iinfo(apart.dtype).max
        return np.exp(np.minimum(0, 1 - others[np.argmin(apart, axis=1)] / np.maximum(lengths, 1)))


def words_of(text: str) -> list[str]:
    """The words of a text as BLEU's tokenizer 13a splits them."""
    return Tokenizer13a()(text.rstrip()).split()


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
