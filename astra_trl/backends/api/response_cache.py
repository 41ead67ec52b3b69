"""Answers of an endpoint on disk, by the whole request: asked for once, read ever after."""

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
    """One file an answer; a broken one is none.

    Args:
        folder (`str` or `Path`):
            May hold answers of other endpoints and models; several processes may share it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"response_cache {str(folder)!r} cannot be made ({error.strerror}): give another"
            ) from error

    def key(self, url: str, request: Mapping[str, Any]) -> str:
        """The name of a request, which depends on all of it: endpoint, model, what was said, seed, sampling."""
        return hashlib.blake2b(_json([url, request]), digest_size=20).hexdigest()

    def get(self, key: str) -> Answer | None:
        """The answer to a request, or `None`."""
        try:
            entry = json.loads(self._file(key).read_bytes())
            if entry["digest"] != _digest(entry["answer"]):
                return None
            logprobs = entry["answer"]["logprobs"]
            return Answer(**{**entry["answer"], "logprobs": None if logprobs is None else tuple(logprobs)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off or written over: it is asked again
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Writes an answer, as a whole or not at all."""
        file, data = self._file(key), asdict(answer)
        file.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as unfinished:
            unfinished.write(_json({"digest": _digest(data), "answer": data}))
        os.replace(unfinished.name, file)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _digest(data: Any) -> str:
    return hashlib.blake2b(_json(data), digest_size=16).hexdigest()


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True).encode()
