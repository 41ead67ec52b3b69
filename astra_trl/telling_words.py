"""Vectors of probes by the words that tell successful ones from others, without a model."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array

WORD = re.compile(r"\w+")


class TellingWords:
    """Counts of words in probes that made the target fail, and in others.

    The weight of a word is the natural logarithm of its rate in successful probes over its rate in the others, each
    rate with half a probe added; 0 for words that are rarer in successful probes. So two probes are similar if they
    share what makes the target fail, whatever the sentences around it.
    """

    def __init__(self) -> None:
        # The number of probes with each word, and of all.
        self.with_word: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.probes: dict[bool, int] = {True: 0, False: 0}

    def add(self, probe: str, success: bool) -> None:
        """Count a probe."""
        self.with_word[success].update(words_in(probe))
        self.probes[success] += 1

    def weight(self, word: str) -> float:
        """Return the weight of a word, in nats."""
        rates = {kind: (self.with_word[kind][word] + 0.5) / (count + 1) for kind, count in self.probes.items()}
        return max(0.0, float(np.log(rates[True] / rates[False])))

    def vectors(self, texts: Sequence[str]) -> csr_array:
        """Return vectors (texts, words) of length 1, or of zeros for a text without a word that has a weight."""
        weights = [{word: self.weight(word) for word in words_in(text)} for text in texts]
        weights = [{word: weight for word, weight in row.items() if weight} for row in weights]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(weights)))}
        sizes = [len(row) for row in weights]
        lengths = [np.sqrt(sum(weight**2 for weight in row.values())) for row in weights]
        column = np.array([numbers[word] for row in weights for word in row], dtype=int)
        data = np.array([weight for row in weights for weight in row.values()]) / np.repeat(lengths, sizes)
        shape = (len(weights), max(len(numbers), 1))
        return coo_array((data, (np.repeat(np.arange(len(weights)), sizes), column)), shape=shape).tocsr()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as JSON."""
        return {
            name: {"probes": self.probes[kind], "with_word": dict(self.with_word[kind])}
            for name, kind in _NAMES.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore counts."""
        self.probes = {kind: state[name]["probes"] for name, kind in _NAMES.items()}
        self.with_word = {kind: Counter(state[name]["with_word"]) for name, kind in _NAMES.items()}


_NAMES = {"successes": True, "others": False}


def count_alike(texts: csr_array, others: csr_array) -> np.ndarray:
    """Return the number of other texts that are like each text: the sum of the squared cosines of their vectors."""
    return np.asarray((texts @ others.T).power(2).sum(axis=1)).ravel()


def words_in(text: str) -> list[str]:
    """Return the different words of a text, in lower case and in their order."""
    return list(dict.fromkeys(WORD.findall(text.lower())))
