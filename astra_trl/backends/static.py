"""Backends without a model: the replies of a Python function, and texts of a list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from astra_trl.backends.base import Logprobs, Message, Sample, SavedRow, derive_seed
from astra_trl.errors import InputError

Reply = Callable[[tuple[str, ...], int], str]


@dataclass(frozen=True)
class ScriptedBackend:
    """Replies of a Python function, for tests and to try a system without a model. Token ids are UTF-8 bytes.

    Args:
        reply (`Callable[[tuple[str, ...], int], str]`):
            Gets the prompt with all later utterances, and the index of this row among its siblings.
        logprob_per_token (`float`, *optional*, defaults to `-1.0`):
            Log-probability reported for every byte that is appended.
        gives_logprobs (`bool`, *optional*, defaults to `True`):
            Whether the backend reports log-probabilities at all.
        max_rows (`int`, *optional*):
            Conversations at a time.
    """

    reply: Reply
    logprob_per_token: float = -1.0
    gives_logprobs: bool = True
    max_rows: int | None = None

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> "ScriptedSession":
        texts = [text if isinstance(text, str) else "\n".join(m["content"] for m in text) for text in prompts]
        return ScriptedSession(self, [((text,), 0) for text in texts], logprobs)

    def cut(self, sample: Sample, text: str) -> Sample:
        """Cut the sample at the end of `text`, a prefix of its text."""
        return replace(sample, text=text, ids=list(text.encode()))

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> "ScriptedSession":
        return ScriptedSession(self, [(tuple(row.state["texts"]), row.state["sibling"]) for row in rows], logprobs)


@dataclass
class ScriptedSession:
    """The rows of a `ScriptedBackend`: the texts so far and the sibling index of each."""

    backend: ScriptedBackend
    rows: list[tuple[tuple[str, ...], int]]
    logprobs: bool

    @property
    def max_rows(self) -> int | None:
        return self.backend.max_rows

    def branch(self, children: Sequence[tuple[int, int]]) -> "ScriptedSession":
        rows = [(self.rows[row][0], sibling) for row, sibling in children]
        return ScriptedSession(self.backend, rows, self.logprobs)

    def sample(self) -> list[Sample]:
        replies = [(texts, self.backend.reply(texts, sibling)) for texts, sibling in self.rows]
        samples = [Sample(reply, _ids(texts), list(reply.encode())) for texts, reply in replies]
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        self._add([sample.text for sample in samples])

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        self._add(texts)
        if not self.logprobs:
            return None
        return [[self.backend.logprob_per_token] * len(text.encode()) for text in texts]

    def _add(self, texts: Sequence[str]) -> None:
        self.rows[:] = [((*past, text), sibling) for (past, sibling), text in zip(self.rows, texts, strict=True)]

    def saved(self) -> list[SavedRow]:
        return [SavedRow(_ids(texts), {"texts": list(texts), "sibling": sibling}) for texts, sibling in self.rows]


def _ids(texts: Sequence[str]) -> list[int]:
    return list("\n".join(texts).encode())


@dataclass(frozen=True)
class ListedBackend:
    """Texts of a list in place of a tester, e.g. handwritten prompts. Token ids are UTF-8 bytes.

    The seed of a row and the sibling indices that lead to it choose its texts, whatever the conversation is.

    Args:
        texts (`Sequence[str]`):
            The texts.
        name (`str`, *optional*, defaults to `"texts"`):
            The name of the list in reports.
    """

    texts: Sequence[str]
    name: str = "texts"
    gives_logprobs: bool = False

    def __post_init__(self) -> None:
        if not self.texts or not all(isinstance(text, str) for text in self.texts):
            raise InputError(f"{self.name!r} must hold at least one text, and no conversation of several turns")

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
    """The rows of a `ListedBackend`: the seed of each, and the sibling indices that lead to it."""

    backend: ListedBackend
    rows: list[tuple[int, ...]]
    max_rows: int | None = None

    def branch(self, children: Sequence[tuple[int, int]]) -> "ListedSession":
        return ListedSession(self.backend, [(*self.rows[row], sibling) for row, sibling in children])

    def sample(self) -> list[Sample]:
        texts = self.backend.texts
        choices = [texts[derive_seed(*key) % len(texts)] for key in self.rows]
        return [Sample(text, [], list(text.encode())) for text in choices]

    def say(self, samples: Sequence[Sample]) -> None:
        pass

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        return None

    def saved(self) -> list[SavedRow]:
        return [SavedRow([], {"key": list(key)}) for key in self.rows]
