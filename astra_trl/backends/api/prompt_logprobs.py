"""Log-probabilities of a text after a conversation, from endpoints that return those of prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from astra_trl.backends.api.calls import Answer, CallFailed
from astra_trl.backends.api.completions import Request, first_choice, read_body, token_counts
from astra_trl.backends.api.extra_body import LIMITS
from astra_trl.backends.api.messages import whole_characters
from astra_trl.errors import InputError

PromptLogprobs = Literal["none", "echo", "vllm"]
Tokens = list[tuple[str, float | None]]  # the tokens of a prompt with their log-probabilities
Spans = list[tuple[int, int, int]]  # index, start and end of tokens within a text

MARK = "where is this"  # takes the place of the last message, to find out what a template adds after it
UNKNOWN = "\ufffd"  # stands for a part of a character


class NoLogprobs(CallFailed):
    """A completion without log-probabilities of its prompt."""


class PromptReader:
    """Requests for log-probabilities of prompts, and their answers. Raises `InputError` if `way` does not fit."""

    def __init__(self, way: PromptLogprobs, chat: bool) -> None:
        if way not in get_args(PromptLogprobs):
            raise InputError(f"prompt_logprobs={way!r}: choose one of {', '.join(get_args(PromptLogprobs))}")
        if way == "echo" and chat:
            raise InputError(
                "log-probabilities by echo are for plain completions: choose vllm, or api completions (chat=False)"
            )
        self.echo = way == "echo"
        self.fields: dict[str, Any] = {"echo": True, "logprobs": 1} if self.echo else {"prompt_logprobs": 0}
        self.tail: str | None = None if chat else ""  # the text that a template adds after the last message

    def tail_request(self, body: Callable[..., dict[str, Any]]) -> Request:
        """Return the request whose answer's text is the tail."""
        return Request(self._extend(body([{"role": "user", "content": MARK}])), _read_tail)

    def request(
        self, body: Callable[..., dict[str, Any]], messages: Sequence[Mapping[str, str]], text: str
    ) -> Request:
        """Return the request for the log-probabilities of the tokens of `text` after these messages."""
        text = whole_characters(text)
        fields = self._extend(body([*messages, {"role": "user", "content": text}]))
        return Request(fields, partial(self._read, text=text, prompt=fields.get("prompt", "")))

    def _extend(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, **{name: 1 for name in LIMITS if name in body}, **self.fields}

    def _read(self, body: bytes, text: str, prompt: str) -> Answer:
        data = read_body(body)
        tokens, logprobs = zip(*(_echo_tokens(data) if self.echo else _vllm_tokens(data)), strict=True)
        if self.echo:
            indices = _find_from_start(tokens, prompt, text)
        else:
            indices = _find_from_end(tokens, text, self.tail or "")
        if indices is None:  # no likelihood, which is not a likelihood of 0
            return Answer(**token_counts(data))
        values = tuple(logprobs[index] for index in indices if logprobs[index] is not None)
        return Answer(logprobs=values, **token_counts(data))


def _read_tail(body: bytes) -> Answer:
    data = read_body(body)
    _, mark, tail = "".join(token for token, _ in _vllm_tokens(data)).rpartition(MARK)
    if not mark:
        raise NoLogprobs("the prompt that came back does not hold the message that was sent")
    return Answer(tail, **token_counts(data))


def _find_from_start(tokens: Sequence[str], prompt: str, text: str) -> list[int] | None:
    """Return the indices of the tokens that begin in the text at the end of a prompt, `None` if they do not match."""
    for skip in (0, 1):  # a BOS token, which is not part of the prompt
        spans = align_tokens(tokens[skip:], prompt)
        if spans is not None:
            start = len(prompt) - len(text)
            return [index + skip for index, begin, _ in spans if start <= begin]
    return None


def _find_from_end(tokens: Sequence[str], text: str, tail: str) -> list[int] | None:
    """Return the indices of the tokens that begin in the text before the tail, `None` if they do not match."""
    backwards = [token[::-1] for token in reversed(tokens)]
    for content in (text, text.strip()):  # templates strip a message or leave it as it is
        spans = align_tokens(backwards, (content + tail)[::-1])
        if spans is not None:
            whole = len(content + tail)
            return [len(tokens) - 1 - index for index, _, end in reversed(spans) if whole - end < len(content)]
    return None


def align_tokens(tokens: Sequence[str], text: str) -> Spans | None:
    """Return index, start and end of each token within a text that the tokens begin with, `None` if they do not.

    The text of tokens that are parts of characters is unknown: together they cover everything up to the next token.
    """
    spans: Spans = []
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
        spans += [(covered, at, end) for covered in range(index, stop)]
        index, at = stop, end
    return spans


def _echo_tokens(data: dict[str, Any]) -> Tokens:
    logprobs = first_choice(data).get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else {}
    return _check_tokens(logprobs.get("tokens"), logprobs.get("token_logprobs"))


def _vllm_tokens(data: dict[str, Any]) -> Tokens:
    by_id = data.get("prompt_logprobs") or first_choice(data).get("prompt_logprobs")
    if not isinstance(by_id, list):
        raise NoLogprobs("the answer holds no prompt_logprobs")
    # By token id, that of the prompt first; different tokens only follow if they were asked for.
    values = [list(token.values()) if isinstance(token, dict) else [] for token in by_id]
    entries = [next((entry for entry in row if isinstance(entry, dict)), {}) for row in values]
    return _check_tokens([e.get("decoded_token", "") for e in entries], [e.get("logprob") for e in entries])


def _check_tokens(tokens: Any, logprobs: Any) -> Tokens:
    if not (isinstance(tokens, list) and isinstance(logprobs, list) and 0 < len(tokens) == len(logprobs)):
        raise NoLogprobs("the answer holds no log-probability for each token of the prompt")
    if not all(isinstance(token, str) for token in tokens):
        raise NoLogprobs("the tokens in the answer are not texts")
    return list(zip(tokens, map(_number, logprobs), strict=True))


def _number(value: Any) -> float | None:
    # The very first token has no log-probability.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
