"""What produces text: the `Backend` and `Session` protocols, and what passes through them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from astra_trl.errors import InputError

Logprobs = list[float]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one utterance is sampled; every field means what it means in transformers' `GenerationConfig`."""

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, valid, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not valid:
                raise InputError(f"{name} must be {wanted}, got {getattr(self, name)}")


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
    """

    text: str
    prompt_ids: list[int]
    ids: list[int]


class Session(Protocol):
    """One model's side of many conversations: a batch of growing rows."""

    def branch(self, width: int) -> None:
        """Every row becomes `width` equal rows, side by side."""

    def sample(self) -> list[Sample]:
        """Continues every row by one utterance of this model."""

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        """Adds what the other side said to every row.

        Returns its log-probabilities per token under this model where the session was opened for them, else `None`.
        """


class Backend(Protocol):
    """A model that can hold its side of many conversations."""

    @property
    def gives_logprobs(self) -> bool:
        """Whether `append` can return log-probabilities."""

    def open(self, prompts: Sequence[str], *, seed: int, logprobs: bool = False) -> Session:
        """A session with one row a prompt; equal seeds and weights give equal samples.

        `logprobs` asks `append` for log-probabilities, which only a backend with `gives_logprobs` can return.
        """


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, so that (run seed, round, rank, role) never share random numbers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
