"""The `Backend` and `Session` protocols, and the types that they exchange."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers

# Longest utterances of chat models, in tokens, unless they are set: a chat model ends what it says by itself.
CHAT_PROBE_TOKENS, CHAT_RESPONSE_TOKENS = 64, 128

Logprobs = list[float]
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class Prefix(str):
    """A prompt that the model continues within the last utterance: no separator follows it."""


class OutOfMemory(RuntimeError):
    """This many conversations at a time do not fit in memory. Fewer might."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one utterance. Every field has its meaning in transformers' `GenerationConfig`."""

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_numbers(**{name: getattr(self, name) for name in self.__slots__ if name != "stop_strings"})
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(f"min_new_tokens must be between 0 and max_new_tokens, got {self.min_new_tokens}")
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise InputError(f"stop_strings must be texts, none empty, got {self.stop_strings!r}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled utterance.

    Args:
        text (`str`):
            The utterance without special tokens.
        prompt_ids (`list[int]`):
            Token ids that the model saw.
        ids (`list[int]`):
            Token ids that it sampled, the end-of-sequence token included if it was sampled.
        logprobs (`list[float]`):
            Natural log-probability of each sampled id under the model at the sampling temperature, before top-k, top-p
            and penalties change the distribution: the values that TRL's trainers compute again. Empty if the backend
            gives none.
        error (`str`, *optional*):
            The reason why sampling failed; the text is empty then.
        untempered_logprobs (`list[float]`):
            The log-probabilities at temperature 1. Empty if the backend gives none, or only on demand (`untempered`).
        cut (`bool`, *optional*, defaults to `False`):
            Whether `max_new_tokens`, or another limit of the length, ended the utterance and not the model itself.
        replayed (`bool`, *optional*, defaults to `False`):
            Whether the utterance was put in place of a sample: an earlier one, or a variation of such.
    """

    text: str
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    error: str | None = None
    untempered_logprobs: list[float] = field(default_factory=list, kw_only=True)
    cut: bool = field(default=False, kw_only=True)
    replayed: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A row of a session as plain data, to continue it in another session, process or run.

    Args:
        prompt_ids (`list[int]`):
            Token ids that the model would continue; empty if the backend has none.
        state (`dict`):
            All that the backend needs to continue the row, as JSON.
    """

    prompt_ids: list[int]
    state: dict[str, Any]


class Session(Protocol):
    """One model's side of many conversations: a batch of growing rows."""

    @property
    def max_rows(self) -> int | None:
        """Maximum number of rows that a branch of this session should have; `None` for no maximum."""

    def branch(self, children: Sequence[tuple[int, int]]) -> "Session":
        """Return a session with one row for every (row of this session, index among its siblings).

        The past of a row is computed once for all its children. This session stays as it is.
        """

    def sample(self) -> list[Sample]:
        """Continue every row by one utterance of this model. Raises `OutOfMemory`."""

    def say(self, samples: Sequence[Sample]) -> None:
        """Append to every row an utterance of this model that was sampled elsewhere."""

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        """Append an utterance of the other side to every row. Raises `OutOfMemory`.

        Returns its log-probabilities per token under this model if the session was opened for them, else `None`.
        """


@dataclass(frozen=True, slots=True)
class Sizes:
    """Memory that branches of a session's rows will take. `n` branches of a batch take `n` times the largest.

    Args:
        row_bytes (`list[int]`):
            Bytes of one branch of each row.
        pass_bytes (`int`):
            Bytes read by a forward pass in addition to those of the rows, e.g. the weights.
        free_bytes (`int`, *optional*):
            Most bytes that the branches of a batch should take; `None` for no limit.
    """

    row_bytes: list[int]
    pass_bytes: int
    free_bytes: int | None = None


@runtime_checkable
class CachingSession(Session, Protocol):
    """A session that keeps in memory what it has computed of each row, and says how much. Other sessions need not."""

    def sizes(self) -> Sizes | None:
        """Return the memory that branches will take; `None` if rows take none. Rows of similar size grow together."""

    def release(self) -> None:
        """Free what was computed as soon as no branch needs it any more. A later branch has it computed again."""


class Backend(Protocol):
    """A model that can hold its side of many conversations."""

    @property
    def gives_logprobs(self) -> bool:
        """`True` if `append` can return log-probabilities."""

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> Session:
        """Return a session with one row per prompt (a text, or the messages of a chat).

        The utterances of a row depend on its prompt, its seed and the sibling indices that lead to it, never on the
        other rows. `logprobs` makes `append` return log-probabilities; only for a backend with `gives_logprobs`.
        """


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from all parts, so that (run seed, round, tree, role) never share random numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
