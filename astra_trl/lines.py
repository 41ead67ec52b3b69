"""Files of a run: JSON, one object per line, that survive a crash."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.text import parse_object, visible


def as_line(data: Mapping[str, Any]) -> str:
    """Return a line of JSON. Half of a surrogate pair, which UTF-8 cannot encode, is escaped."""
    line = json.dumps(data, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(data)
    return line + "\n"


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the object of each line; nothing if the file does not exist. An unfinished last line, left by a crash,
    is skipped. Raises `InputError` if another line is damaged."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # cut off by a crash, possibly within a letter
                return
            try:
                yield parse_object(line)
            except ValueError as error:
                raise damaged_line(file, number, error) from error


def damaged_line(file: Path, number: int, error: Exception | str) -> InputError:
    """Return the error for a line with unexpected content."""
    return InputError(f"'{visible(str(file))}', line {number} is damaged ({error}): restore it, or remove that line")


def ends_with_newline(file: Path) -> bool:
    """`True` if the last line of a file is complete, or if the file is empty or does not exist."""
    if not file.exists() or not file.stat().st_size:
        return True
    with file.open("rb") as lines:
        lines.seek(-1, os.SEEK_END)
        return lines.read() == b"\n"


def add_lines(file: Path, lines: Iterable[str]) -> None:
    """Append lines to a file, which is made if necessary, and return once they are on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.writelines(lines)
    sync(file)


def write_whole(file: Path, content: str | Iterable[str]) -> None:
    """Write a file so that a crash leaves the old content or the new one, never a part."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as out:
        out.writelines([content] if isinstance(content, str) else content)
    put(unfinished, file)


def put(unfinished: Path, file: Path) -> None:
    """Rename a written file once it is on the disk."""
    sync(unfinished)
    unfinished.replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Return once a file, or the list of files in a folder, is on the disk and no longer only in memory."""
    if path.is_dir() and os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
