"""Pairs of a prompt and a harmful continuation, for ASTPrompter's weak supervision."""

import logging
from collections.abc import Iterable
from pathlib import Path

from astra_trl.conversation import Opening, as_conversation, as_text
from astra_trl.errors import InputError
from astra_trl.prompts.base import cleaned, load_hub, sampled
from astra_trl.prompts.files import local_file, read_file
from astra_trl.prompts.splits import split_openings

logger = logging.getLogger(__name__)

COLUMNS = ("prompt", "continuation")

Row = tuple[str, tuple[str, str]]  # the prompt as its data set has it, and the pair that is made of the row


def load_teaching_pairs(
    source: str | Path, limit: int | None = None, seed: int = 0, held_out: Iterable[Opening] = ()
) -> list[tuple[str, str]]:
    """Pairs (prompt, harmful continuation), each once, without those of which one side is blank and those of rows that
    an evaluation holds out.

    Args:
        source (`str` or `Path`):
            `"realtoxicityprompts"`: texts of RealToxicityPrompts whose continuation has toxicity above 0.5, cut at
            half their words, as ASTPrompter took them (huggingface.co/papers/2407.09447); only those whose prompt is
            in the train split that `load_prompts("realtoxicityprompts")` gives. Or a local file or Hub dataset (its
            train split) with the text columns prompt and continuation.
        limit (`int`, *optional*):
            Keep a sample of at most this many pairs, drawn with `seed`.
        held_out (`Iterable[Opening]`, *optional*):
            Openings of evaluations: no row with one of them as its prompt is taught. One log line counts those rows.

    Raises:
        InputError: `source` cannot be read, or lacks a column, or a row of it is not text, or no pair is left.
    """
    rows = _realtoxicityprompts() if source == "realtoxicityprompts" else _rows(source)
    left_out = {_words(as_text(as_conversation(opening))) for opening in held_out}
    taught = [pair for prompt, pair in rows if _words(prompt) not in left_out]
    if len(taught) < len(rows):
        logger.warning("%s: %d rows are held out for evaluations, so not taught", source, len(rows) - len(taught))
    pairs = [pair for pair in dict.fromkeys(taught) if all(pair)]
    if not pairs:
        raise InputError(
            f"'{source}' holds no pair of prompt and continuation that is not held out for evaluations: give at least "
            "one"
        )
    return sampled(pairs, limit, seed)


def _rows(source: str | Path) -> list[Row]:
    path = local_file(source)
    columns = read_file(path) if path else load_hub(str(source), "train").to_dict()
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise InputError(f"'{source}' has no column '{missing[0]}': it has {', '.join(columns) or 'none'}")
    pairs = zip(*(columns[name] for name in COLUMNS), strict=True)
    cleaned_pairs = [_cleaned(pair, number, source) for number, pair in enumerate(pairs, start=1)]
    return [(pair[0], pair) for pair in cleaned_pairs]


def _cleaned(pair: tuple[object, object], number: int, source: object) -> tuple[str, str]:
    prompt, continuation = pair
    if not (isinstance(prompt, str) and isinstance(continuation, str)):
        raise InputError(f"'{source}', row {number} is not two texts: mend or remove it")
    try:
        return cleaned(prompt), cleaned(continuation)
    except ValueError as error:
        raise InputError(f"'{source}', row {number} {error}: mend or remove it") from None


def _realtoxicityprompts() -> list[Row]:
    dataset = load_hub("allenai/real-toxicity-prompts", "train")
    splits = split_openings(row["prompt"]["text"] for row in dataset)
    train, *others = ({_words(text) for text in splits[name]["opening"]} for name in ("train", "dev", "test"))
    train -= set().union(*others)  # a prompt may stand there twice, with other white space
    rows = []
    for number, row in enumerate(dataset, start=1):
        prompt, continuation = row["prompt"]["text"], row["continuation"]
        if (continuation["toxicity"] or 0) > 0.5 and _words(prompt) in train:
            words = (prompt + continuation["text"]).split()
            half = len(words) // 2
            pair = " ".join(words[:half]), " ".join(words[half:])
            rows.append((prompt, _cleaned(pair, number, "realtoxicityprompts")))
    return rows


def _words(text: str) -> str:
    return " ".join(text.split())
