"""Diversity of texts, in their words and in the meaning of their sentence embeddings."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy.sparse import coo_array
from scipy.stats import entropy

from astra_trl.embedding import Embedder
from astra_trl.evaluation.subsampling import SubsampleMean

MIN_SAME_ATTACK = 0.7  # cosine at or above which two probes count as one attack
BLEU_ORDERS = 4


def diversity(
    texts: Sequence[Sequence[str]], seed: int = 0, embed: Embedder | None = None, draws: int = 200
) -> dict[str, SubsampleMean]:
    """Return figures of the texts of each opening, without blank ones, as averages over subsamples of one size.

    - `distinct_1` to `distinct_3`: distinct n-grams of words divided by all (huggingface.co/papers/1510.03055).
    - `self_bleu`: mean sentence BLEU in [0, 1] of each text against all other texts of its subsample
      (huggingface.co/papers/1802.01886); lower is more diverse.
    - With embeddings, `cosine_distance`: mean over all pairs of a subsample; `vendi_score`: the effective number of
      different texts (huggingface.co/papers/2210.02410); `distinct_attacks`: the number of groups, a text joining the
      first group whose first text is at a cosine of at least 0.7 from it.
    """
    kept = [(row, text) for row, group in enumerate(texts) for text in group if text.strip()]
    opening, flat = np.array([row for row, _ in kept], dtype=int), [text for _, text in kept]
    words = [words_of(text) for text in flat]

    def average(measure: Callable[[np.ndarray], float], low: float = 0.0, high: float = np.inf) -> SubsampleMean:
        return SubsampleMean(opening, measure, draws, seed, bounds=(low, high))

    figures = {f"distinct_{n}": average(Distinct(words, n), high=1.0) for n in (1, 2, 3)}
    figures["self_bleu"] = average(SelfBLEU(words), high=1.0)
    if embed is None:
        return figures
    vectors = unit_vectors(embed, flat)
    groups = clusters(vectors)
    figures["cosine_distance"] = average(lambda some: cosine_distance(vectors[some]), high=2.0)
    figures["vendi_score"] = average(lambda some: vendi_score(vectors[some]), low=1.0)
    figures["distinct_attacks"] = average(lambda some: float(len(np.unique(groups[some]))), low=1.0)
    return figures


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Return the distinct n-grams of words divided by all n-grams; nan without any n-gram."""
    return Distinct([words_of(text) for text in texts], n)(np.arange(len(texts)))


def unit_vectors(embed: Embedder, texts: Sequence[str]) -> np.ndarray:
    """Return the texts' embeddings in rows, each scaled to length 1."""
    vectors = np.asarray(embed(texts), dtype=float) if texts else np.zeros((0, 1))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cosine_distance(vectors: np.ndarray) -> float:
    """Return the mean of 1 - cosine over all pairs of the unit vectors (rows)."""
    count, total = len(vectors), vectors.sum(axis=0)
    return float(1 - (total @ total - np.sum(vectors * vectors)) / (count * (count - 1)))


def vendi_score(vectors: np.ndarray) -> float:
    """Return the exponential of the entropy of the eigenvalues of the unit vectors' (rows) cosine kernel: 1 for equal
    vectors, their number for orthogonal ones."""
    rows, columns = vectors.shape
    eigenvalues = np.linalg.eigvalsh((vectors.T @ vectors if rows > columns else vectors @ vectors.T) / rows)
    return float(np.exp(entropy(eigenvalues[eigenvalues > 1e-12])))


def clusters(vectors: np.ndarray, min_cosine: float = MIN_SAME_ATTACK) -> np.ndarray:
    """Return the number of each unit vector's group: the first group whose first vector has at least that cosine."""
    leaders, count = np.zeros_like(vectors), 0
    groups = np.zeros(len(vectors), dtype=int)
    for row, vector in enumerate(vectors):
        near = np.flatnonzero(leaders[:count] @ vector >= min_cosine)
        groups[row] = near[0] if len(near) else count
        if not len(near):
            leaders[count], count = vector, count + 1
    return groups


class Distinct:
    """Distinct n-grams divided by all n-grams of the texts with given indices; nan without any n-gram."""

    def __init__(self, words: Sequence[Sequence[str]], n: int) -> None:
        self.counts, _ = _count_grams(words, (n,))

    def __call__(self, texts: np.ndarray) -> float:
        counts = self.counts[texts]
        return len(np.unique(counts.indices)) / int(counts.sum()) if counts.nnz else np.nan


class SelfBLEU:
    """Mean sentence BLEU in [0, 1] of each of the texts with given indices against all others, equal to sacrebleu's
    with its default smoothing and effective order, for all texts at once."""

    def __init__(self, words: Sequence[Sequence[str]]) -> None:
        self.counts, self.order = _count_grams(words, range(1, BLEU_ORDERS + 1))
        self.lengths = np.array([len(text) for text in words], dtype=int)

    def __call__(self, texts: np.ndarray) -> float:
        return float(self.of_each(texts).mean())

    def of_each(self, texts: np.ndarray) -> np.ndarray:
        """Return the sentence BLEU of each text against all others."""
        counts = self.counts[texts].tocoo()
        place, gram, count = counts.row, counts.col, counts.data
        # For each n-gram the highest count in a text, and the highest in the other texts.
        by_gram = np.lexsort((count, gram))
        last = np.flatnonzero(np.diff(gram[by_gram], append=-1))
        highest, second = np.zeros((2, len(self.order)), dtype=int)
        highest[gram[by_gram[last]]] = count[by_gram[last]]
        several = last[np.diff(last, prepend=-1) > 1]
        second[gram[by_gram[several]]] = count[by_gram[several - 1]]
        is_highest = np.zeros(len(gram), dtype=bool)
        is_highest[by_gram[last]] = True
        matches = np.minimum(count, np.where(is_highest, second[gram], highest[gram]))
        shape, cell = (len(texts), BLEU_ORDERS), place * BLEU_ORDERS + self.order[gram] - 1
        correct = np.bincount(cell, matches, len(texts) * BLEU_ORDERS).reshape(shape)
        total = np.bincount(cell, count, len(texts) * BLEU_ORDERS).reshape(shape)
        # An order without a match has half of the last such precision; orders that a text is too short for are left
        # out.
        has_order, missed = total > 0, (correct == 0) & (total > 0)
        smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), correct)
        logs = np.log(np.where(has_order, smoothed, 1.0) / np.maximum(total, 1)).sum(axis=1)
        logs /= np.maximum(has_order.sum(axis=1), 1)
        return np.where(correct.any(axis=1), np.exp(logs), 0.0) * self._brevity(self.lengths[texts])

    def _brevity(self, lengths: np.ndarray) -> np.ndarray:
        # The reference length is that of the other text whose length is nearest, the shorter one of two.
        others, counts = np.unique(lengths, return_counts=True)
        distances = np.abs(lengths[:, None] - others)
        distances[(distances == 0) & (counts == 1)] = np.iinfo(distances.dtype).max
        return np.exp(np.minimum(0, 1 - others[np.argmin(distances, axis=1)] / np.maximum(lengths, 1)))


def words_of(text: str) -> list[str]:
    """Return the words of a text as BLEU's tokenizer 13a splits them."""
    return Tokenizer13a()(text.rstrip()).split()


def _count_grams(words: Sequence[Sequence[str]], orders: Sequence[int]) -> tuple[coo_array, np.ndarray]:
    # Sparse counts (texts, n-grams), and the order of each n-gram.
    numbers: dict[tuple[str, ...], int] = {}
    rows = [
        [
            numbers.setdefault(gram, len(numbers))
            for n in orders
            for gram in zip(*(text[i:] for i in range(n)), strict=False)
        ]
        for text in words
    ]
    text, gram = np.repeat(np.arange(len(rows)), [len(row) for row in rows]), list(chain.from_iterable(rows))
    counts = coo_array((np.ones(len(gram), dtype=int), (text, gram)), shape=(len(rows), max(len(numbers), 1)))
    return counts.tocsr(), np.array([len(gram) for gram in numbers], dtype=int)
