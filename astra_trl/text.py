"""Untrusted text: made safe to show, and parsed as JSON or YAML."""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
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


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parse JSON. Raises `ValueError` with a message of one line; with `unique_keys` also if a key is repeated."""
    return _parse(partial(json.loads, object_pairs_hook=_unique) if unique_keys else json.loads, text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return data


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises `ValueError` with a message of one line."""
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"it holds {type(data).__name__}, not an object")
    return data


class _UniqueKeys(yaml.composer.Composer):
    # Mappings whose keys are written once; YAML itself would let the last one win.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    problem = f"key {key.value!r} is given twice, first in line {lines[key.value]}"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                lines[key.value] = key.start_mark.line + 1
        return node


class _Loader(_UniqueKeys, yaml.SafeLoader):
    # As in YAML 1.2 and JSON, 1e-5 is a number.
    yaml_implicit_resolvers = {key: [*kinds] for key, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"]
)


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    # Every value as the text that is written.
    pass


def parse_yaml(text: str, *, as_text: bool = False) -> Any:
    """Parse YAML of plain values, or with `as_text` each value as it is written.

    Raises `ValueError` for a key that is repeated, if a value contains itself, or for more than `MAX_VALUES`.
    """
    data = _parse(partial(yaml.load, Loader=_TextLoader if as_text else _Loader), text)
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
    except yaml.reader.ReaderError as error:
        raise ValueError(f"it is not text: character {error.position + 1} is U+{error.character:04X}") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(_place(error)) from error
    except (yaml.YAMLError, TypeError, AttributeError) as error:  # yaml raises the last two for broken tags
        raise ValueError(" ".join(str(error).split())) from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    problem = str(error.problem or error.context)
    if problem.startswith("but "):  # the second half of a sentence
        problem = f"{error.context} {problem}"
    if "character '\\t'" in problem:
        problem = "a tab: indent with spaces"
    return " ".join(f"line {mark.line + 1}: {problem}".split()) if mark else problem
