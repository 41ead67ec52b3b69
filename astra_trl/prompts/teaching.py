"""Pairs of a prompt and a harmful continuation, for ASTPrompter's weak supervision."""

from pathlib import Path

from astra_trl.errors import InputError
from astra_trl.prompts.base import cleaned, load_hub, sampled
from astra_trl.prompts.files import local_file, read_file

COLUMNS = ("prompt", "continuation")


def load_teaching_pairs(source: str | Path, limit: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs (prompt, harmful continuation), each once, without those of which one side is blank.

    Args:
        source (`str` or `Path`):
            `"realtoxicityprompts"`: texts of RealToxicityPrompts whose continuation has toxicity above 0.5, cut at
            half their words, as ASTPrompter took them (huggingface.co/papers/2407.09447). Or a local file or Hub
            dataset with the text columns prompt and continuation.
        limit (`int`, *optional*):
            Keep a sample of at most this many pairs, drawn with `seed`.

    Raises:
        InputError: `source` cannot be read, or lacks a column, or a row of it is not text, or no pair is left.
    """
    if source == "realtoxicityprompts":
        pairs = _realtoxicityprompts()
    else:
        path = local_file(source)
        columns = read_file(path) if path else load_hub(str(source), "train").to_dict()
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise InputError(f"'{source}' has no column '{missing[0]}': it has {', '.join(columns) or 'none'}")
        pairs = list(zip(*(columns[name] for name in COLUMNS), strict=True))
    pairs = list(dict.fromkeys(_cleaned(pair, number, source) for number, pair in enumerate(pairs, start=1)))
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        raise InputError(f"'{source}' holds no pair of prompt and continuation: give at least one")
    return sampled(pairs, limit, seed)


def _cleaned(pair: tuple[object, object], number: int, source: object) -> tuple[str, str]:
    prompt, continuation = pair
    if not (isinstance(prompt, str) and isinstance(continuation, str)):
        raise InputError(f"'{source}', row {number} is not two texts: mend or remove it")
    try:
        return cleaned(prompt), cleaned(continuation)
    except ValueError as error:
        raise InputError(f"'{source}', row {number} {error}: mend or remove it") from None


def _realtoxicityprompts() -> list[tuple[str, str]]:
    pairs = []
    for row in load_hub("allenai/real-toxicity-prompts", "train"):
        if (row["continuation"]["toxicity"] or 0) > 0.5:
            words = (row["prompt"]["text"] + row["continuation"]["text"]).split()
            half = len(words) // 2
            pairs.append((" ".join(words[:half]), " ".join(words[half:])))
    return pairs
