"""Answers of endpoints on disk, by the whole request: an equal request is made once."""

import hashlib
import json
import os
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
            raise InputError(
                f"response_cache {str(folder)!r} cannot be made ({error.strerror}): give another"
            ) from error

    def key(self, url: str, request: Mapping[str, Any]) -> str:
        """Return the key of a request, which depends on all of it: endpoint, model, conversation, seed, sampling."""
        return _digest([url, request], 20)

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, or `None`."""
        try:
            entry = json.loads(self._file(key).read_bytes())
            if entry["digest"] != _digest(entry["answer"]):
                return None
            logprobs = entry["answer"]["logprobs"]
            return Answer(**{**entry["answer"], "logprobs": None if logprobs is None else tuple(logprobs)})
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):  # missing or damaged
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Write an answer, completely or not at all."""
        file, data = self._file(key), asdict(answer)
        file.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            temporary.write(_json({"digest": _digest(data), "answer": data}))
        os.replace(temporary.name, file)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _digest(data: Any, size: int = 16) -> str:
    return hashlib.blake2b(_json(data), digest_size=size).hexdigest()


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()
