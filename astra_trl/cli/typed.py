"""Values of settings, from flags and files, as the types of their fields."""

import difflib
from collections.abc import Iterable, Mapping
from enum import EnumMeta
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from astra_trl.errors import InputError
from astra_trl.numbers import as_number
from astra_trl.text import parse_json

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Types in the order in which they are tried, with their names in messages.
KINDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Literal: "",
    EnumMeta: "",
    dict: "a mapping, as JSON on the command line",
    str: "text",
    list: "a list",
    Any: "",
}
MAX_CHOICES = 12  # that a message lists if one of them is near
NOT_ONE = object()


def typed(value: Any, written: Any, hint: Any, called: str) -> Any:
    """Return a value as a type that the hint allows.

    Args:
        value (`Any`):
            Value in a file, or of a flag.
        written (`Any`):
            The value as it is written, which is the value of a setting that is a text.
        hint (`Any`):
            Type of the setting's field.
        called (`str`):
            The setting's name for messages, e.g. `--tree_width`.

    Raises:
        InputError: the value is of another type, or not one of the field's choices.
    """
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if NoneType in hints and (value is None or (str not in hints and value in ("None", "none"))):
        return None
    kinds = {_kind(one): one for one in hints if one is not NoneType}
    if EnumMeta in kinds:
        kinds.pop(str, None)  # it is the name of a member
    for kind in KINDS if value is not None else ():
        if kind in kinds and (found := _as_kind(value, written, kind, kinds, called)) is not NOT_ONE:
            return found
    shown = f"is {value!r:.80}" if isinstance(value, str) else f"is {written}"
    if value is None or isinstance(value, dict | list):  # which may hold a key
        shown = "has no value" if value is None else f"is a {'list' if isinstance(value, list) else 'mapping'}"
    raise InputError(f"{called} {shown}: {_expectation(kinds, str(written))}")


def _kind(hint: Any) -> Any:
    kind = EnumMeta if isinstance(hint, EnumMeta) else get_origin(hint) or hint
    return list if kind is tuple else kind if kind in KINDS else Any


def _as_kind(value: Any, written: Any, kind: Any, kinds: Mapping[Any, Any], called: str) -> Any:
    if kind is Any:
        return value
    if kind is list:
        parts, texts = (value, written) if isinstance(value, list) else ([value], [written])
        texts = texts if isinstance(texts, list) else parts
        of = (get_args(kinds[list]) or (Any,))[0]
        if get_origin(kinds[list]) is tuple and len(parts) != len(get_args(kinds[list])):
            raise InputError(f"{called} is {written}: give a list of {len(get_args(kinds[list]))}")
        return [typed(part, text, of, called) for part, text in zip(parts, texts, strict=True)]
    if kind is dict and isinstance(value, str) and value.lstrip().startswith("{"):
        return parse_mapping(value, called)
    if isinstance(value, dict | list):
        return value if kind is dict and isinstance(value, dict) else NOT_ONE
    if kind is bool:
        word = str(written).lower()
        return WORDS[word] if word in (("true", "false") if str in kinds else WORDS) else NOT_ONE
    if kind in (int, float):
        number = as_number(value)
        if kind is int and isinstance(number, float) and number.is_integer():
            return int(number)  # 1e2
        return number if type(number) in (int, kind) else NOT_ONE
    if kind in (Literal, EnumMeta):
        choices = _choices(kinds[kind])
        written = "no" if value is False and "no" in choices else written  # off, false
        return next((choice for choice in choices if choice in (value, written)), NOT_ONE)
    return str(written) if kind is str else NOT_ONE


def _choices(hint: Any) -> list[Any]:
    return [getattr(member, "value", member) for member in (hint if isinstance(hint, EnumMeta) else get_args(hint))]


def _expectation(kinds: Mapping[Any, Any], written: str) -> str:
    choices = [str(choice) for kind in (Literal, EnumMeta) if kind in kinds for choice in _choices(kinds[kind])]
    if choices and str not in kinds:
        return (len(choices) > MAX_CHOICES and nearest(written, choices)) or f"choose one of {', '.join(choices)}"
    return f"give {' or '.join(text for kind, text in KINDS.items() if kind in kinds and text)}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str | None:
    """Return the question for the known names that are nearest, or `None` if none is near."""
    names = list(dict.fromkeys(known))
    near = [other for other in names if len(name) > 2 and other.startswith(name)][:3]
    near = near or difflib.get_close_matches(name, names, n=2, cutoff=0.75)
    return f"did you mean {' or '.join(prefix + other for other in near)}?" if near else None


def parse_mapping(text: str, called: str) -> dict[str, Any]:
    """Return the mapping in JSON.

    Raises:
        InputError: it is not JSON, or has a key twice.
    """
    try:
        return parse_json(text, unique_keys=True)
    except ValueError as error:
        raise InputError(
            f"{called} is not JSON ({error}): give e.g. '{{\"key\": 1}}', with double quotes within single ones and "
            "without a comma at the end"
        ) from error
