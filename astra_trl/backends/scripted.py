"""A backend that says what a Python function tells it: for tests, and for trying a system without a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from astra_trl.backends.base import Logprobs, Message, Sample, SavedRow

Reply = Callable[[tuple[str, ...], int], str]


@dataclass(frozen=True)
class ScriptedBackend:
    """Says `reply(texts so far, sibling index)`; token ids are UTF-8 bytes.

    Args:
        reply (`Callable[[tuple[str, ...], int], str]`):
            Gets the prompt and everything said since, and the index of this row among its siblings.
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
        """The sample through the end of `text`, which is a beginning of its text."""
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
        samples = []
        for texts, sibling in self.rows:
            text = self.backend.reply(texts, sibling)
            samples.append(Sample(text, _ids(texts), list(text.encode())))
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
        self.rows[:] = [((*said, text), sibling) for (said, sibling), text in zip(self.rows, texts, strict=True)]

    def saved(self) -> list[SavedRow]:
        return [SavedRow(_ids(texts), {"texts": list(texts), "sibling": sibling}) for texts, sibling in self.rows]


def _ids(texts: Sequence[str]) -> list[int]:
    return list("\n".join(texts).encode())
