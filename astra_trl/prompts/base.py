"""Openings from a named prompt set, a local file or a Hub dataset."""

import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from astra_trl.conversation import Opening, Speaker, Turn, as_conversation
from astra_trl.errors import InputError
from astra_trl.prompts.files import error_line, local_file, read_file
from astra_trl.prompts.splits import split_openings

T = TypeVar("T")

logger = logging.getLogger(__name__)

COLUMNS = ("opening", "prompt", "text", "question", "messages")  # usual names of a column of openings, best first
CHAT_SPEAKERS: tuple[Speaker, ...] = ("system", "user", "assistant")


def load_prompts(
    source: str | Path, split: str = "train", column: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Opening]:
    """Return the openings of `source` in its order, without blank and repeated ones (one log line counts those).

    A row is a text, or a conversation in the chat format (a list of messages with role and content), which becomes an
    opening of several turns.

    Args:
        source (`str` or `Path`):
            A name from `NAMED`, a local file (.txt with one opening per line, .json, .jsonl, .csv, .parquet), or else
            a Hub dataset id.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a named set or a Hub dataset. A local file has only `"train"`.
        column (`str`, *optional*):
            Column of the openings. Defaults to the only column with text, else to the first of `COLUMNS`.
        limit (`int`, *optional*):
            Keep a sample of at most this many openings, drawn with `seed`.

    Raises:
        InputError: `source` cannot be read, has a row that is neither text nor a chat, or has no opening.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} leaves no opening: give 1 or more, or None for all of '{source}'")
    rows: Iterable[object]
    if source in NAMED:
        splits = NAMED[str(source)]()
        if split not in splits:
            raise InputError(f"'{source}' has no split '{split}': give one of {', '.join(splits)}")
        rows = _column({"opening": list(splits[split]["opening"])}, column, source)
    elif path := local_file(source):
        rows = _column(read_file(path, split), column, source)
    elif str(source).strip():
        dataset = load_hub(str(source), split)
        text_columns = [name for name, kind in dataset.features.items() if _may_hold_text(kind)]
        rows = dataset[_pick(dataset.column_names, text_columns, column, source)]
    else:
        raise InputError(f"the prompt set has no name: give one of {', '.join(NAMED)}, a file or a dataset id")
    return draw_sample(_distinct(rows, source), limit, seed)


@dataclass(frozen=True)
class PromptSet(Sequence[Opening]):
    """The openings of `load_prompts(name, split)`, loaded on first access."""

    name: str
    split: str = "train"

    @cached_property
    def _openings(self) -> list[Opening]:
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


def _realtoxicityprompts() -> Mapping[str, Any]:
    return split_openings(row["prompt"]["text"] for row in load_hub("allenai/real-toxicity-prompts", "train"))


def _advbench() -> Mapping[str, Any]:
    return split_openings(load_hub("walledai/AdvBench", "train")["prompt"])


NAMED: dict[str, Callable[[], Mapping[str, Any]]] = {
    "convokit-reddit": _convokit_reddit,
    "sandbox": _sandbox,
    "realtoxicityprompts": _realtoxicityprompts,  # huggingface.co/papers/2009.11462
    "advbench": _advbench,  # huggingface.co/papers/2307.15043
}


def load_hub(name: str, split: str) -> Any:
    """Return the `datasets.Dataset` of a Hub id or a folder; `InputError` if it cannot be loaded."""
    import datasets
    from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the Hub client runs on

    try:
        return datasets.load_dataset(name, split=split)
    # RuntimeError: a loading script; ValueError: a malformed id, an unknown split or configuration.
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'{name}' is neither a prompt set ({', '.join(NAMED)}) nor a file, and does not load as a Hub dataset "
            f"with split '{split}': check the name, the split, the network and whether its terms are to be accepted "
            f"({error_line(error)})"
        ) from error


def _may_hold_text(kind: Any) -> bool:
    row = getattr(kind, "feature", None)  # of a list
    is_chat = isinstance(row, dict) and {"role", "content"} <= row.keys()
    return is_chat or getattr(kind, "dtype", "").endswith("string")


def _column(columns: dict[str, list], column: str | None, source: object) -> list:
    def is_text(rows: list) -> bool:  # letters tell it from ids and figures: a CSV has no types
        return any(any(map(str.isalpha, row)) if isinstance(row, str) else row and _is_chat(row) for row in rows)

    text_columns = [name for name, rows in columns.items() if is_text(rows)]
    return columns[_pick(list(columns), text_columns, column, source)] if columns else []


def _pick(names: list[str], text_columns: list[str], column: str | None, source: object) -> str:
    if column is not None and column not in names:
        raise InputError(f"'{source}' has no column '{column}': give one of {', '.join(names)}")
    if column is not None or len(names) == 1:
        return column or names[0]
    # A column of a usual name that holds no text may still be the one: the other text may be an id.
    usual = [name for name in COLUMNS if name in names]
    for name in usual or (text_columns if len(text_columns) == 1 else []):
        if name in text_columns:
            return name
    raise InputError(
        f"which column of '{source}' holds the openings? Give one of {', '.join(names)} as --prompts_column (`column` "
        "in Python, --column of `astra-trl prompts`)"
    )


def _distinct(rows: Iterable[object], source: object) -> list[Opening]:
    # Rows as openings without white space around them, without blank and repeated ones.
    openings: dict[Opening, None] = {}
    total = blank = 0
    for total, row in enumerate(rows, start=1):
        try:
            opening = _as_opening(row)
        except ValueError as error:
            raise InputError(f"'{source}', row {total} {error}: fix or remove it, or name another column") from None
        if opening:
            openings.setdefault(opening)
        else:
            blank += 1
    if not openings:
        raise InputError(f"'{source}' holds no opening ({total} rows, {blank} blank): give at least one")
    if total > len(openings):
        logger.warning("%s: skipped %d blank rows and %d duplicates", source, blank, total - blank - len(openings))
    return list(openings)


def openings_of(prompts: Any) -> Sequence[Opening]:
    """Return the openings of a source for `load_prompts` or of a `datasets.Dataset`, or a sequence of openings as it
    is, after a check; `InputError` if it is empty, or one of them is neither text nor turns, broken or blank."""
    if isinstance(prompts, str | Path):
        return load_prompts(prompts)
    if hasattr(prompts, "column_names"):
        columns = {name: list(prompts[name]) for name in prompts.column_names}
        return _distinct(_column(columns, None, "the dataset"), "the dataset")
    if not len(prompts):
        raise InputError("the prompt set is empty: give at least one opening")
    for index, prompt in enumerate(prompts):
        turns, kind = (prompt, Turn) if isinstance(prompt, tuple) else ((prompt,), str)
        if wrong := [type(turn).__name__ for turn in turns if not isinstance(turn, kind)]:
            raise InputError(
                f"prompt {index} is not text but {wrong[0]}: a prompt set is a list of strings, or of tuples of Turn"
            )
        try:
            texts = [clean_text(turn.text) for turn in as_conversation(prompt)]
        except ValueError as error:
            raise InputError(f"prompt {index} {error}: fix or remove it") from None
        if not any(texts):
            raise InputError(f"prompt {index} is empty: drop blank openings")
    return prompts


def _as_opening(row: object) -> Opening:
    # A text, or the turns of a chat that are not blank; `ValueError` with what is wrong with the row.
    if isinstance(row, str):
        return clean_text(row)
    if not _is_chat(row):
        raise ValueError(f"is {'null' if row is None else type(row).__name__}, not text")
    turns = []
    for number, message in enumerate(row, start=1):  # type: ignore[var-annotated,arg-type]
        role, content = message["role"], message["content"]
        speaker = next((name for name in CHAT_SPEAKERS if name == role), None)
        if speaker is None:
            raise ValueError(f"has role {role!r} in message {number}, which is none of {', '.join(CHAT_SPEAKERS)}")
        if not isinstance(content, str):
            raise ValueError(f"has a message {number} whose content is {type(content).__name__}, not text")
        turns += [Turn(speaker, text)] if (text := clean_text(content)) else []
    return tuple(turns)


def _is_chat(row: object) -> bool:
    return isinstance(row, list) and all(isinstance(part, dict) and {"role", "content"} <= part.keys() for part in row)


def draw_sample(rows: list[T], limit: int | None, seed: int) -> list[T]:
    """Return at most `limit` of the rows, drawn with `seed`, in their order; all of them without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def clean_text(text: str) -> str:
    """Return the text without white space around it; `ValueError` if it is broken."""
    # No tokenizer can encode half a surrogate pair; both are signs of broken exports.
    try:
        is_broken = b"\0" in text.encode()
    except UnicodeEncodeError:
        is_broken = True
    if is_broken:
        raise ValueError("holds a NUL or half a surrogate pair")
    return text.strip()
