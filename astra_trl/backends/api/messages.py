"""Conversations as messages that are sent anew at every turn: the base of backends of endpoints and of functions."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

from astra_trl.backends.api.calls import Answer, Caller
from astra_trl.backends.api.thinking import without_thinking
from astra_trl.backends.base import Logprobs, Message, Prefix, Sample, SamplingParams, SavedRow, derive_seed
from astra_trl.numbers import require_numbers

_SURROGATES = re.compile("[\ud800-\udfff]")
EARLIER = "an earlier exchange of this conversation failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One side of a conversation: its messages, its seed, and the error after which nothing more is asked."""

    messages: tuple[Message, ...]
    seed: int
    error: str | None = None

    @property
    def turn_seed(self) -> int:
        """Seed of the next utterance; the other side starts from it anew at every call."""
        return derive_seed(self.seed, len(self.messages))


class MessagesBackend(ABC):
    """A backend that gets whole conversations; a subclass implements `ask`. Longer answers are cut."""

    gives_logprobs = False
    chat = True
    separator = "\n"

    def __init__(self, caller: Caller, sampling: SamplingParams, max_characters: int) -> None:
        require_numbers(max_characters=max_characters)
        self.caller = caller
        self.sampling = sampling
        self.max_characters = max_characters

    @property
    def usage(self) -> dict[str, int]:
        """Usage so far, as JSON; see [`Limiter`]. Set it to the usage of an earlier run to continue its counts."""
        return self.caller.limiter.usage

    @usage.setter
    def usage(self, earlier: Mapping[str, int]) -> None:
        self.caller.limiter.usage = dict(earlier)

    @abstractmethod
    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """Return the next utterance of each row."""

    def ask_logprobs(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Answer]:
        """Return answers with the log-probabilities of texts after these rows; only with `gives_logprobs`."""
        raise NotImplementedError

    def redact(self, text: str) -> str:
        """Return the text without secrets."""
        return text

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> "MessagesSession":
        rows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            turns = [("user", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
            rows.append(Row(tuple(self.as_message(role, content) for role, content in turns), seed))
        return MessagesSession(self, rows, logprobs)

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> "MessagesSession":
        states = [row.state for row in rows]
        return MessagesSession(self, [Row(tuple(s["messages"]), s["seed"], s["error"]) for s in states], logprobs)

    def as_message(self, role: str, text: str) -> Message:
        """Return an utterance as a message. Without a chat, the separator follows it, as in [`HFBackend`]."""
        content = text if self.chat or isinstance(text, Prefix) else f"{text}{self.separator}"
        return {"role": role, "content": content}

    def sample_rows(self, rows: Sequence[Row]) -> list[Sample]:
        """Sample the next utterance of each row; rows with an earlier error are not asked."""
        answers = iter(self.ask([row for row in rows if row.error is None]))
        return [self._sample(next(answers) if row.error is None else Answer(error=row.error)) for row in rows]

    def _sample(self, answer: Answer) -> Sample:
        if answer.error is not None:
            return Sample("", [], [], error=self.redact(whole_characters(answer.error)))
        text = self.redact(without_thinking(whole_characters(answer.text)))
        self.caller.limiter.count("filtered", int(answer.filtered))
        self.caller.limiter.count("empty", int(not text.strip()))
        too_long = len(text) > self.max_characters
        self.caller.limiter.count("cut", int(too_long))
        return Sample(text[: self.max_characters], [], [], cut=answer.cut or too_long)


@dataclass
class MessagesSession:
    """The rows of a `MessagesBackend`."""

    backend: MessagesBackend
    rows: list[Row]
    logprobs: bool = False
    max_rows: None = None

    def branch(self, children: Sequence[tuple[int, int]]) -> "MessagesSession":
        rows = [replace(self.rows[row], seed=derive_seed(self.rows[row].seed, child)) for row, child in children]
        return MessagesSession(self.backend, rows, self.logprobs)

    def sample(self) -> list[Sample]:
        samples = self.backend.sample_rows(self.rows)
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        self._add("assistant", [sample.text for sample in samples], [sample.error for sample in samples])

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        rows = self.rows
        self._add("user", texts, [None] * len(texts))
        if not self.logprobs:
            return None
        valid = [(row, text) for row, text in zip(rows, texts, strict=True) if row.error is None]
        scored = iter(self.backend.ask_logprobs([row for row, _ in valid], [text for _, text in valid]))
        answers = [next(scored) if row.error is None else Answer(error=row.error) for row in rows]
        # Without a likelihood the exchange has failed.
        self.rows = [replace(row, error=answer.error) for row, answer in zip(self.rows, answers, strict=True)]
        return [list(answer.logprobs or ()) for answer in answers]

    def _add(self, role: str, texts: Sequence[str], errors: Sequence[str | None]) -> None:
        self.rows = [
            replace(
                row,
                messages=(*row.messages, self.backend.as_message(role, text)),
                error=row.error if error is None else EARLIER,
            )
            for row, text, error in zip(self.rows, texts, errors, strict=True)
        ]

    def saved(self) -> list[SavedRow]:
        return [SavedRow([], {**asdict(row), "messages": list(map(dict, row.messages))}) for row in self.rows]


def as_chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the messages of a chat, consecutive ones of one role joined, because many templates refuse them."""
    return [
        {"role": role, "content": "\n".join(whole_characters(message["content"]) for message in group)}
        for role, group in groupby(messages, key=lambda message: message["role"])
    ]


def whole_characters(text: str) -> str:
    """Return the text with a replacement character for each lone surrogate, which files and tokenizers refuse."""
    if _SURROGATES.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
