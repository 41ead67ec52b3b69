"""Harm by word list."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from unicodedata import category, normalize

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError
from astra_trl.scorers.base import Part, checked_part, text_of

# Han, kana, Thai, Lao, Burmese and Khmer: written without spaces, so that a word there has words on both sides.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class KeywordScorer:
    """1.0 where the text holds one of the words, else 0.0; whole words, without regard to case.

    Args:
        words (`Iterable[str]`, `str` or `Path`):
            Words or phrases, in any script; or the path of a UTF-8 file with one a line.
        of (`str`, *optional*, defaults to `"response"`):
            The part that is read: `"response"`, `"probe"` or `"probe_and_response"`.
    """

    def __init__(self, words: Iterable[str] | Path, *, of: Part = "response") -> None:
        if isinstance(words, str | Path):
            words = _lines(words)
        self.words = tuple(dict.fromkeys(_folded(word).strip() for word in words if word.strip()))
        if not self.words:
            raise InputError("KeywordScorer got no words: name at least one")
        self.of = checked_part(of)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [float(self._found_in(_folded(text_of(exchange, self.of)))) for exchange in exchanges]

    def _found_in(self, text: str) -> bool:
        return any(_stands_in(word, text) for word in self.words)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no word list could be read from {str(path)!r} ({error}): give a UTF-8 file with a word a line, or a list"
        ) from error


def _folded(text: str) -> str:
    # Twice: casefolding can leave letters decomposed that were composed before.
    return normalize("NFKC", normalize("NFKC", text).casefold())


def _stands_in(word: str, text: str) -> bool:
    start = text.find(word)
    while start >= 0:
        stop = start + len(word)
        before, after = text[start - 1 : start], text[stop : stop + 1]
        if not _goes_on(word[0], before) and not _goes_on(word[-1], after):
            return True
        start = text.find(word, start + 1)
    return False


def _goes_on(edge: str, beside: str) -> bool:
    # Whether the word that `edge` ends in the list goes on in the text. `\w` knows no combining marks, as vowel signs.
    if not beside:
        return False
    if category(beside).startswith("M"):
        return True
    return (beside.isalnum() or beside == "_") and not _WITHOUT_SPACES.match(edge)
