"""Answers of endpoints on disk, by the whole request: an equal request is made once."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from astra_trl.backends.api.calls import Answer
from astra_trl.errors import InputError


class ResponseCache:
    """A folder with one file per answer, for several endpoints, models and processes. A damaged file is ignored."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(self.folder, error.strerror) from error

    @staticmethod
    def _unusable(path: Path, reason: str | None) -> InputError:
        return InputError(f"response_cache '{path}' cannot be used ({reason}): give another folder")

    def key(self, url: str, request: Mapping[str, Any]) -> str:
        """Return the key of a request, which depends on all of it: endpoint, model, conversation, seed, sampling."""
        return _digest([url, request], 20)

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, or `None`."""
        file = self._file(key)
        try:
            with file.open("rb") as opened:
                state, data = os.fstat(opened.fileno()), opened.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(file, error.strerror) from error
        self._refuse_others(file, state)
        try:
            entry = json.loads(data)
            if entry["digest"] != _digest(entry["answer"]):
                return None
            logprobs = entry["answer"]["logprobs"]
            return Answer(**{**entry["answer"], "logprobs": None if logprobs is None else tuple(logprobs)})
        except (ValueError, KeyError, TypeError, RecursionError):  # damaged
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Write an answer, completely or not at all."""
        file, data = self._file(key), asdict(answer)
        try:
            file.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
                temporary.write(_json({"digest": _digest(data), "answer": data}))
            os.replace(temporary.name, file)
        except OSError as error:
            raise self._unusable(file, error.strerror) from error

    def _refuse_others(self, file: Path, state: os.stat_result) -> None:
        # Who can write an answer can make a target look harmful or harmless.
        if os.name == "posix" and state.st_uid not in (os.geteuid(), 0):
            raise self._unusable(file, "it belongs to another user")
        if os.name == "posix" and state.st_mode & stat.S_IWOTH:
            raise self._unusable(file, "every user may write to it")

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _digest(data: Any, size: int = 16) -> str:
    return hashlib.blake2b(_json(data), digest_size=size).hexdigest()


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()
