"""How diverse texts are: by their words, and by what they mean."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from astra_trl.embedding import Embedder
from astra_trl.evaluation.resampling import Mean, OfSet, Statistic

SAME_ATTACK = 0.7  # cosine from which on two probes count as one attack
MOST_TEXTS = 500  # each text's BLEU against all others takes time that grows with the square of their number
MOST_VENDI_REPLICATES = 200


def diversity(texts: Sequence[Sequence[str]], seed: int, embed: Embedder | None = None) -> dict[str, Statistic]:
    """Figures of the texts by opening, without the blank ones.

    - `distinct_1` to `distinct_3`: distinct n-grams of words by all (huggingface.co/papers/1510.03055).
    - `self_bleu`: mean sentence BLEU in [0, 1] of each text against all others (huggingface.co/papers/1802.01886), of
      a sample drawn with `seed` where there are more than 500 texts; lower is more diverse.
    - With embeddings, `cosine_distance`: mean over all pairs; `vendi_score`: how many different texts there are
      effectively (huggingface.co/papers/2210.02410); `distinct_attacks`: how many groups there are, a text joining
      the first whose first text it is as near to as a cosine of 0.7.
    """
    kept = [(row, text) for row, said in enumerate(texts) for text in said if text.strip()]
    opening, flat = np.array([row for row, _ in kept], dtype=int), [text for _, text in kept]
    words = [_words(text) for text in flat]
    found: dict[str, Statistic] = {f"distinct_{n}": _distinct(words, opening, n) for n in (1, 2, 3)}
    found["self_bleu"] = Mean(_by_opening(opening, self_bleu(flat, seed), len(texts)))
    if embed is None:
        return found
    vectors = np.zeros((0, 1)) if not flat else np.asarray(embed(flat), dtype=float)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    distances = dict(enumerate(_distances(vectors))) if len(flat) > 1 else {}
    groups = clusters(vectors)
    found["cosine_distance"] = Mean(_by_opening(opening, distances, len(texts)))
    found["vendi_score"] = OfSet(opening, lambda drawn: vendi_score(vectors, drawn), most=MOST_VENDI_REPLICATES)
    found["distinct_attacks"] = OfSet(opening, lambda drawn: float(len(np.unique(groups[drawn > 0]))))
    return found


def self_bleu(texts: Sequence[str], seed: int = 0, most: int = MOST_TEXTS) -> dict[int, float]:
    """Sentence BLEU in [0, 1] against all other texts, by the text's index; of a sample where they are more than
    `most`, and of none where there is but one."""
    chosen = list(range(len(texts)))
    if len(chosen) > most:
        chosen = sorted(random.Random(seed).sample(chosen, most))
    if len(chosen) < 2:
        return {}
    bleu, sample = BLEU(effective_order=True), [texts[index] for index in chosen]
    return {
        index: bleu.sentence_score(texts[index], sample[:place] + sample[place + 1 :]).score / 100
        for place, index in enumerate(chosen)
    }


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words by all; nan where there is none."""
    grams = [gram for text in texts for gram in _grams(_words(text), n)]
    return len(set(grams)) / len(grams) if grams else np.nan


def vendi_score(vectors: np.ndarray, drawn: np.ndarray) -> float:
    """Exponential of the entropy of the eigenvalues of the cosine kernel, each of the unit vectors (rows) weighted by
    how often it was drawn; 1 for equal ones, their number for orthogonal ones."""
    weighted = vectors * np.sqrt(drawn / drawn.sum())[:, None]
    gram = weighted.T @ weighted if weighted.shape[0] > weighted.shape[1] else weighted @ weighted.T
    eigenvalues = np.linalg.eigvalsh(gram)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-np.sum(eigenvalues * np.log(eigenvalues))))


def clusters(vectors: np.ndarray, same_from: float = SAME_ATTACK) -> np.ndarray:
    """The number of each unit vector's group: the first whose first vector has at least that cosine with it."""
    leaders: list[np.ndarray] = []
    groups = np.zeros(len(vectors), dtype=int)
    for row, vector in enumerate(vectors):
        near = np.flatnonzero(np.array(leaders) @ vector >= same_from) if leaders else np.zeros(0, dtype=int)
        groups[row] = near[0] if len(near) else len(leaders)
        if not len(near):
            leaders.append(vector)
    return groups


def _words(text: str) -> list[str]:
    return Tokenizer13a()(text).split()


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _distinct(words: Sequence[Sequence[str]], opening: np.ndarray, n: int) -> OfSet:
    numbers: dict[tuple[str, ...], int] = {}
    grams = [[numbers.setdefault(gram, len(numbers)) for gram in _grams(said, n)] for said in words]
    flat = np.array([gram for said in grams for gram in said], dtype=int)
    text = np.repeat(np.arange(len(grams)), [len(said) for said in grams])

    def measure(drawn: np.ndarray) -> float:
        counts = drawn[text]
        met = np.zeros(len(numbers), dtype=bool)
        met[flat[counts > 0]] = True
        return float(met.sum() / counts.sum()) if counts.any() else np.nan

    return OfSet(opening, measure, bounds=(0.0, 1.0))


def _distances(vectors: np.ndarray) -> np.ndarray:
    # Of each text to the others, on average; the mean of that over texts is the mean over pairs.
    cosines = vectors @ vectors.sum(axis=0) - np.sum(vectors * vectors, axis=1)
    return 1 - cosines / (len(vectors) - 1)


def _by_opening(opening: np.ndarray, values: Mapping[int, float], openings: int) -> list[list[float]]:
    rows: list[list[float]] = [[] for _ in range(openings)]
    for index, value in values.items():
        rows[opening[index]].append(float(value))
    return rows
