"""What an OpenAI-compatible endpoint has answered, read from the bytes of its body whatever they are."""

from typing import Any

from astra_trl.backends.api.calls import Answer, CallFailed
from astra_trl.parsing import parse_json

_MOST_TOKENS = 10**9  # of one call: what counts more has not counted


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; `CallFailed` where there is none, or an error in its place."""
    try:
        data = parse_json(body.decode("utf-8", "replace"))
    except ValueError:
        raise CallFailed(f"the answer is no whole JSON ({len(body)} bytes)") from None
    if not isinstance(data, dict):
        raise CallFailed(f"the answer is no JSON object ({type(data).__name__})")
    if data.get("error"):
        raise CallFailed(f"an error in an answer's place: {error_in(data)[1]}")
    return data


def error_in(data: Any) -> tuple[str, str]:
    """The code and the text of the error that a body holds, as far as it says any."""
    found = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(found, dict):
        return "", str(found)
    code = found.get("code") if isinstance(found.get("code"), str) else found.get("type")
    return str(code or ""), str(found.get("message") or found.get("detail") or found)


def first_choice(data: dict[str, Any]) -> dict[str, Any]:
    """The choice of a completion; `CallFailed` if there is none, or if it holds an error, as OpenRouter reports what
    happens after its answer has begun."""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise CallFailed("the answer is no completion: it holds no choice")
    if choice.get("finish_reason") == "error" or choice.get("error"):
        reason = error_in(choice)[1] if choice.get("error") else "no reason given"
        raise CallFailed(f"an error in an answer's place: {reason}")
    return choice


def read_answer(body: bytes, chat: bool) -> Answer:
    """What the model said; a refusal in a field of its own is what it said too.

    An answer that a content filter kept back is empty, and so is one that ended while the model thought. Raises
    `CallFailed` if the body is no completion, or an error.
    """
    data = read_body(body)
    choice = first_choice(data)
    filtered = choice.get("finish_reason") == "content_filter"
    text = "" if filtered else _text_of_chat(choice) if chat else choice.get("text")
    if not isinstance(text, str):
        raise CallFailed(f"no text in the answer ({type(text).__name__})")
    return Answer(text, filtered=filtered, **tokens_counted(data))


def tokens_counted(data: dict[str, Any]) -> dict[str, Any]:
    """Fields of an `Answer`: the tokens of a call as the endpoint counts them, as far as it does."""
    usage = data.get("usage")
    counted: dict[str, Any] = {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MOST_TOKENS:
            counted[name] = count
    return counted


def _text_of_chat(choice: dict[str, Any]) -> Any:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise CallFailed("the answer is no completion: its choice holds no message")
    text = message.get("content")
    if text is None and isinstance(message.get("refusal"), str):
        return message["refusal"]
    thought = any(isinstance(message.get(name), str) for name in ("reasoning_content", "reasoning"))
    if text is None and (thought or choice.get("finish_reason") == "length"):
        return ""  # its tokens ended before its thinking, which not all endpoints show
    return text
