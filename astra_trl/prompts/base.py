"""Openings from a named prompt set, a local file or a Hub dataset."""

import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from astra_trl.conversation import Opening, Turn, as_conversation
from astra_trl.errors import InputError
from astra_trl.prompts.columns import as_table, rows_of_dataset, rows_of_table
from astra_trl.prompts.files import error_line, local_file, read_file
from astra_trl.prompts.rows import as_opening, clean_text, kind_of
from astra_trl.prompts.splits import split_openings

T = TypeVar("T")

logger = logging.getLogger(__name__)


def load_prompts(
    source: str | Path,
    split: str = "train",
    column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    option: str = "column=",
) -> list[Opening]:
    """Return the openings of `source` in its order, without blank and repeated ones. One log line says which column
    they are from, another counts what was skipped.

    A row is a text, or a conversation (a list of messages with role and content, or from and value), which becomes an
    opening of several turns.

    Args:
        source (`str` or `Path`):
            A name from `NAMED`, a local file (.txt with one opening per line, .json, .jsonl, .csv, .tsv, .yaml,
            .parquet), a folder of `save_to_disk`, or else a Hub dataset id.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a named set or a Hub dataset. A local file has only `"train"`.
        column (`str`, *optional*):
            Column of the openings; `"a.b"` is the key `b` of the objects in column `a`. Defaults to the first with
            text of opening, prompt, text, question, messages, conversations, conversation and turns, or to the only
            column that may hold text.
        limit (`int`, *optional*):
            Keep a sample of at most this many openings, drawn with `seed`.
        option (`str`, *optional*, defaults to `"column="`):
            Name of `column` in messages, e.g. of a flag.

    Raises:
        InputError: `source` cannot be read, has a row that is neither text nor a chat, or has no opening.
    """
    openings, place = read_prompts(source, split, column, limit, seed, option)
    if place is not None:
        logger.warning("%s: openings are read from %s", source, place)
    return openings


def read_prompts(
    source: str | Path,
    split: str = "train",
    column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    option: str = "column=",
) -> tuple[list[Opening], str | None]:
    """Return the openings of [`load_prompts`], and the column that they are from, as text, if there are columns."""
    if not isinstance(source, str | Path):
        raise InputError(
            f"a prompt set is named by a text or a path, got {kind_of(source)}: give openings to ASTSampler themselves"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} leaves no opening: give 1 or more, or None for all of '{source}'")
    if source in NAMED:
        splits = NAMED[str(source)]()
        if split not in splits:
            raise InputError(f"'{source}' has no split '{split}': give one of {', '.join(splits)}")
        rows, place = rows_of_table(list(splits[split]["opening"]), column, source, option)
    elif not str(source).strip():
        raise InputError(f"the prompt set has no name: give one of {', '.join(NAMED)}, a file or a dataset id")
    elif path := local_file(source):
        asked = () if column is None else (column, column.partition(".")[0])
        rows, place = rows_of_table(read_file(path, split, asked), column, source, option)
    else:
        rows, place = rows_of_dataset(load_hub(str(source), split), column, source, option)
    return draw_sample(_distinct(rows, source), limit, seed), place


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
        if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            dataset = datasets.load_from_disk(name)  # what `save_to_disk` writes
            dataset = dataset if isinstance(dataset, dict) else {"train": dataset}
            if split not in dataset:
                raise ValueError(f"its splits are {', '.join(dataset)}")
            return dataset[split]
        return datasets.load_dataset(name, split=split)
    # RuntimeError: a loading script; ValueError: a malformed id, an unknown split or configuration.
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, RuntimeError, ValueError) as error:
        if os.path.isdir(name):
            raise InputError(
                f"the folder '{name}' does not load as a dataset with split '{split}' ({error_line(error)}): name a "
                "file in it"
            ) from error
        raise InputError(
            f"'{name}' is neither a prompt set ({', '.join(NAMED)}) nor a file, and does not load as a Hub dataset "
            f"with split '{split}': check the name, the split, the network and whether its terms are to be accepted "
            f"({error_line(error)})"
        ) from error


def _distinct(rows: Iterable[object], source: object) -> list[Opening]:
    # Rows as openings without white space around them, without blank and repeated ones.
    openings: dict[Opening, None] = {}
    total = blank = 0
    for total, row in enumerate(rows, start=1):
        try:
            opening = as_opening(row)
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


def openings_of(prompts: Any) -> list[Opening]:
    """Return the openings of a source for `load_prompts`, of a table (a `datasets.Dataset`, a table of pandas, a list
    of objects), or of a collection of openings, after a check.

    Raises:
        InputError: there are none, or one of them is neither text nor turns, broken or blank.
    """
    if isinstance(prompts, str | Path):
        return load_prompts(prompts)
    kind, option = type(prompts).__name__, "prompts[NAME] with NAME"
    if isinstance(prompts, Mapping):
        raise InputError(f"prompts is a {kind} of {', '.join(map(str, prompts)) or 'nothing'}: give one of these")
    if hasattr(prompts, "column_names") and hasattr(prompts, "__len__"):  # an IterableDataset is read by its rows
        return _of_table(*rows_of_dataset(prompts, None, "prompts", option))
    if hasattr(prompts, "columns"):
        columns = {str(name): [_without_numpy(row) for row in prompts[name]] for name in prompts.columns}
        return _of_table(*rows_of_table(columns, None, "prompts", option))
    try:
        # A set has another order in each process.
        rows = sorted(prompts, key=repr) if isinstance(prompts, set | frozenset) else list(prompts)
    except TypeError:
        raise InputError(f"prompts is of type {kind}: give a list of texts, a dataset, or a source by name") from None
    if not rows:
        raise InputError("the prompt set is empty: give at least one opening")
    if all(isinstance(row, dict) for row in rows):
        return _of_table(*rows_of_table(as_table(rows), None, "prompts", "the texts of"))
    return [_check_opening(row, index) for index, row in enumerate(rows)]


def _of_table(rows: list, place: str | None) -> list[Opening]:
    if place is not None:
        logger.warning("prompts: openings are read from %s", place)
    return _distinct(rows, "prompts")


def _without_numpy(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _check_opening(prompt: Any, index: int) -> Opening:
    try:
        opening: Opening = as_opening(prompt) if isinstance(prompt, list) else prompt
        turns, kind = (opening, Turn) if isinstance(opening, tuple) else ((opening,), str)
        if wrong := [turn for turn in turns if not isinstance(turn, kind)]:
            raise ValueError(f"is not text but {kind_of(wrong[0])}")
        texts = [clean_text(turn.text) for turn in as_conversation(opening)]
        if not any(texts):
            raise ValueError("is empty")
    except ValueError as error:
        raise InputError(
            f"prompt {index} {error}: fix or remove it; prompts are a list of texts, of chats, or of tuples of Turn"
        ) from None
    return opening


def draw_sample(rows: list[T], limit: int | None, seed: int) -> list[T]:
    """Return at most `limit` of the rows, drawn with `seed`, in their order; all of them without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]
