"""Folders and files that are written to: writable, with one writer, and never over the files of a run."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from astra_trl.errors import InputError
from astra_trl.text import parse_object

# They stay in the folder; the system drops the lock itself when its process ends, however it ends. Who holds it is in
# a file of its own, as some versions of filelock empty the lock's.
LOCK, HOLDER = ".lock", ".lock.json"
FULL = (ENOSPC, EDQUOT, EFBIG)
# Texts by which torch and safetensors report that a file cannot be written to its end.
_FULL_TEXTS = ("inline_container", "iostream error", "No space left", "File too large", "quota exceeded")
_FILES_OF_RUNS = ("config.yaml", "rounds.jsonl", "exchanges.jsonl", "evaluation.json", "trainer_state.json")


def lock_folder(folder: str | os.PathLike[str], advice: str) -> FileLock:
    """Make a folder, and keep the other processes that lock it from writing to it.

    The lock ends with its process, or when it is released or deleted.

    Args:
        folder (`str`): The folder, which is made with its parents.
        advice (`str`): The end of the messages, e.g. `"choose another --output_dir"`.

    Raises:
        InputError: the folder cannot be written to, or another process holds its lock.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = path.resolve() / LOCK
        lock = FileLock(file, timeout=0, is_singleton=True, thread_local=False)
        lock.acquire()
        if lock.lock_counter == 1:
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
            file.with_name(HOLDER).write_text(json.dumps(holder), encoding="utf-8")
    except Timeout as error:
        raise InputError(
            f"'{path}' is being written by {_holder(file)}: wait until it ends, stop it, or {advice}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise unwritable(path, error, advice) from error
    return lock


def unwritable(path: str | os.PathLike[str], error: Exception, advice: str) -> InputError:
    """Return the error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"'{path}' cannot be written ({reason}): {advice}")


@contextmanager
def saving_weights() -> Iterator[None]:
    """Turn the errors by which torch and safetensors report a full disk into an `OSError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if any(text in str(error) for text in _FULL_TEXTS):
            raise OSError(ENOSPC, str(error)) from error
        raise


@contextmanager
def explain_full_disk(folder: str | os.PathLike[str], advice: str) -> Iterator[None]:
    """Turn the error of a full disk into an `InputError` that ends with the advice."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"the disk of '{Path(folder)}' is full ({reason}): free some space. {advice}") from error


@contextmanager
def explain_output() -> Iterator[None]:
    """Write what is printed in the block to its end, or raise `InputError` if its disk is full."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail at the very end
        raise InputError(f"the output cannot be written ({error.strerror}): free some space") from error


def refuse_file_of_run(file: str | os.PathLike[str], advice: str) -> None:
    """Raise `InputError` if a file exists and is in the folder of a run or an evaluation, or in one of its
    checkpoints."""
    path = Path(file)
    if os.path.lexists(path) and (is_of_run(path.parent) or is_of_run(path.parent.parent)):
        raise InputError(f"'{path}' is a file of a run or an evaluation, which is never written over: {advice}")


def is_of_run(folder: Path) -> bool:
    """`True` if a folder holds a run or an evaluation."""
    return any((folder / name).exists() for name in _FILES_OF_RUNS)


def _holder(file: Path) -> str:
    try:
        holder: dict[str, Any] = parse_object(file.with_name(HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, LookupError):  # not written yet
        return "another process"
