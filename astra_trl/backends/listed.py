"""A backend that says texts of a list: prompts that somebody wrote, in a tester's place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astra_trl.backends.base import Logprobs, Message, Sample, SavedRow, derive_seed
from astra_trl.errors import InputError


@dataclass(frozen=True)
class ListedBackend:
    """Says texts of a list, each drawn with the row's seed, whatever was said before; token ids are UTF-8 bytes.

    Args:
        texts (`Sequence[str]`):
            What it may say.
        name (`str`, *optional*, defaults to `"texts"`):
            What the list is called in reports.
    """

    texts: Sequence[str]
    name: str = "texts"
    gives_logprobs: bool = False

    def __post_init__(self) -> None:
        if not self.texts or not all(isinstance(text, str) for text in self.texts):
            raise InputError(f"{self.name!r} must hold at least one text, and nothing of several turns, to be said")

    @property
    def description(self) -> dict[str, Any]:
        digest = f"{derive_seed(*self.texts):016x}"
        return {"backend": "ListedBackend", "model": self.name, "texts": len(self.texts), "digest": digest}

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> "ListedSession":
        return ListedSession(self, [(seed,) for seed in seeds])

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> "ListedSession":
        return ListedSession(self, [tuple(row.state["key"]) for row in rows])


@dataclass
class ListedSession:
    """The rows of a `ListedBackend`: the seed of each, with the siblings' indices that lead to it."""

    backend: ListedBackend
    rows: list[tuple[int, ...]]
    max_rows: int | None = None

    def branch(self, children: Sequence[tuple[int, int]]) -> "ListedSession":
        return ListedSession(self.backend, [(*self.rows[row], sibling) for row, sibling in children])

    def sample(self) -> list[Sample]:
        texts = self.backend.texts
        said = [texts[derive_seed(*key) % len(texts)] for key in self.rows]
        return [Sample(text, [], list(text.encode())) for text in said]

    def say(self, samples: Sequence[Sample]) -> None:
        pass

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        return None

    def saved(self) -> list[SavedRow]:
        return [SavedRow([], {"key": list(key)}) for key in self.rows]
