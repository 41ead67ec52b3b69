"""Files with settings: the YAML, or JSON, of `--config` and of a run's `config.yaml`."""

import codecs
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from astra_trl.cli.config import RunArguments
from astra_trl.errors import InputError
from astra_trl.text import parse_json, parse_yaml

KINDS = {type(None): "it is empty", list: "it is a list", str: "it is text"}
# A run and a dry run write all of these.
RESOLVED = {f.name for f in fields(RunArguments) if f.default is not None} - {"scorer", "dry_run"}


@dataclass(frozen=True)
class SettingsFile:
    """Settings in a file, by name.

    `texts` are the same as they are written: `no`, which is false in YAML, and `0123456`, which is a number, are the
    values of settings that are texts.
    """

    path: str | None = None
    content: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_resolved(self) -> bool:
        """`True` for the file of a run or of a dry run, which has every setting and not only those that were given."""
        return self.settings.keys() >= RESOLVED

    @contextmanager
    def on_disk(self) -> Iterator[str | None]:
        """Give the path of a file that can be read again, if this one is a pipe; otherwise `None`."""
        if self.path is None or Path(self.path).is_file():
            yield None
            return
        with NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as copy:
            copy.write(self.content)
            copy.flush()
            yield copy.name


def read_settings_file(path: str | Path | None) -> SettingsFile:
    """Return the settings in a file, which is read once: it may be a pipe. Names may be written with hyphens.

    Raises:
        InputError: the file cannot be read, or does not hold a mapping of names.
    """
    if path is None:
        return SettingsFile()
    called = f"config {str(path)!r}"
    try:
        data = Path(path).read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{called} cannot be read: line {line} is not UTF-8: save it as UTF-8 text") from error
    except OSError as error:
        inside = Path(path) / "config.yaml"  # of a run
        fix = f"give '{inside}'" if inside.is_file() else "give a YAML file"
        raise InputError(f"{called} cannot be read: {error.strerror or error}: {fix}") from error
    try:
        settings, texts = _parse(text)
    except ValueError as error:
        raise InputError(f"{called} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        kind = KINDS.get(type(settings), "it is one value")
        raise InputError(f"{called} holds no settings, {kind}: give lines of `flag: value`, with a space between")
    return SettingsFile(str(path), text, _by_name(settings, called), _by_name(texts, called))


def _parse(text: str) -> tuple[Any, dict[Any, Any]]:
    # JSON is YAML, except that it may be indented with tabs.
    if text.lstrip().startswith("{"):
        try:
            return parse_json(text, unique_keys=True), {}
        except ValueError:
            pass
    return parse_yaml(text), parse_yaml(text, as_text=True)


def _by_name(settings: Mapping[Any, Any], called: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in settings.items():
        name = str(key).replace("-", "_")
        if name in named:
            raise InputError(f"{called}: {name} is given twice, with a hyphen and without: give it once")
        named[name] = value
    return named


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings in a file that a run wrote."""
    return read_settings_file(path).settings
