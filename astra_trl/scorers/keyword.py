"""Harm by word list."""

import re
from collections.abc import Iterable, Sequence

from astra_trl.conversation import Exchange
from astra_trl.errors import InputError


class KeywordScorer:
    """1.0 where the response holds one of the words, else 0.0; whole words, case-folded.

    Args:
        words (`Iterable[str]`):
            Words or phrases, in any script.
    """

    def __init__(self, words: Iterable[str]) -> None:
        if isinstance(words, str):
            raise InputError(f"KeywordScorer takes a list of words, got the text {words!r}: put it into a list")
        self.words = tuple(dict.fromkeys(word.strip().casefold() for word in words if word.strip()))
        if not self.words:
            raise InputError("KeywordScorer got no words: name at least one")
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self.words))})(?!\w)")

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [float(bool(self._pattern.search(exchange.response.casefold()))) for exchange in exchanges]
