"""Fields of requests that a user adds or removes, and those that an error of the endpoint refuses."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from astra_trl.backends.api.completions import read_error
from astra_trl.backends.api.keys import KEY_VARIABLE, MIN_KEY_LENGTH, without_credentials
from astra_trl.errors import InputError

LIMITS = ("max_tokens", "max_completion_tokens")
_OWN = ("model", "messages", "prompt", "stream")
_INSTEAD = re.compile(r"\buse ['\"`]?(\w+)['\"`]? instead", re.IGNORECASE)


def checked_extra_body(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields that a user adds to requests. Raises `InputError` if they cannot be sent or are secret."""
    if fields is None:
        return {}
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise InputError("extra_body must be a mapping of fields, e.g. {seed: null}")
    if own := next((name for name in _OWN if name in fields), None):
        raise InputError(f"extra_body holds {own!r}, which is not a field to change: leave it out")
    for name in LIMITS:
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(
                f"extra_body: {name} must be a number of tokens, got {value!r:.40}; under another name it is sent by "
                "e.g. {max_tokens: null, max_completion_tokens: 64}"
            )
    try:
        text = json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"extra_body cannot be sent as JSON: {error}") from None
    key = os.environ.get(KEY_VARIABLE) or ""
    if without_credentials(fields) != fields or (len(key) >= MIN_KEY_LENGTH and key in text):
        raise InputError(
            f"extra_body holds a key, a token or a password, which is sent by {KEY_VARIABLE} alone: leave it out"
        )
    return json.loads(text)


def change_body(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body with these fields; null removes one."""
    return {name: value for name, value in {**body, **fields}.items() if value is not None}


def advise(data: Any, body: Mapping[str, Any]) -> str:
    """Return the `extra_body` that leaves out the fields of a body which an error names, or an empty text.

    The error names them by `param` (OpenAI), by `loc` (pydantic: vLLM, Mistral) or in its message.
    """
    names = [name for name in body if name not in _OWN]
    places = list(_places(data))
    _, message = read_error(data)
    refused = [name for name in names if name in places]
    if not places:
        refused = [name for name in names if re.search(rf"\b{re.escape(name)}\b", message)]
    changes: dict[str, Any] = dict.fromkeys(refused)
    instead = _INSTEAD.search(message)
    if instead and len(refused) == 1:
        changes[instead[1]] = body[refused[0]]
    text = yaml.safe_dump(changes, default_flow_style=True, sort_keys=False).strip()
    return f"extra_body: {text}" if changes else ""


def _places(data: Any) -> Iterator[str]:
    if isinstance(data, list):
        for value in data:
            yield from _places(value)
    elif isinstance(data, dict):
        if isinstance(data.get("loc"), list):
            yield from (part for part in data["loc"] if isinstance(part, str))
        elif isinstance(data.get("param"), str):
            yield data["param"]
        else:
            for name in ("error", "message", "detail"):
                yield from _places(data.get(name))
