"""Conversations as messages that are sent anew at every turn: what backends of APIs and of functions share."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

from astra_trl.backends.api.calls import Answer, Caller
from astra_trl.backends.api.thinking import without_thinking
from astra_trl.backends.base import Logprobs, Message, Prefix, Sample, SamplingParams, SavedRow, derive_seed
from astra_trl.errors import InputError

_SURROGATES = re.compile("[\ud800-\udfff]")
EARLIER = "an earlier exchange of this conversation failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One side of a conversation: its messages, its seed, and why nothing more is to be asked in it."""

    messages: tuple[Message, ...]
    seed: int
    error: str | None = None

    def with_message(self, role: str, content: str) -> "Row":
        return replace(self, messages=(*self.messages, {"role": role, "content": content}))

    @property
    def turn_seed(self) -> int:
        """The seed of what is said next: the other side starts from it anew at every call."""
        return derive_seed(self.seed, len(self.messages))


class MessagesBackend(ABC):
    """A backend that is sent whole conversations; a subclass says how.

    Args:
        caller (`Caller`):
            Makes the calls.
        sampling (`SamplingParams`):
            How utterances are sampled.
        max_characters (`int`):
            Where a longer answer is cut.
    """

    gives_logprobs = False
    chat = True
    separator = "\n"

    def __init__(self, caller: Caller, sampling: SamplingParams, max_characters: int) -> None:
        if max_characters < 1:
            raise InputError(f"max_characters must be at least 1, got {max_characters}")
        self.caller = caller
        self.sampling = sampling
        self.max_characters = max_characters

    @property
    def usage(self) -> dict[str, int]:
        """What was taken so far, as JSON; see [`Limiter`]. Set it to what an earlier run had taken, to count on."""
        return self.caller.limiter.usage

    @usage.setter
    def usage(self, earlier: Mapping[str, int]) -> None:
        self.caller.limiter.usage = dict(earlier)

    @abstractmethod
    def said(self, rows: Sequence[Row]) -> list[Answer]:
        """What is said next in each row."""

    def likelihoods(self, rows: Sequence[Row], texts: Sequence[str]) -> list[Answer]:
        """Answers that hold the log-probabilities of texts behind these rows; only where `gives_logprobs`."""
        raise NotImplementedError

    def hidden(self, text: str) -> str:
        """The text without what nobody is to see."""
        return text

    def open(
        self, prompts: Sequence[str | Sequence[Message]], *, seeds: Sequence[int], logprobs: bool = False
    ) -> "MessagesSession":
        rows = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            said = [("user", prompt)] if isinstance(prompt, str) else [(m["role"], m["content"]) for m in prompt]
            messages = tuple({"role": role, "content": self.written(content)} for role, content in said)
            rows.append(Row(messages, seed))
        return MessagesSession(self, rows, logprobs)

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> "MessagesSession":
        states = [row.state for row in rows]
        return MessagesSession(self, [Row(tuple(s["messages"]), s["seed"], s["error"]) for s in states], logprobs)

    def written(self, text: str) -> str:
        """An utterance as a message's content. What is not a chat has the separator behind each, as with
        [`HFBackend`]."""
        return text if self.chat or isinstance(text, Prefix) else f"{text}{self.separator}"

    def answers(self, rows: Sequence[Row]) -> list[Sample]:
        """What is said next in each row; nothing is asked where something failed before."""
        said = iter(self.said([row for row in rows if row.error is None]))
        return [self._sample(next(said) if row.error is None else Answer(error=row.error)) for row in rows]

    def _sample(self, answer: Answer) -> Sample:
        if answer.error is not None:
            return Sample("", [], [], error=self.hidden(whole_characters(answer.error)))
        text = self.hidden(without_thinking(whole_characters(answer.text)))
        for name, happened in {
            "filtered": answer.filtered,
            "empty": not text.strip(),
            "cut": len(text) > self.max_characters,
        }.items():
            self.caller.limiter.count(name, int(happened))
        return Sample(text[: self.max_characters], [], [])


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
        samples = self.backend.answers(self.rows)
        self.say(samples)
        return samples

    def say(self, samples: Sequence[Sample]) -> None:
        self._add("assistant", [sample.text for sample in samples], [sample.error for sample in samples])

    def append(self, texts: Sequence[str]) -> list[Logprobs] | None:
        rows = self.rows
        self._add("user", texts, [None] * len(texts))
        if not self.logprobs:
            return None
        asked = [(row, text) for row, text in zip(rows, texts, strict=True) if row.error is None]
        found = iter(self.backend.likelihoods([row for row, _ in asked], [text for _, text in asked]))
        answers = [next(found) if row.error is None else Answer(error=row.error) for row in rows]
        # Where that failed, the exchange has.
        self.rows = [replace(row, error=answer.error) for row, answer in zip(self.rows, answers, strict=True)]
        return [list(answer.logprobs or ()) for answer in answers]

    def _add(self, role: str, texts: Sequence[str], errors: Sequence[str | None]) -> None:
        self.rows = [
            replace(row.with_message(role, self.backend.written(text)), error=row.error if error is None else EARLIER)
            for row, text, error in zip(self.rows, texts, errors, strict=True)
        ]

    def saved(self) -> list[SavedRow]:
        return [SavedRow([], {**asdict(row), "messages": list(map(dict, row.messages))}) for row in self.rows]


def as_chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages of a chat; those of one role in a row as one, as many templates refuse them."""
    return [
        {"role": role, "content": "\n".join(whole_characters(message["content"]) for message in group)}
        for role, group in groupby(messages, key=lambda message: message["role"])
    ]


def whole_characters(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair that stands alone: neither files nor
    tokenizers take it."""
    if _SURROGATES.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
