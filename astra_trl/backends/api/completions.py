"""Requests to OpenAI-compatible endpoints, and completions read from the bytes of any response body."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from astra_trl.backends.api.calls import Answer, CallFailed
from astra_trl.text import parse_json

MAX_TOKENS = 10**9  # of one call; a larger count is an error of the endpoint
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)  # the beginning of a web page


@dataclass(frozen=True)
class Request:
    """The body of a request, the reader of the response's body, and the key in a cache."""

    body: Mapping[str, Any]
    read: Callable[[bytes], Answer]
    key: str = ""

    @property
    def estimated_tokens(self) -> int:
        """Estimate of its tokens and those of the longest answer."""
        text = self.body["prompt"] if "prompt" in self.body else "".join(m["content"] for m in self.body["messages"])
        limit = next((self.body[name] for name in ("max_tokens", "max_completion_tokens") if name in self.body), 0)
        return len(text) // 3 + 8 * len(self.body.get("messages", ())) + limit


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises `CallFailed` for anything else, and for an error in its place."""
    try:
        data = parse_json(body.decode("utf-8", "replace"))
    except ValueError:
        raise CallFailed(f"the answer is not complete JSON ({len(body)} bytes)") from None
    if not isinstance(data, dict):
        raise CallFailed(f"the answer is not a JSON object ({type(data).__name__})")
    if data.get("error"):
        raise CallFailed(f"an error in place of an answer: {read_error(data)[1]}")
    return data


def read_error(data: Any) -> tuple[str, str]:
    """Return the code and the message of the error in a body, as far as it has them."""
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):
        return "", str(error)
    code = error.get("code") if isinstance(error.get("code"), str) else error.get("type")
    return str(code or ""), str(error.get("message") or error.get("detail") or error)


def read_refusal(body: bytes) -> Any:
    """Return the JSON in the body of a status that is not a success, or the text of any other body but a web page."""
    try:
        return parse_json(body)
    except ValueError:
        return "a web page" if PAGE.match(body) else body.decode("utf-8", "replace")


def wrong_form(body: bytes) -> str | None:
    """Return the form of a body that no server of this API gives, or `None`: it may be a completion, or damaged."""
    if PAGE.match(body):
        return "a web page"
    if body.lstrip().startswith((b"data:", b"event:")):
        return "an event stream"
    try:
        data = parse_json(body.decode("utf-8", "replace"))
    except ValueError:
        return None
    is_other = isinstance(data, dict) and data and not {"choices", "error", "object"} & data.keys()
    return "JSON that is not a completion (it has no choices)" if is_other else None


def first_choice(data: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice of a completion. Raises `CallFailed` if it is missing or holds an error.

    OpenRouter reports errors in a choice if they happen after its answer has begun.
    """
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise CallFailed("the answer is not a completion: it holds no choice")
    if choice.get("finish_reason") == "error" or choice.get("error"):
        reason = read_error(choice)[1] if choice.get("error") else "no reason given"
        raise CallFailed(f"an error in place of an answer: {reason}")
    return choice


def read_answer(body: bytes, chat: bool) -> Answer:
    """Return the utterance of the model; a refusal in its own field is an utterance too, and parts of text are joined.

    An answer that a content filter withheld is empty, and so is one that ended while the model was thinking. Raises
    `CallFailed` if the body is not a completion, or an error.
    """
    data = read_body(body)
    choice = first_choice(data)
    filtered = choice.get("finish_reason") == "content_filter"
    text = "" if filtered else _chat_text(choice) if chat else choice.get("text")
    if not isinstance(text, str):
        raise CallFailed(f"no text in the answer ({type(text).__name__})")
    return Answer(text, filtered=filtered, cut=choice.get("finish_reason") == "length", **token_counts(data))


def token_counts(data: dict[str, Any]) -> dict[str, Any]:
    """Return the endpoint's own token counts, as far as it has them, as fields of an `Answer`."""
    usage = data.get("usage")
    counts: dict[str, Any] = {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MAX_TOKENS:
            counts[name] = count
    return counts


def _chat_text(choice: dict[str, Any]) -> Any:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CallFailed("the answer is not a completion: its choice holds no message")
    text = message.get("content")
    if text is None and isinstance(message.get("refusal"), str):
        return message["refusal"]
    if isinstance(text, list):
        return _join_parts(text)
    has_thoughts = any(isinstance(message.get(name), str) for name in ("reasoning_content", "reasoning"))
    if text is None and (has_thoughts or choice.get("finish_reason") == "length"):
        return ""  # the limit of tokens was reached while thinking, which not all endpoints return
    return text


def _join_parts(parts: list[Any]) -> str | None:
    # Parts of thoughts are left out, as thinking blocks are; an answer of nothing else ended while thinking.
    said = [part for part in parts if not (isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"))]
    values = [part.get("text", part.get("refusal")) if isinstance(part, dict) else part for part in said]
    texts = [text for text in values if isinstance(text, str)]
    return "".join(texts) if texts or len(said) < len(parts) else None
