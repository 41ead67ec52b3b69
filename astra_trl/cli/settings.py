"""Settings in YAML files, and whether they are of their flags' types."""

from dataclasses import Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from astra_trl.cli.flags import LoadArguments, RunArguments
from astra_trl.errors import InputError
from astra_trl.scorers.named import ScorerArguments
from astra_trl.text import parse_yaml

# TRL's own flags, which may be null where an evaluation's have a default.
_LOADING = {f.name for f in fields(LoadArguments)}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; `InputError` where there is none."""
    try:
        settings = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config {str(path)!r} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"config {str(path)!r} holds no settings: give a YAML file of `flag: value` lines")
    return settings


def run_settings(tester: str) -> dict[str, Any]:
    """What the `config.yaml` of the run holds that trained this tester, where that is a run's folder; nothing else."""
    file = Path(tester) / "config.yaml"
    settings = read_settings(file) if file.is_file() else {}
    if "tree_depth" not in settings:  # others may have a file of that name
        return {}
    known = {f.name: f for cls in (RunArguments, ScorerArguments, LoadArguments) for f in fields(cls)}
    for key, value in settings.items():
        if key in known and not fits(value, known[key]) and not (key in _LOADING and value is None):
            raise InputError(f"config {str(file)!r}: {key} is {value!r:.80}, which no run writes: restore the file")
    if not isinstance(settings.get("seed", 0), int):
        raise InputError(f"config {str(file)!r}: seed is {settings['seed']!r:.80}, no number: restore the file")
    return settings


def fits(value: Any, f: Field[Any]) -> bool:
    """Whether a setting has the type of its flag, and is among its choices."""
    # transformers' parser, once made, has the fields' types without None.
    kinds = get_args(f.type) if NoneType in get_args(f.type) else (f.type,)
    if value is None:
        return f.default is None
    if get_origin(kinds[0]) is list:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | float if kinds[0] is float else kinds[0]):
        return isinstance(value, bool) and kinds[0] is bool
    return value in f.metadata.get("choices", [value])
