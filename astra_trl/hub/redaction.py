"""Redaction of what belongs to this machine or its user: local paths are shortened, secrets stop an upload."""

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

from astra_trl.backends.api.keys import SECRET_NAMES
from astra_trl.errors import InputError
from astra_trl.text import parse_json

# What detect-secrets does not find.
_PATTERNS = {
    "a Hub token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "an API key": re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}|\bGOCSPX-[\w-]{20,}|\bya29\.[\w-]{30,}"),
    "a GitHub token": re.compile(r"\bgithub_pat_\w{40,}"),
    "a Slack token": re.compile(r"\bx(app|oxe)-\d-[\w-]{20,}"),
    "a private key": re.compile(r"BEGIN (ENCRYPTED|SSH2 ENCRYPTED|PGP) PRIVATE KEY"),
}
# Detectors of detect-secrets that the words of a model do not set off, as those of entropy, of the word "password" and
# of IP addresses would.
_DETECTORS = (
    "AWS Access Key", "Azure Storage Account access key", "Basic Auth Credentials", "Discord Bot Token",
    "GitHub Token", "GitLab Token", "JSON Web Token", "Mailchimp Access Key", "NPM tokens", "Private Key",
    "PyPI Token", "SendGrid API Key", "Slack Token", "Square OAuth Secret", "Stripe Access Key",
    "Telegram Bot Token", "Twilio API Key",
)  # fmt: skip
_BLOCK = 2**20  # characters that are searched at a time: line by line, a vocabulary would take many seconds
_MIN_SECRET_LENGTH = 8
# Absolute, in the user's home, relative, or with more parts than a Hub id has.
_LOCAL = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|[\w.-]+(/[\w.-]+){2,}/?$")
# Lists of words, in which "/root" is a word. No path is ever written to them, so they are not searched for paths.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
# Settings whose values are words of the vocabulary, or text by the authors of the model.
_WORDS = re.compile(r"_tokens?(_decoder)?$|^chat_template$")


def last_part(value: str) -> str:
    """Return the last part of a path of this machine, and any other text (e.g. a Hub id) unchanged."""
    if "\n" in value or "://" in value:
        return value
    text = value.rstrip("/\\")
    local = _LOCAL.match(value) or os.path.exists(text)
    return (re.split(r"[/\\]", text)[-1] or value) if local else value


def last_parts(settings: Any) -> Any:
    """Return JSON with the last part of every path of this machine; words of a vocabulary are unchanged."""
    if isinstance(settings, dict):
        return {key: value if _WORDS.search(key) else last_parts(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [last_parts(value) for value in settings]
    return last_part(settings) if isinstance(settings, str) else settings


class Secrets:
    """Texts that must not be uploaded, and a search for them.

    Args:
        folder (`Path`): The run's folder, whose path is private.
        token (`str`, *optional*): The token in use.
    """

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.values: dict[str, str] = {} if not token else {token: "the Hub token in use"}
        for name, value in os.environ.items():
            if SECRET_NAMES.search(name) and len(value) >= _MIN_SECRET_LENGTH:
                self.values.setdefault(value, f"the value of the environment variable {name}")
        home, run = Path.home(), folder.resolve()
        names = {run: run.name, folder.absolute(): run.name, home.resolve(): "~", home: "~"}
        self._paths = {
            re.compile(rf"(?<![\w.-]){re.escape(text)}(?![\w.-])"): name
            for path, name in names.items()
            if len(path.parts) > 1  # a home folder of "/" is in every path
            for text in {str(path), json.dumps(str(path))[1:-1]}
        }

    def hide_paths(self, text: str) -> str:
        """Return the text with the name of the run's folder in place of its path, and `~` for the home folder."""
        for path, name in self._paths.items():
            text = path.sub(name.replace("\\", r"\\"), text)
        return text

    def refuse(self, staged: Path) -> None:
        """Raise `InputError` if a file of a folder holds a secret; the message names the file and the line, not the
        secret."""
        for file in sorted(path for path in staged.rglob("*") if path.is_file()):
            paths = file.name not in _VOCABULARIES
            for number, lines in _blocks(file):
                if kind := self._kind_of_secret("".join(lines), paths):
                    places = (number + place for place, line in enumerate(lines) if self._kind_of_secret(line, paths))
                    name = file.relative_to(staged).as_posix()
                    where = f"{name}, line {next(places, number)}," if number else name
                    raise InputError(
                        f"nothing was pushed: {where} would hold {kind}: remove it from the file or setting of the "
                        "run that it comes from, then push again"
                    )

    def _kind_of_secret(self, text: str, paths: bool) -> str | None:
        for value, kind in self.values.items():
            if value in text or json.dumps(value)[1:-1] in text:
                return kind
        for kind, pattern in _PATTERNS.items():
            if pattern.search(text):
                return f"what looks like {kind}"
        for kind, detector in _detectors().items():
            if any(detector.analyze_string(text)):
                return f"what looks like a secret ({kind})"
        return "a path of this machine" if paths and any(path.search(text) for path in self._paths) else None


@cache
def _detectors() -> dict[str, Any]:
    classes: Any = get_mapping_from_secret_type_to_class()
    return {kind: classes[kind]() for kind in _DETECTORS}


def _blocks(file: Path) -> Iterator[tuple[int, list[str]]]:
    # Lines of a text, with the number of the first; of weights the header, which may hold any metadata, with a 0.
    if file.suffix == ".safetensors":
        yield 0, [json.dumps(_safetensors_header(file), ensure_ascii=False)]
        return
    number = 1
    with file.open(encoding="utf-8", errors="replace") as text:
        while lines := text.readlines(_BLOCK):
            yield number, lines
            number += len(lines)


def _safetensors_header(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as data:
        start = data.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        try:
            header = parse_json(data.read(size)) if 0 < size < 100_000_000 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise InputError(f"{file.name} is not a safetensors file: save the model again, then push it")
    return header
