"""How likely a text is behind a conversation, from endpoints that tell the log-probabilities of what they read."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from astra_trl.backends.api.calls import Answer, CallFailed
from astra_trl.backends.api.completions import first_choice, read_body, tokens_counted
from astra_trl.backends.api.messages import whole_characters
from astra_trl.errors import InputError

PromptLogprobs = Literal["none", "echo", "vllm"]
Asked = tuple[dict[str, Any], Callable[[bytes], Answer]]  # the body of a request, and what reads its answer

MARK = "where is this"  # stands where the last message does, to see what a template has behind it
UNKNOWN = "\ufffd"  # stands for a part of a character


class NoLogprobs(CallFailed):
    """A completion without log-probabilities of its prompt."""


class Reading:
    """Asks for the log-probabilities of prompts and reads them.

    Args:
        way (`str`):
            `"echo"` or `"vllm"`.
        chat (`bool`):
            Whether requests hold messages.
    """

    def __init__(self, way: PromptLogprobs, chat: bool) -> None:
        self.echo = way == "echo"
        self.tokens_in = _echoed if way == "echo" else _vllm
        self.asked: dict[str, Any] = {"echo": True, "logprobs": 1} if way == "echo" else {"prompt_logprobs": 0}
        self.tail: str | None = None if chat else ""  # what a template puts behind the last message

    @property
    def needs_tail(self) -> bool:
        return self.tail is None

    def asking_for_tail(self, body: Callable[..., dict[str, Any]]) -> Asked:
        """The request whose answer's text is the tail."""
        return self._of(body([{"role": "user", "content": MARK}])), _read_tail

    def asking(self, body: Callable[..., dict[str, Any]], messages: Sequence[Mapping[str, str]], text: str) -> Asked:
        """The request for the log-probabilities of the tokens of `text` behind these messages."""
        text = whole_characters(text)
        asked = self._of(body([*messages, {"role": "user", "content": text}]))
        return asked, partial(self._read, said=text, sent=asked.get("prompt"))

    def _of(self, body: dict[str, Any]) -> dict[str, Any]:
        limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        return {**body, limit: 1, **self.asked}

    def _read(self, body: bytes, said: str, sent: str | None) -> Answer:
        data = read_body(body)
        tokens, logprobs = zip(*self.tokens_in(data), strict=True)
        found = _from_start(tokens, sent or "", said) if self.echo else _from_end(tokens, said, self.tail or "")
        if found is None:  # where its tokens are cannot be told: no likelihood, which is not a likelihood of 0
            return Answer(**tokens_counted(data))
        known = tuple(logprobs[index] for index in found if logprobs[index] is not None)
        return Answer(logprobs=known, **tokens_counted(data))


def reading(way: str, chat: bool) -> Reading:
    """What asks for log-probabilities in this way; `InputError` where requests of that kind cannot."""
    if way not in get_args(PromptLogprobs):
        raise InputError(f"prompt_logprobs={way!r}: choose one of {', '.join(get_args(PromptLogprobs))}")
    if way == "echo" and chat:
        raise InputError("prompt_logprobs='echo' is for plain completions: choose 'vllm', or pass chat=False")
    return Reading(way, chat)  # type: ignore[arg-type]


def _read_tail(body: bytes) -> Answer:
    data = read_body(body)
    _, found, tail = "".join(token for token, _ in _vllm(data)).rpartition(MARK)
    if not found:
        raise NoLogprobs("what was asked is not in the prompt that came back")
    return Answer(tail, **tokens_counted(data))


def _from_start(tokens: Sequence[str], sent: str, said: str) -> list[int] | None:
    """Which tokens of a text that was sent begin in the utterance at its end; `None` where it cannot be told."""
    for skipped in (0, 1):  # one that stands before every text
        spans = aligned(tokens[skipped:], sent)
        if spans is not None:
            start = len(sent) - len(said)
            return [index + skipped for index, begin, _ in spans if start <= begin]
    return None


def _from_end(tokens: Sequence[str], said: str, tail: str) -> list[int] | None:
    """Which tokens of a prompt begin in the utterance before its tail; `None` where it cannot be told."""
    backwards = [token[::-1] for token in reversed(tokens)]
    for text in (said, said.strip()):  # templates strip what they are given, or leave it as it is
        spans = aligned(backwards, (text + tail)[::-1])
        if spans is not None:
            whole = len(text + tail)
            return [len(tokens) - 1 - index for index, _, end in reversed(spans) if whole - end < len(text)]
    return None


def aligned(tokens: Sequence[str], text: str) -> list[tuple[int, int, int]] | None:
    """Index, start and end of each token within a text that the tokens begin with; `None` where they do not.

    Tokens that are parts of characters, whose text nobody knows, stand together for what is before the next one.
    """
    spans: list[tuple[int, int, int]] = []
    index = at = 0
    while at < len(text):
        stop = index
        while stop < len(tokens) and (UNKNOWN in tokens[stop] or not tokens[stop]):
            stop += 1
        if stop == len(tokens) and stop == index:
            return None
        if stop == index:
            end = at + len(tokens[index])
            if not text.startswith(tokens[index], at):
                return spans if tokens[index].startswith(text[at:]) else None
            stop += 1
        else:
            least, most = at + any(tokens[index:stop]), at + sum(max(1, len(token)) for token in tokens[index:stop])
            end = text.find(tokens[stop], least, most + len(tokens[stop])) if stop < len(tokens) else -1
            if end < 0 and len(text) > most:
                return None
            end = len(text) if end < 0 else end
        spans += [(known, at, end) for known in range(index, stop)]
        index, at = stop, end
    return spans


def _echoed(data: dict[str, Any]) -> list[tuple[str, float | None]]:
    found = first_choice(data).get("logprobs")
    found = found if isinstance(found, dict) else {}
    return _checked(found.get("tokens"), found.get("token_logprobs"))


def _vllm(data: dict[str, Any]) -> list[tuple[str, float | None]]:
    found = data.get("prompt_logprobs") or first_choice(data).get("prompt_logprobs")
    if not isinstance(found, list):
        raise NoLogprobs("the answer holds no prompt_logprobs")
    entries = [next(iter(_entries(token)), {}) for token in found]
    return _checked([e.get("decoded_token", "") for e in entries], [e.get("logprob") for e in entries])


def _entries(token: Any) -> Iterator[dict[str, Any]]:
    # By token id; that of the prompt first, others only where they were asked for.
    for entry in token.values() if isinstance(token, dict) else ():
        if isinstance(entry, dict):
            yield entry


def _checked(tokens: Any, logprobs: Any) -> list[tuple[str, float | None]]:
    if not (isinstance(tokens, list) and isinstance(logprobs, list) and 0 < len(tokens) == len(logprobs)):
        raise NoLogprobs("the answer holds no log-probability for each token of the prompt")
    if not all(isinstance(token, str) for token in tokens):
        raise NoLogprobs("the answer's tokens are no texts")
    return list(zip(tokens, map(_number, logprobs), strict=True))


def _number(value: Any) -> float | None:
    # The first token of all follows nothing.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
