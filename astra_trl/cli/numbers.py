"""Numbers of flags and YAML files, checked before anything is loaded."""

from dataclasses import Field
from typing import Any, get_args, get_origin

from astra_trl.errors import InputError
from astra_trl.numbers import as_number, check_number


def read_setting(value: Any, f: Field[Any]) -> Any:
    """Return the value of a field; a number or numbers if the field holds such, as YAML reads 1e-5 as a text.

    Raises:
        InputError: the value is not a number that the field may have.
    """
    if not is_numeric(f.type):
        return value
    if f.default is None and str(value).lower() in ("none", "null"):  # as TRL's parser has it
        return None
    kinds = get_args(f.type) or (f.type,)
    if get_origin(f.type) not in (list, tuple):
        return _read(f.name, value, float in kinds)
    values = value if isinstance(value, list | tuple) else [value]
    if get_origin(f.type) is tuple and len(values) != len(kinds):
        raise InputError(f"--{f.name} must be {len(kinds)} numbers, got {value!r:.80}: give a list in a YAML file")
    return [_read(f.name, part, float in kinds) for part in values]


def is_numeric(kind: Any) -> bool:
    """Return `True` for the type of a field that holds a number or a list of them."""
    kinds = {*(get_args(kind) or (kind,))}
    return bool(kinds & {int, float}) and str not in kinds


def _read(name: str, value: Any, fraction: bool) -> Any:
    number = as_number(value)
    check_number(name, number, f"--{name}")
    if not fraction and number != int(number):
        raise InputError(f"--{name} must be a whole number, got {value!r}")
    return number if fraction else int(number)
