"""Rows of a prompt set as openings: texts, and conversations in usual formats."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from astra_trl.conversation import Opening, Speaker, Turn
from astra_trl.text import parse_json

# Roles of chats by the names that they have in data sets (OpenAI, ShareGPT, OpenAssistant, Gemini).
CHAT_SPEAKERS: dict[str, Speaker] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")

_CHAT = re.compile(
    r"""\s*\[\s*\{\s*['"](?:role|from|content|value|text)['"]\s*:"""
)  # written out, e.g. in a cell of a CSV
_TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # huggingface.co/papers/2204.05862
_SPEAKERS: dict[str, Speaker] = {"Human": "user", "Assistant": "assistant"}


def as_opening(row: object) -> Opening:
    """Return a text, or the turns of a chat that are not blank; `ValueError` with what is wrong with the row."""
    if isinstance(row, str):
        if "[" in row[:9] and _CHAT.match(row):
            row = parse_written(row)
        elif row.lstrip().startswith("Human:") and "\n\nAssistant:" in row:
            _, *parts = _TRANSCRIPT.split(row)
            turns = zip(parts[::2], map(clean_text, parts[1::2]), strict=True)
            return tuple(Turn(_SPEAKERS[name], text) for name, text in turns if text)
        else:
            return clean_text(row)
    if not is_chat(row):
        raise ValueError(f"is {kind_of(row)}, not text")
    messages: Any = enumerate(row, start=1)  # type: ignore[arg-type]
    return tuple(turn for number, message in messages for turn in _turns(message, number))


def is_chat(row: object) -> bool:
    """`True` for a list of messages, each with a role and a content."""
    return isinstance(row, list) and all(
        isinstance(part, dict) and any(map(part.__contains__, ROLE_KEYS)) and any(map(part.__contains__, CONTENT_KEYS))
        for part in row
    )


def kind_of(value: object) -> str:
    """Return what a value is in JSON, for messages."""
    if value is None or (isinstance(value, float) and value != value):  # pandas has nan for null
        return "null or missing"
    if isinstance(value, dict):
        return f"object with the keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"list of objects with the keys {', '.join(map(str, value[0])) or 'none'}"
    return type(value).__name__


def parse_written(text: str) -> Any:
    """Return a list or an object that was written out as JSON, or as Python (by pandas); `ValueError` if neither."""
    for parse in (parse_json, ast.literal_eval):
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise ValueError(f"starts with {text.strip()[:20]!r} but is neither JSON nor Python: write the table as .jsonl")


def clean_text(text: str) -> str:
    """Return the text without white space around it; `ValueError` if it is broken."""
    # No tokenizer can encode half a surrogate pair; both are signs of broken exports.
    try:
        is_broken = b"\0" in text.encode()
    except UnicodeEncodeError:
        is_broken = True
    if is_broken:
        raise ValueError("holds a NUL or half a surrogate pair")
    return text.strip()


def _turns(message: Mapping[str, Any], number: int) -> list[Turn]:
    role, content = (_first(message, keys) for keys in (ROLE_KEYS, CONTENT_KEYS))
    speaker = CHAT_SPEAKERS.get(role.casefold()) if isinstance(role, str) else None
    if speaker is None:
        names = ", ".join(dict.fromkeys(CHAT_SPEAKERS.values()))
        raise ValueError(f"has role {role!r:.80} in message {number}, which is none of {names}")
    parts = content if isinstance(content, list) else [content]
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            kind = f"of type {part['type']!r:.80}" if isinstance(part, dict) and "type" in part else kind_of(part)
            raise ValueError(f"has a message {number} whose content is {kind}, not text")
    text = clean_text("\n".join(texts))
    return [Turn(speaker, text)] if text else []


def _first(message: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)
