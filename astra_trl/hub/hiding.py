"""What belongs to this machine or its user: local paths are shortened, secrets are found before anything is sent."""

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.text import parse_json

_SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
_SECRET_PATTERNS = {"a Hub token": r"\bhf_[A-Za-z0-9]{16,}", "an API key": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"}
_SHORTEST_SECRET = 8
# Absolute, of the user's home, relative, or with more parts than a Hub id has.
_LOCAL = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|[\w.-]+(/[\w.-]+){2,}/?$")
# Lists of words, in which "/root" is a word: what no path is ever written to is not searched for paths.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
# Settings whose values are words of the vocabulary, or text of the model's makers.
_WORDS = re.compile(r"_tokens?(_decoder)?$|^chat_template$")


def last_part(value: str) -> str:
    """The last part of a path of this machine; any other text, as a Hub id, as it is."""
    if "\n" in value or "://" in value:
        return value
    text = value.rstrip("/\\")
    local = _LOCAL.match(value) or os.path.exists(text)
    return (re.split(r"[/\\]", text)[-1] or value) if local else value


def shortened(settings: Any) -> Any:
    """JSON with every path of this machine shortened to its last part, but words of a vocabulary as they are."""
    if isinstance(settings, dict):
        return {key: value if _WORDS.search(key) else shortened(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [shortened(value) for value in settings]
    return last_part(settings) if isinstance(settings, str) else settings


class Secrets:
    """What must not be in anything that is sent, and a search for it.

    Args:
        folder (`Path`): The run's folder, whose whole path nobody need know.
        token (`str`, *optional*): The token in use.
    """

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.values: dict[str, str] = {} if not token else {token: "the Hub token in use"}
        for name, value in os.environ.items():
            if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST_SECRET:
                self.values.setdefault(value, f"the value of the environment variable {name}")
        home, run = Path.home(), folder.resolve()
        named = {run: run.name, folder.absolute(): run.name, home.resolve(): "~", home: "~"}
        self._paths = {
            re.compile(rf"(?<![\w.-]){re.escape(written)}(?![\w.-])"): name
            for path, name in named.items()
            if len(path.parts) > 1  # a home folder of "/" is in every path
            for written in {str(path), json.dumps(str(path))[1:-1]}
        }

    def hide_paths(self, text: str) -> str:
        """The text with the run's folder by its name and the home folder as `~`."""
        for path, name in self._paths.items():
            text = path.sub(name.replace("\\", r"\\"), text)
        return text

    def refuse(self, staged: Path) -> None:
        """`InputError` with the name of the first file of a folder that holds a secret, but not the secret."""
        for file in sorted(path for path in staged.rglob("*") if path.is_file()):
            for text in _texts(file):
                if found := self._found(text, paths=file.name not in _VOCABULARIES):
                    raise InputError(
                        f"nothing was pushed, as {file.relative_to(staged).as_posix()} would hold {found}: take it "
                        "out of the run's file or setting that it is from, then push again"
                    )

    def _found(self, text: str, paths: bool) -> str | None:
        for value, what in self.values.items():
            if value in text or json.dumps(value)[1:-1] in text:
                return what
        for what, pattern in _SECRET_PATTERNS.items():
            if re.search(pattern, text):
                return f"what looks like {what}"
        return "a path of this machine" if paths and any(path.search(text) for path in self._paths) else None


def _texts(file: Path) -> Iterator[str]:
    # A text's lines; of weights, the header, which may hold notes of any kind.
    if file.suffix == ".safetensors":
        yield json.dumps(safetensors_header(file), ensure_ascii=False)
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from lines


def safetensors_header(file: Path) -> Mapping[str, Any]:
    """The header of a safetensors file; `InputError` where it is none."""
    with file.open("rb") as data:
        start = data.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        try:
            header = parse_json(data.read(size)) if 0 < size < 100_000_000 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file.name} is no safetensors file: save the model again, then push it")
    return header
