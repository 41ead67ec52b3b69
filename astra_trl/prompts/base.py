"""Openings from a named set, a local file or a Hub dataset."""

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
from astra_trl.prompts.files import local_file, read_file, why
from astra_trl.prompts.splits import split_openings

T = TypeVar("T")

logger = logging.getLogger(__name__)

# What a column of openings is usually called, tried in this order where more than one column holds text.
COLUMNS = ("opening", "prompt", "text", "question", "messages")
CHAT_SPEAKERS: tuple[Speaker, ...] = ("system", "user", "assistant")


def load_prompts(
    source: str | Path, split: str = "train", column: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Opening]:
    """Openings of `source` in their order there, without blank and repeated ones (one log line counts those).

    A row is a text, or a conversation in the chat format (a list of messages with role and content), which becomes an
    opening of several turns.

    Args:
        source (`str` or `Path`):
            A name from `NAMED`, a local file (.txt with one opening per line, .json, .jsonl, .csv, .parquet), or else
            a Hub dataset id.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a named set or a Hub dataset. A local file is all `"train"`.
        column (`str`, *optional*):
            Column with the openings. Without it: the only column with text, else the first of `COLUMNS` there is.
        limit (`int`, *optional*):
            Keep a sample of at most this many openings, drawn with `seed`.

    Raises:
        InputError: `source` cannot be read, or a row of it is neither, or no opening is left.
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
    else:
        rows = _read_hub(str(source), split, column)
    return sampled(_distinct(rows, source), limit, seed)


@dataclass(frozen=True)
class PromptSet(Sequence[Opening]):
    """The openings of `load_prompts(name, split)`, loaded when first looked at: naming a set costs nothing."""

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
    """The `datasets.Dataset` of a Hub id (or of a folder). Raises `InputError` where it does not load."""
    import datasets
    from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the Hub client runs on

    try:
        return datasets.load_dataset(name, split=split)
    # RuntimeError: a loading script; ValueError: a malformed id, an unknown split or configuration.
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"'{name}' is no prompt set ({', '.join(NAMED)}) and no file, and was tried as a Hub dataset with split "
            f"'{split}': check the name, the split, the network and whether its terms are to be accepted "
            f"({why(error)})"
        ) from error


def _read_hub(source: str, split: str, column: str | None) -> Iterable[object]:
    if not source.strip():
        raise InputError(f"the prompt set has no name: give one of {', '.join(NAMED)}, a file or a dataset id")
    dataset = load_hub(source, split)
    text = [name for name, kind in dataset.features.items() if _may_hold_text(kind)]
    return dataset[_pick(dataset.column_names, text, column, source)]


def _may_hold_text(kind: Any) -> bool:
    row = getattr(kind, "feature", None)  # of a list
    return getattr(kind, "dtype", "").endswith("string") or (
        isinstance(row, dict) and {"role", "content"} <= row.keys()
    )


def _column(columns: dict[str, list], column: str | None, source: object) -> list:
    def is_text(rows: list) -> bool:  # letters tell it from ids and figures: a CSV has no types
        return any(any(map(str.isalpha, row)) if isinstance(row, str) else row and _is_chat(row) for row in rows)

    text = [name for name, rows in columns.items() if is_text(rows)]
    return columns[_pick(list(columns), text, column, source)] if columns else []


def _pick(names: list[str], text: list[str], column: str | None, source: object) -> str:
    if column is not None and column not in names:
        raise InputError(f"'{source}' has no column '{column}': give one of {', '.join(names)}")
    if column is not None or len(names) == 1:
        return column or names[0]
    # A column of a usual name that holds no text may still be the one: what else is text may be an id.
    usual = [name for name in COLUMNS if name in names]
    for name in usual or (text if len(text) == 1 else []):
        if name in text:
            return name
    raise InputError(f"which column of '{source}' holds the openings? Give column= one of {', '.join(names)}")


def _distinct(rows: Iterable[object], source: object) -> list[Opening]:
    """Rows as openings without white space around them, each once; none that is blank."""
    seen: dict[Opening, None] = {}
    total = blank = 0
    for total, row in enumerate(rows, start=1):
        try:
            opening = _opening(row)
        except ValueError as error:
            raise InputError(f"'{source}', row {total} {error}: mend or remove it, or name another column") from None
        if opening:
            seen.setdefault(opening)
        else:
            blank += 1
    if not seen:
        raise InputError(f"'{source}' holds no opening ({total} rows, {blank} blank): give at least one")
    if total > len(seen):
        logger.warning("%s: skipped %d blank rows and %d duplicates", source, blank, total - blank - len(seen))
    return list(seen)


def openings_of(prompts: Any) -> Sequence[Opening]:
    """The openings that were given: as they are, as what `load_prompts` takes, or as a `datasets.Dataset`."""
    if isinstance(prompts, str | Path):
        return load_prompts(prompts)
    if hasattr(prompts, "column_names"):
        columns = {name: list(prompts[name]) for name in prompts.column_names}
        return _distinct(_column(columns, None, "the dataset"), "the dataset")
    return checked_prompts(prompts)


def checked_prompts(prompts: Sequence[Opening]) -> Sequence[Opening]:
    """The prompts; `InputError` where there are none or one is neither text nor turns, broken or blank."""
    if not len(prompts):
        raise InputError("the prompt set is empty: give at least one opening")
    for index, prompt in enumerate(prompts):
        turns = prompt if isinstance(prompt, tuple) else (prompt,)
        for turn in turns:
            if not isinstance(turn, Turn if turns is prompt else str):
                raise InputError(
                    f"prompt {index} is not text but {type(turn).__name__}: a prompt set is a list of strings, or of "
                    "tuples of Turn"
                )
        try:
            texts = [cleaned(turn.text) for turn in as_conversation(prompt)]
        except ValueError as error:
            raise InputError(f"prompt {index} {error}: mend or remove it") from None
        if not any(texts):
            raise InputError(f"prompt {index} is empty: drop blank openings")
    return prompts


def _opening(row: object) -> Opening:
    # A text, or the turns of a chat that hold any; `ValueError` with what is wrong with the row.
    if isinstance(row, str):
        return cleaned(row)
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
        turns += [Turn(speaker, text)] if (text := cleaned(content)) else []
    return tuple(turns)


def _is_chat(row: object) -> bool:
    return isinstance(row, list) and all(isinstance(part, dict) and {"role", "content"} <= part.keys() for part in row)


def sampled(rows: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of the rows, drawn with `seed`, in their order; all of them without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def cleaned(text: str) -> str:
    """The text without white space around it; `ValueError` with what is wrong where it is broken."""
    # No tokenizer can encode half a surrogate pair; both come of broken exports.
    try:
        broken = b"\0" in text.encode()
    except UnicodeEncodeError:
        broken = True
    if broken:
        raise ValueError("holds a NUL or half a surrogate pair")
    return text.strip()
