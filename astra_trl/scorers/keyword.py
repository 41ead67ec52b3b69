"""Harm by word list."""

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, fold_case, is_combining_mark, read_lines, read_part, validate_part

# Han, kana, Thai, Lao, Burmese and Khmer: written without spaces, so that a word there has words on both sides.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class KeywordScorer:
    """1.0 if the text contains one of the words, else 0.0. Only whole words count; case does not matter.

    Args:
        words (`Iterable[str]`, `str` or `Path`):
            Words or phrases, in any script; or the path of a UTF-8 text file with one per line.
        of (`str`, *optional*, defaults to `"response"`):
            The part that is read: `"response"`, `"probe"` or `"probe_and_response"`.
    """

    def __init__(self, words: Iterable[str] | Path, *, of: Part = "response") -> None:
        if isinstance(words, str | Path):
            words = read_lines(words, "word list", "word")
        # Not in the settings of an evaluation, which show no line of a file: the digest tells word lists apart.
        self._words = tuple(dict.fromkeys(fold_case(word).strip() for word in words if word.strip()))
        if not self._words:
            raise InputError("KeywordScorer got no words: name at least one")
        self.word_count = len(self._words)
        self.digest = blake2b("\n".join(sorted(self._words)).encode(), digest_size=8).hexdigest()
        self.of = validate_part(of)

    @property
    def words(self) -> tuple[str, ...]:
        """The words, with their case folded."""
        return self._words

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        texts = [fold_case(read_part(exchange, self.of)) for exchange in exchanges]
        return [float(any(_contains(text, word) for word in self.words)) for text in texts]


def _contains(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        stop = start + len(word)
        if not _is_joined(word[0], text[start - 1 : start]) and not _is_joined(word[-1], text[stop : stop + 1]):
            return True
        start = text.find(word, start + 1)
    return False


def _is_joined(edge: str, neighbour: str) -> bool:
    # `True` if the character next to the listed word in the text belongs to the same word.
    if not neighbour:
        return False
    if is_combining_mark(neighbour):
        return True
    return (neighbour.isalnum() or neighbour == "_") and not _WITHOUT_SPACES.match(edge)
