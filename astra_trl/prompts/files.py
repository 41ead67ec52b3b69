"""Local files as columns of rows."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from astra_trl.errors import InputError
from astra_trl.text import parse_json


# `datasets` and pandas read none of these files: `datasets` makes timestamps of texts like "2020-01-02", one lone
# surrogate is an error without a row, an unquoted comma in a CSV drops the text before it, [1] in a file's name is a
# pattern, and a copy of the file stays in the user's cache. Lines end at "\n" only: U+2028 and form feeds are text.
def _read_txt(path: Path) -> dict[str, list]:
    return {"text": path.read_text(encoding="utf-8-sig").split("\n")}


def _read_json(path: Path) -> dict[str, list]:
    return _columns(parse_json(path.read_text(encoding="utf-8-sig")))


def _read_jsonl(path: Path) -> dict[str, list]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return _columns(rows)


def _read_csv(path: Path) -> dict[str, list]:
    limit = csv.field_size_limit(2**31 - 1)  # 128 KiB by default, and shared by the whole process
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    finally:
        csv.field_size_limit(limit)
    if long_rows := [number for number, row in enumerate(rows, start=1) if None in row]:
        raise ValueError(f"row {long_rows[0]} has more fields than the header: quote texts with commas in them")
    return _columns(rows)


def _read_parquet(path: Path) -> dict[str, list]:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read().to_pydict()


READERS: dict[str, Callable[[Path], dict[str, list]]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def local_file(source: str | Path) -> Path | None:
    """Return the path if `source` is a file or has the suffix of one that can be read, else `None`."""
    path = Path(os.path.expanduser(source))
    return path if os.path.isfile(path) or path.suffix.lower() in READERS else None


def read_file(path: Path, split: str = "train") -> dict[str, list]:
    """Return the columns of a local file by name; `InputError` if it cannot be read."""
    if not path.is_file():
        raise InputError(f"no such file: '{path}' (seen from {Path.cwd()}): check the path")
    if path.suffix.lower() not in READERS:
        raise InputError(f"cannot read '{path}': give a {', '.join(READERS)} file")
    # Otherwise a file named for both training and evaluation would be evaluated on what was trained on.
    if split != "train":
        raise InputError(f"'{path}' is one file, all of it 'train': give another file for split '{split}'")
    try:
        return READERS[path.suffix.lower()](path)
    # Undecodable bytes, bad JSON and most of pyarrow's errors are ValueErrors.
    except (OSError, ValueError, NotImplementedError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({error_line(error)}): fix it, or save it again in UTF-8") from error


def _columns(rows: object) -> dict[str, list]:
    # The columns of rows that are objects; one column `text` of other rows.
    if not isinstance(rows, list):
        raise ValueError(f"it holds one {type(rows).__name__}, not a list of strings or of objects")
    if not any(isinstance(row, dict) for row in rows):
        return {"text": rows}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {type(row).__name__} among objects")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def error_line(error: BaseException) -> str:
    """Return the kind and the first line of `error`, or of its cause if `datasets` only says that one occurred."""
    if str(error).startswith("An error occurred") and error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
