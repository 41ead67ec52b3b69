"""Untrusted text: made safe to show, and parsed as JSON or YAML."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import yaml

MAX_VALUES = 1_000_000  # of a YAML file; a value that aliases repeat is counted at each place

# Format characters reorder, join, hide or tag text; soft hyphens and variation selectors of emoji are harmless.
_HARMLESS = {"\n", "\t", "\u00ad"}
_INVISIBLE = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}  # letters by their category, blank on the screen


def visible(text: str) -> str:
    """Replace control, format and other invisible characters by their code, e.g. `⟨U+202E⟩`.

    New lines and tabs stay. ANSI escapes, bidirectional overrides, zero-width characters, tags and broken surrogates
    lose their effect, and a reader sees that they are there.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(char):04X}⟩" if _is_active(char) else char for char in text)


def _is_active(char: str) -> bool:
    if char in _HARMLESS:
        return False
    # Cc, Cf, Cs, Co, Cn: controls, formats, half surrogates, private and unassigned; Zl, Zp: line and paragraph ends.
    category = unicodedata.category(char)
    return category[0] == "C" or category in ("Zl", "Zp") or char in _INVISIBLE


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises `ValueError` with a message of one line."""
    return _parse(json.loads, text)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises `ValueError` with a message of one line."""
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"it holds {type(data).__name__}, not an object")
    return data


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values. Raises `ValueError` if a value contains itself, or for more than `MAX_VALUES`."""
    data = _parse(yaml.safe_load, text)
    # Aliases in a short text can stand for a list of lists that is huge, or infinite, when it is expanded.
    remaining, values = MAX_VALUES, [data]
    while values:
        value = values.pop()
        if isinstance(value, list | dict):
            children = [*value, *value.values()] if isinstance(value, dict) else value
            remaining -= len(children)
            if remaining < 0:
                raise ValueError(f"it holds more than {MAX_VALUES} values")
            values += children
    return data


def _parse(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("its brackets are too deep") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:  # yaml raises the last two for broken tags
        raise ValueError(" ".join(str(error).split())) from error
