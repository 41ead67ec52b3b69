"""A backend that says what a Python function tells it: for tests, and for trying a system without a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from astra_trl.backends.base import Logprobs, Sample

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
    """

    reply: Reply
    logprob_per_token: float = -1.0
    gives_logprobs: bool = True

    def open(self, prompts: Sequence[str], *, seed: int, logprobs: bool = False) -> "ScriptedSession":
        return ScriptedSession(self, [((prompt,), 0) for prompt in prompts], logprobs)


@dataclass
class ScriptedSession:
    """The rows of a `ScriptedBackend`: the texts so far and the sibling index of each."""

    backend: ScriptedBackend
    rows: list[tuple[tuple[str, ...], int]]
    logprobs: bool

    def branch(self, width: int) -> None:
        self.rows = [(texts, sibling) for texts, _ in self.rows for sibling in range(width)]

    def sample(self) -> list[Sample]:
        samples = []
        for row, (texts, sibling) in enumerate(self.rows):
            text = self.backend.reply(texts, sibling)
            samples.append(Sample(text, list("\n".join(texts).encode()), list(text.encode())))
            self.rows[row] = ((*texts, text), sibling)
        return samples

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        self.rows = [((*said, text), sibling) for (said, sibling), text in zip(self.rows, texts, strict=True)]
        if not self.logprobs:
            return None
        return [[self.backend.logprob_per_token] * len(text.encode()) for text in texts]
