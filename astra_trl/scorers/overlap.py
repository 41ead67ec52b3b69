"""Leakage: whether a text repeats what stands in a corpus."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from unicodedata import category, normalize

import numpy as np

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, checked_part, text_of

_APOSTROPHES = re.compile("['\u2019]")
_NO_LETTERS = re.compile(r"[^\w\s]")


class OverlapScorer:
    """1.0 where the text holds n consecutive words that a document of the corpus holds too, else 0.0.

    The leakage of training data of huggingface.co/papers/2202.03286. Words are compared without regard to case and
    punctuation; they are what stands between spaces and punctuation, so that a script without spaces has too few. The
    corpus is kept as 64-bit hashes of its n-grams, 8 bytes each: with a billion of them, one in 18 billion that it
    lacks is taken for one of them.

    Args:
        corpus (`Iterable[str]`, `str` or `Path`):
            Documents; or the path of a UTF-8 file with one a line.
        n (`int`, *optional*, defaults to `13`):
            Words in a row that are leakage.
        of (`str`, *optional*, defaults to `"response"`):
            The part that is read: `"response"`, `"probe"` or `"probe_and_response"`.
    """

    def __init__(self, corpus: Iterable[str] | Path, n: int = 13, *, of: Part = "response") -> None:
        if n < 1:
            raise InputError(f"n must be at least 1 word, got {n}")
        self.n = n
        self.of = checked_part(of)
        documents = _lines(corpus) if isinstance(corpus, str | Path) else corpus
        hashes = (gram for document in documents for gram in _hashes(document, n))
        self._hashes = np.unique(np.fromiter(hashes, dtype=np.uint64))
        if not len(self._hashes):
            raise InputError(f"no document of OverlapScorer's corpus has {n} words: give longer ones, or a smaller n")

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [float(self._found_in(text_of(exchange, self.of))) for exchange in exchanges]

    def _found_in(self, text: str) -> bool:
        hashes = np.fromiter(_hashes(text, self.n), dtype=np.uint64)
        places = np.searchsorted(self._hashes, hashes)
        return bool((self._hashes[np.minimum(places, len(self._hashes) - 1)] == hashes).any())


def _lines(path: str | Path) -> Iterator[str]:
    # One at a time: a corpus may be larger than memory.
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            yield from file
    except (OSError, ValueError) as error:
        raise InputError(
            f"no corpus could be read from {str(path)!r} ({error}): give a UTF-8 file with a document a line, or "
            "documents"
        ) from error


def _hashes(text: str, n: int) -> Iterator[int]:
    # Python's own hash differs from process to process.
    words = _words(text)
    for start in range(len(words) - n + 1):
        gram = " ".join(words[start : start + n])
        yield int.from_bytes(blake2b(gram.encode(), digest_size=8).digest(), "big")


def _words(text: str) -> list[str]:
    # Twice: casefolding can leave letters decomposed. "don't" is a word in either spelling.
    text = _APOSTROPHES.sub("", normalize("NFKC", normalize("NFKC", text).casefold()))
    return _NO_LETTERS.sub(_mark_or_space, text).split()


def _mark_or_space(found: re.Match[str]) -> str:
    # `\w` knows no combining marks, as vowel signs.
    return found[0] if category(found[0]).startswith("M") else " "
