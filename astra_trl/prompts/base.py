"""Openings from a named set, a local file or a Hub dataset."""

import csv
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError

logger = logging.getLogger(__name__)

# What a column of openings is usually called, tried in this order where more than one column holds text.
COLUMNS = ("opening", "prompt", "text", "question")


def load_prompts(
    source: str | Path, split: str = "train", column: str | None = None, limit: int | None = None, seed: int = 0
) -> list[str]:
    """Openings of `source` in their order there, without blank and repeated ones (one log line counts those).

    Args:
        source (`str` or `Path`):
            A name from `NAMED`, a local file (.txt with one opening per line, .json, .jsonl, .csv, .parquet), or else
            a Hub dataset id.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a named set or a Hub dataset. A local file is all `"train"`.
        column (`str`, *optional*):
            Column with the openings. Without it: the only text column, else the first of `COLUMNS` there is.
        limit (`int`, *optional*):
            Keep a sample of at most this many openings, drawn with `seed`.

    Raises:
        InputError: `source` cannot be read, or a row of it is not text, or no opening is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} leaves no opening: give 1 or more, or None for all of '{source}'")
    path = Path(os.path.expanduser(source))
    rows: Iterable[object]
    if source in NAMED:
        splits = NAMED[str(source)]()
        if split not in splits:
            raise InputError(f"'{source}' has no split '{split}': give one of {', '.join(splits)}")
        rows = _column({"opening": list(splits[split]["opening"])}, column, source)
    elif os.path.isfile(path) or path.suffix.lower() in READERS:
        rows = _column(_read_file(path, split), column, source)
    else:
        rows = _read_hub(str(source), split, column)
    openings = _distinct(rows, source)
    if limit is None or limit >= len(openings):
        return openings
    return [openings[i] for i in sorted(random.Random(seed).sample(range(len(openings)), limit))]


@dataclass(frozen=True)
class PromptSet(Sequence[str]):
    """The openings of `load_prompts(name, split)`, loaded when first looked at: naming a set costs nothing."""

    name: str
    split: str = "train"

    @cached_property
    def _openings(self) -> list[str]:
        return load_prompts(self.name, self.split)

    def __len__(self) -> int:
        return len(self._openings)

    def __getitem__(self, index: Any) -> Any:
        return self._openings[index]


def _convokit_reddit() -> Mapping[str, Any]:
    from astra_trl.prompts.convokit import build_convokit_reddit

    return build_convokit_reddit()


def _sandbox() -> Mapping[str, Any]:
    world = json.loads((files("astra_trl") / "sandbox" / "world" / "world.json").read_text(encoding="utf-8"))
    return {split: {"opening": rows} for split, rows in world["openings"].items()}


NAMED: dict[str, Callable[[], Mapping[str, Any]]] = {"convokit-reddit": _convokit_reddit, "sandbox": _sandbox}


# `datasets` reads none of these files: it makes timestamps of texts like "2020-01-02", one lone surrogate is an error
# without a row, an unquoted comma in a CSV drops what is before it, [1] in a file's name is a pattern, and a copy of
# the file stays in the user's cache. Lines end at "\n" only: U+2028 and form feeds are part of the text.
def _read_txt(path: Path) -> dict[str, list]:
    return {"text": path.read_text(encoding="utf-8-sig").split("\n")}


def _read_json(path: Path) -> dict[str, list]:
    return _columns(json.loads(path.read_text(encoding="utf-8-sig")))


def _read_jsonl(path: Path) -> dict[str, list]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
    return _columns(rows)


def _read_csv(path: Path) -> dict[str, list]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"row {number} has more fields than the header: quote texts with commas in them")
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


def _read_file(path: Path, split: str) -> dict[str, list]:
    if not path.is_file():
        raise InputError(f"no such file: '{path}' (seen from {Path.cwd()}): check the path")
    if path.suffix.lower() not in READERS:
        raise InputError(f"cannot read '{path}': give a {', '.join(READERS)} file")
    # Else one file named for training and for evaluation would be measured on what was trained on.
    if split != "train":
        raise InputError(f"'{path}' is one file, all of it 'train': give another file for split '{split}'")
    try:
        return READERS[path.suffix.lower()](path)
    # Undecodable bytes, bad JSON and pyarrow's errors are ValueErrors.
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read '{path}' ({_why(error)}): mend it, or save it again in UTF-8") from error


def _columns(rows: object) -> dict[str, list]:
    """Columns of rows that are objects; one column `text` of rows that are not."""
    if not isinstance(rows, list):
        raise ValueError(f"it holds one {type(rows).__name__}, not a list of strings or of objects")
    if not any(isinstance(row, dict) for row in rows):
        return {"text": rows}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {type(row).__name__} among objects")
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _read_hub(source: str, split: str, column: str | None) -> Iterable[object]:
    import datasets
    from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the Hub client runs on

    if not source.strip():
        raise InputError(f"the prompt set has no name: give one of {', '.join(NAMED)}, a file or a dataset id")
    try:
        dataset = datasets.load_dataset(source, split=split)
    # RuntimeError: a loading script; ValueError: a malformed id, an unknown split or configuration.
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'{source}' is no prompt set ({', '.join(NAMED)}) and no file, and was tried as a Hub dataset with split "
            f"'{split}': check the name, the split and the network ({_why(error)})"
        ) from error
    text = [name for name, kind in dataset.features.items() if getattr(kind, "dtype", "").endswith("string")]
    return dataset[_pick(dataset.column_names, text, column, source)]


def _column(columns: dict[str, list], column: str | None, source: object) -> list:
    def is_text(rows: list) -> bool:  # letters tell it from ids and figures: a CSV has no types
        return any(isinstance(row, str) and any(map(str.isalpha, row)) for row in rows)

    text = [name for name, rows in columns.items() if is_text(rows)]
    return columns[_pick(list(columns), text, column, source)] if columns else []


def _pick(names: list[str], text: list[str], column: str | None, source: object) -> str:
    if column is not None and column not in names:
        raise InputError(f"'{source}' has no column '{column}': give one of {', '.join(names)}")
    if column is not None or len(names) == 1:
        return column or names[0]
    for name in text if len(text) == 1 else [name for name in COLUMNS if name in names]:
        return name
    raise InputError(f"which column of '{source}' holds the openings? Give column= one of {', '.join(names)}")


def _distinct(rows: Iterable[object], source: object) -> list[str]:
    """Rows without white space around them, each once; none that is blank."""
    seen: dict[str, None] = {}
    total = blank = 0
    for total, row in enumerate(rows, start=1):
        if not isinstance(row, str):
            kind = "null" if row is None else type(row).__name__
            raise InputError(f"'{source}', row {total} is {kind}, not text: mend or remove it, or name another column")
        # No tokenizer can encode half a surrogate pair; both come of broken exports.
        if "\0" in row or any("\ud800" <= char <= "\udfff" for char in row):
            raise InputError(f"'{source}', row {total} holds a NUL or half a surrogate pair: mend or remove it")
        if row.strip():
            seen.setdefault(row.strip())
        else:
            blank += 1
    if not seen:
        raise InputError(f"'{source}' holds no opening ({total} rows, {blank} blank): give at least one")
    if total > len(seen):
        logger.warning("%s: skipped %d blank rows and %d duplicates", source, blank, total - blank - len(seen))
    return list(seen)


def _why(error: BaseException) -> str:
    """Kind and first line of `error`, or of its cause where `datasets` only says that an error occurred."""
    if str(error).startswith("An error occurred") and error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
