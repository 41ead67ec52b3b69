"""JSON and YAML that anybody may have written: read as data, or a `ValueError` in one line."""

import json
from collections.abc import Callable
from typing import Any

import yaml

MOST_VALUES = 1_000_000  # of a YAML file, each counted as often as it stands there by an alias


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds."""
    return _parsed(json.loads, text)


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: plain values, none of them within itself, and no more than `MOST_VALUES`."""
    data = _parsed(yaml.safe_load, text)
    # A short text may name a list of lists by aliases, and be without end where it is written out.
    left, values = MOST_VALUES, [data]
    while values:
        value = values.pop()
        if isinstance(value, list | dict):
            within = [*value, *value.values()] if isinstance(value, dict) else value
            left -= len(within)
            if left < 0:
                raise ValueError(f"it holds more than {MOST_VALUES} values")
            values += within
    return data


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text holds."""
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"it holds {type(data).__name__}, not an object")
    return data


def _parsed(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("its brackets are too deep") from None
    except (yaml.YAMLError, TypeError, AttributeError) as error:  # the latter of what yaml makes of broken tags
        raise ValueError(" ".join(str(error).split())) from error
