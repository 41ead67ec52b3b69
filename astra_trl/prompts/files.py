"""Local files as tables: columns by name, or rows without columns."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from astra_trl.errors import InputError
from astra_trl.prompts.columns import COLUMNS, Table, as_table
from astra_trl.prompts.rows import is_chat, kind_of
from astra_trl.text import parse_yaml

COMPRESSED: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# Known by their first bytes, whatever their names are.
OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive, as files of Excel and Word are: unpack it, or save a sheet as CSV, a text as .txt",
    b"\xd0\xcf\x11\xe0": "an old file of Excel or Word: save a sheet as CSV, or a text as .txt",
    b"%PDF": "a PDF: copy its texts into a .txt file, one per line",
    b"{\\rtf": "an RTF document: save it as plain text",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"\x1f\x8b": "compressed by gzip: let its name end in .gz, e.g. .jsonl.gz",
    b"BZh": "compressed by bzip2: let its name end in .bz2, e.g. .jsonl.bz2",
    b"\xfd7zXZ": "compressed by xz: let its name end in .xz, e.g. .jsonl.xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard: decompress it with `unzstd`",
    b"<!DOCTYPE html": "a web page: download the file itself (on GitHub: 'Raw')",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
}

_BLANK = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[A-Za-z][\w.\-/]*", re.ASCII)  # one word, as most columns are called
_SEPARATOR = re.compile(r'\A"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's own first line


# `datasets` and pandas read none of these files: `datasets` makes timestamps of texts like "2020-01-02", one lone
# surrogate is an error without a row, an unquoted comma in a CSV drops the text before it, [1] in a file's name is a
# pattern, and a copy of the file stays in the user's cache. csv.Sniffer may take a letter for the delimiter. Lines end
# at "\n" only: U+2028 and form feeds are text.
def _read_txt(text: str, asked: Sequence[str]) -> Table:
    _refuse_json(text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    names = lines[0].split(_delimiter(lines[0]))
    if len(names) > 1 and all(map(_NAME.fullmatch, names)) and any(name.casefold() in COLUMNS for name in names):
        raise ValueError(f"its first line has names of columns, {_first(names)}: let its name end in .csv")
    return lines


def _refuse_json(text: str) -> None:
    if not text.lstrip().startswith(("{", "[")):
        return
    try:
        _json_values(text)
    except ValueError:
        return
    raise ValueError("it holds JSON: let its name end in .jsonl")


def _read_json(text: str, asked: Sequence[str]) -> Table:
    values = _json_values(text)
    return _rows(values[0]) if len(values) == 1 else as_table(values)


def _read_jsonl(text: str, asked: Sequence[str]) -> Table:
    values = _json_values(text)
    return _rows(values[0]) if len(values) == 1 and isinstance(values[0], list) else as_table(values)


def _json_values(text: str) -> list:
    # One after the other, on lines of their own or not: a .json file may hold JSON Lines, and a .jsonl file an array.
    decode, values, place = json.JSONDecoder().raw_decode, [], 0
    try:
        while (place := _end_of_blank(text, place)) < len(text):
            value, place = decode(text, place)
            values.append(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno} is not JSON from column {error.colno} on ({error.msg}): fix it, or let its name end "
            "in what it is, e.g. .txt"
        ) from error
    except RecursionError:
        raise ValueError("its brackets are too deep: give a list of texts or of objects") from None
    return values


def _end_of_blank(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _read_yaml(text: str, asked: Sequence[str]) -> Table:
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"it is not YAML that can be read ({error}): fix it") from error
    return _rows(value)


def _rows(value: object) -> Table:
    if not isinstance(value, list):
        raise ValueError(
            f"it holds one {kind_of(value)}, not a list of texts or of objects: give a file with such a list alone"
        )
    if is_chat(value) and value and all(len(message) == 2 for message in value):
        return [value]  # one conversation
    return as_table(value)


def _read_csv(text: str, asked: Sequence[str]) -> Table:
    _refuse_json(text)
    separator = _SEPARATOR.match(text)
    text = text[separator.end() :] if separator else text
    delimiter = separator[1] if separator else _delimiter(text.partition("\n")[0])
    limit = csv.field_size_limit(2**31 - 1)  # 128 KiB by default, and shared by the whole process
    try:
        lines = list(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)))
    except csv.Error as error:
        raise ValueError(f"it is not a whole CSV ({error}): check its quotes") from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        return []
    header, *rows = lines
    _refuse_row_as_header(header, asked)
    for number, row in enumerate(rows, start=1):
        if len(row) > len(header):
            raise ValueError(
                f"row {number} has more fields than the header ({len(row)}, not {len(header)}): quote texts with "
                f"{delimiter!r} in them"
            )
        row += [None] * (len(header) - len(row))  # type: ignore[list-item]
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)} if rows else []


def _delimiter(header: str) -> str:
    # The one that makes most columns of the names, of which few hold any of these; texts may hold all of them.
    return max(",;\t|", key=lambda delimiter: len(next(csv.reader([header[:10_000]], delimiter=delimiter), [])))


def _refuse_row_as_header(header: Sequence[str], asked: Sequence[str]) -> None:
    # Without a usual name, only single words are taken for names: a text must not be lost as one.
    names = [name for name in header if name]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have the same name in its first row, {_first(header)}: rename one")
    if not any(name in asked or name.casefold() in COLUMNS for name in names) and not all(map(_NAME.fullmatch, names)):
        raise ValueError(
            f"its first row, {_first(header)}, may be names of columns or an opening: put a row of names, e.g. "
            "'prompt', before the openings; or, if these are names, choose one as the column"
        )


def _first(header: Sequence[str]) -> str:
    return repr(", ".join(header))[:80]


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pydict()
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"it is not a whole Parquet file ({error_line(error)}): copy or write it again") from error


READERS: dict[str, Callable[[str, Sequence[str]], Table]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".yaml": _read_yaml,
}
SUFFIXES = (*READERS, ".parquet")
ALIASES = {".ndjson": ".jsonl", ".yml": ".yaml"}
# Of sources that are files, even if they do not exist: the rest may be ids of the Hub.
FILE_SUFFIXES = {*SUFFIXES, *ALIASES, *COMPRESSED, ".xlsx", ".xls", ".pdf", ".docx", ".zip"}


def local_file(source: str | Path) -> Path | None:
    """Return the path if `source` is a file or has the suffix of one, else `None`."""
    if "://" in str(source):
        raise InputError(f"'{source}' is an address: download it, and give the file")
    path = Path(os.path.expanduser(source))
    return path if os.path.isfile(path) or path.suffix.lower() in FILE_SUFFIXES else None


def split_column(source: str) -> tuple[str, str | None]:
    """Return the two parts of FILE:COLUMN, the column `None` if there is none.

    Files may have colons in their names, and Windows has one after a drive: the longest name that exists counts.
    """
    colons = [place for place, character in enumerate(source) if character == ":"]
    stops = [stop for stop in (len(source), *reversed(colons)) if os.path.exists(os.path.expanduser(source[:stop]))]
    stops += [stop for stop in colons if Path(source[:stop]).suffix.lower() in FILE_SUFFIXES]  # a file that is missing
    stops += [stop for stop in colons[:1] if stop > 1 and "://" not in source]  # a dataset of the Hub
    stop = (*stops, len(source))[0]
    return source[:stop], source[stop + 1 :] or None


def read_file(path: Path, split: str = "train", asked: Sequence[str] = ()) -> Table:
    """Return the content of a local file; `InputError` if it cannot be read.

    `asked` are the columns that the caller names, by which the header of a CSV is known.
    """
    if not path.is_file():
        raise InputError(f"no such file: '{path}' (seen from {Path.cwd()}): check the path")
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    suffix = inner if outer in COMPRESSED else outer
    suffix = ALIASES.get(suffix, suffix)
    try:
        with COMPRESSED.get(outer, open)(path, "rb") as file:
            data = file.read()
        kinds = [kind for start, kind in OTHER_KINDS.items() if data[:64].lstrip().startswith(start)]
        if kinds and not (suffix == ".parquet" and data.startswith(b"PAR1")):
            raise ValueError(f"it is {kinds[0]}")
        if suffix not in SUFFIXES or (suffix == ".parquet" and outer in COMPRESSED):
            raise ValueError(f"give a {', '.join(SUFFIXES)} file, or a compressed text (.jsonl.gz)")
        # Otherwise a file named for both training and evaluation would be evaluated on what was trained on.
        if split != "train":
            raise InputError(f"'{path}' is one file, all of it 'train': give another file for split '{split}'")
        if not data:
            raise ValueError("it is empty, 0 bytes: check how it was written")
        return _read_parquet(path) if suffix == ".parquet" else READERS[suffix](_decode(data), asked)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({error_line(error)}): check the file, or copy it again") from error
    except ValueError as error:
        raise InputError(f"cannot read '{path}': {error}") from error


def _decode(data: bytes) -> str:
    encoding = json.detect_encoding(data)  # by a byte order mark, or the zeros of UTF-16 and UTF-32
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\0" in data:
            raise ValueError(f"it is not text but binary, or damaged ({error}): check what it is") from error
        start = data.rfind(b"\n", 0, error.start) + 1
        number = data.count(b"\n", 0, start) + 1
        line = data[start : start + 200].partition(b"\n")[0].decode("cp1252", "replace").strip()
        raise ValueError(
            f"line {number} is not UTF-8. In Windows-1252 it reads {line!r:.80}: if that is "
            "right, convert the file by `iconv -f WINDOWS-1252 -t UTF-8`, else from the encoding that it was saved in"
        ) from error


def error_line(error: BaseException) -> str:
    """Return the kind and the first line of `error`, or of its cause if `datasets` only says that one occurred."""
    if str(error).startswith("An error occurred") and error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
