"""What produces text: the `Backend` and `Session` protocols, and what passes through them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from astra_trl.errors import InputError

Logprobs = list[float]
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class Prefix(str):
    """A prompt that is continued where it ends, as part of its last utterance: nothing is put behind it."""


class OutOfMemory(RuntimeError):
    """So many conversations at a time do not fit in memory; fewer may."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one utterance is sampled; every field means what it means in transformers' `GenerationConfig`."""

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, valid, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("stop_strings", not isinstance(self.stop_strings, str) and all(self.stop_strings), "texts, none empty"),
        ):
            if not valid:
                raise InputError(f"{name} must be {wanted}, got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled utterance.

    Args:
        text (`str`):
            The utterance without special tokens.
        prompt_ids (`list[int]`):
            Token ids the model saw.
        ids (`list[int]`):
            Token ids it sampled, the end-of-sequence token included if it was sampled.
        logprobs (`list[float]`):
            Natural log-probability of each sampled id under the model at the sampling temperature, before top-k, top-p
            and penalties cut the distribution: what TRL's trainers compute again. Empty where a backend gives none.
        untempered_logprobs (`list[float]`):
            The same at temperature 1. Empty if the backend gives none, or was not asked for them (`untempered`).
        error (`str`, *optional*):
            Why there is no utterance; its text is empty then.
    """

    text: str
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    error: str | None = None
    untempered_logprobs: list[float] = field(default_factory=list, kw_only=True)


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A row of a session as plain data, to go on from in another session, process or run.

    Args:
        prompt_ids (`list[int]`):
            Token ids the model would continue; empty where a backend has none.
        state (`dict`):
            What the backend needs to take the row up again; JSON.
    """

    prompt_ids: list[int]
    state: dict[str, Any]


class Session(Protocol):
    """One model's side of many conversations: a batch of growing rows."""

    @property
    def max_rows(self) -> int | None:
        """How many rows a branch of this session should have at the most; `None` is any number."""

    def branch(self, children: Sequence[tuple[int, int]]) -> "Session":
        """A session with a row for every (row of this session, index among its siblings).

        A row's past is computed once for all its children. This session stays as it is.
        """

    def sample(self) -> list[Sample]:
        """Continues every row by one utterance of this model. Raises `OutOfMemory`."""

    def say(self, samples: Sequence[Sample]) -> None:
        """Adds to every row an utterance of this model that was sampled elsewhere."""

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        """Adds what the other side said to every row. Raises `OutOfMemory`.

        Returns its log-probabilities per token under this model where the session was opened for them, else `None`.
        """


class Backend(Protocol):
    """A model that can hold its side of many conversations."""

    @property
    def gives_logprobs(self) -> bool:
        """Whether `append` can return log-probabilities."""

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> Session:
        """A session with one row a prompt (text, or the messages of a chat).

        What a row says depends on its prompt, its seed and the siblings' indices that lead to it, never on the other
        rows. `logprobs` asks `append` for log-probabilities, which only a backend with `gives_logprobs` can return.
        """


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, so that (run seed, round, tree, role) never share random numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
