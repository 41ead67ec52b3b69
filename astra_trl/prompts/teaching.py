"""Pairs of a prompt and a harmful continuation, for ASTPrompter's weak supervision."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from astra_trl.conversation import Opening, as_conversation, as_text
from astra_trl.errors import InputError
from astra_trl.prompts.base import draw_sample, load_hub
from astra_trl.prompts.columns import rows_of_dataset, rows_of_table
from astra_trl.prompts.files import local_file, read_file
from astra_trl.prompts.rows import clean_text
from astra_trl.prompts.splits import split_openings

logger = logging.getLogger(__name__)

COLUMNS = ("prompt", "continuation")

Row = tuple[str, tuple[str, str]]  # the prompt in the dataset, and the pair made of the row


def load_teaching_pairs(
    source: str | Path,
    limit: int | None = None,
    seed: int = 0,
    held_out: Iterable[Opening] = (),
    columns: Sequence[str] = COLUMNS,
) -> list[tuple[str, str]]:
    """Return pairs (prompt, harmful continuation), each once, without pairs of which one side is blank and those of
    rows that are held out for an evaluation.

    Args:
        source (`str` or `Path`):
            `"realtoxicityprompts"`: texts of RealToxicityPrompts whose continuation has toxicity above 0.5, cut at
            half their words as in ASTPrompter (huggingface.co/papers/2407.09447); only those whose prompt is in the
            train split of `load_prompts("realtoxicityprompts")`. Or a local file or Hub dataset (its train split) with
            two columns of text.
        limit (`int`, *optional*):
            Keep a sample of at most this many pairs, drawn with `seed`.
        held_out (`Iterable[Opening]`, *optional*):
            Openings of evaluations: rows with one of them as the prompt are left out. One log line counts those rows.
        columns (`Sequence[str]`, *optional*, defaults to `("prompt", "continuation")`):
            Columns of a file or dataset: those of the prompts and of the continuations.

    Raises:
        InputError: `source` cannot be read, lacks a column, has a row that is not text, or leaves no pair.
    """
    rows = list(_realtoxicityprompts() if source == "realtoxicityprompts" else _columns(source, columns))
    held_out_prompts = {_words(as_text(as_conversation(opening))) for opening in held_out}
    kept = [pair for prompt, pair in rows if _words(prompt) not in held_out_prompts]
    if len(kept) < len(rows):
        logger.warning("%s: %d rows are held out for evaluations, so not taught", source, len(rows) - len(kept))
    pairs = [pair for pair in dict.fromkeys(kept) if all(pair)]
    if not pairs:
        raise InputError(
            f"'{source}' holds no pair of prompt and continuation that is not held out for evaluations: give at least "
            "one"
        )
    return draw_sample(pairs, limit, seed)


def _columns(source: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    if len(columns) != 2:
        raise InputError(f"teaching pairs of the columns {', '.join(columns)}: name two, of prompts and continuations")
    path, option = local_file(source), f"two columns (FILE:{','.join(COLUMNS)}), each"
    table = read_file(path, asked=columns) if path else load_hub(str(source), "train")
    if isinstance(table, list):
        raise InputError(f"'{source}' has no columns of prompts and continuations: name them {' and '.join(COLUMNS)}")
    rows_of = rows_of_table if path else rows_of_dataset
    texts = [rows_of(table, column, source, option)[0] for column in columns]
    for number, row in enumerate(zip(*texts, strict=True), start=1):
        pair = _clean_pair(row, number, source)
        yield pair[0], pair


def _realtoxicityprompts() -> Iterator[Row]:
    dataset = load_hub("allenai/real-toxicity-prompts", "train")
    splits = split_openings(row["prompt"]["text"] for row in dataset)
    train, *others = ({_words(text) for text in splits[name]["opening"]} for name in ("train", "dev", "test"))
    train -= set().union(*others)  # a prompt may be there twice, with other white space
    for number, row in enumerate(dataset, start=1):
        prompt, continuation = row["prompt"]["text"], row["continuation"]
        if (continuation["toxicity"] or 0) > 0.5 and _words(prompt) in train:
            words = (prompt + continuation["text"]).split()
            half = len(words) // 2
            pair = " ".join(words[:half]), " ".join(words[half:])
            yield prompt, _clean_pair(pair, number, "realtoxicityprompts")


def _clean_pair(pair: tuple[object, ...], number: int, source: object) -> tuple[str, str]:
    prompt, continuation = pair
    if not (isinstance(prompt, str) and isinstance(continuation, str)):
        raise InputError(f"'{source}', row {number} is not two texts: fix or remove it")
    try:
        return clean_text(prompt), clean_text(continuation)
    except ValueError as error:
        raise InputError(f"'{source}', row {number} {error}: fix or remove it") from None


def _words(text: str) -> str:
    return " ".join(text.split())
