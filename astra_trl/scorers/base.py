"""Base of scorers: `Scorer`, the part of an exchange that it reads, and helpers that several scorers share."""

import copy
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from unicodedata import category, normalize

from astra_trl.callables import call_for_numbers
from astra_trl.conversation import Exchange, Turn
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers
from astra_trl.progress import DELAY, ProgressBar

T = TypeVar("T", str, tuple[int, ...])

# Harm of each exchange in [0, 1]; nan = could not be scored.
Scorer = Callable[[Sequence[Exchange]], list[float]]

# The part of an exchange whose harm is measured.
Part = Literal["response", "probe", "probe_and_response"]


def validate_part(of: str) -> Part:
    """Return `of`, or raise `InputError` if an exchange has no such part."""
    for part in get_args(Part):
        if of == part:
            return part
    raise InputError(f"of={of!r} is not a part of an exchange: choose one of {', '.join(get_args(Part))}")


def read_part(exchange: Exchange, of: Part) -> str:
    """Return the text of a part of the exchange."""
    return {
        "response": exchange.response,
        "probe": exchange.probe,
        "probe_and_response": f"{exchange.probe}\n{exchange.response}",
    }[of]


def part_read_by(scorer: Scorer) -> Part:
    """Return the part of exchanges that `scorer` reads: its attribute `of`, or the response if it has none."""
    return validate_part(getattr(scorer, "of", "response"))


def score_name(scorer: str, of: Part | None) -> str:
    """Return the key in `Node.scores` of a part's score; `None` is the part that the scorer itself reads."""
    return scorer if of is None else f"{scorer}_{of}"


def measuring(scorer: Scorer, of: Part) -> Scorer:
    """Return `scorer` if it reads this part of exchanges, or else a scorer like it that does.

    If it has an attribute `of`, it is copied with another value of that; the copy shares its model. If not, or if it
    is a function, it gets the part's text as the part that it reads.
    """
    if part_read_by(scorer) == of:
        return scorer
    if not hasattr(scorer, "of") or inspect.isroutine(scorer):
        return OtherPart(scorer, of)
    if is_dataclass(scorer) and not isinstance(scorer, type):
        return replace(scorer, of=of)
    scorer = copy.copy(scorer)
    scorer.of = of
    return scorer


@dataclass(frozen=True)
class OtherPart:
    """Scorer of a part of exchanges by a scorer that reads another part."""

    scorer: Scorer
    of: Part

    def __call__(self, exchanges: Sequence[Exchange]) -> list[float]:
        return self.scorer(self.as_read(exchanges))

    def as_read(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """Return exchanges that have the text of the part as the part that the scorer reads."""
        texts = [read_part(exchange, self.of) for exchange in exchanges]
        if part_read_by(self.scorer) == "probe":
            return [replace(e, probe=text, response="") for e, text in zip(exchanges, texts, strict=True)]
        return [replace(e, probe="", response=text) for e, text in zip(exchanges, texts, strict=True)]


def validate_scores(name: str, scorer: Scorer, exchanges: Sequence[Exchange]) -> list[float]:
    """Return the scorer's scores, or raise `InputError` unless they are one number in [0, 1] or nan per exchange."""
    if isinstance(scorer, OtherPart):
        exchanges, scorer = scorer.as_read(exchanges), scorer.scorer  # whose errors are reported
    scores = call_for_numbers(f"scorer {name!r}", scorer, exchanges, "exchange")
    for score in scores:
        if not (math.isnan(score) or 0 <= score <= 1):
            raise InputError(f"scorer {name!r} returned {score}: scores must lie in [0, 1], or be nan; rescale them")
    return scores


def try_out(scorers: Mapping[str, Scorer]) -> None:
    """Call scorers once, before anything is loaded. Raises `InputError` if one cannot be used."""
    examples = [Exchange((Turn("opening", "Hello."),), "How are you?", response) for response in ("Fine.", "Bad.")]
    for name, scorer in scorers.items():
        validate_scores(name, scorer, examples)


def score_distinct(inputs: Sequence[T], score_batch: Callable[[list[T]], list[float]], batch_size: int) -> list[float]:
    """Return one score per text or tuple of token ids, from as few calls of `score_batch` as possible.

    Equal inputs are scored once, and inputs of similar length together, which needs little padding.
    """
    require_numbers(batch_size=batch_size)
    distinct = sorted(set(inputs), key=lambda item: (len(item), item))
    scores: dict[T, float] = {}
    with ProgressBar("scoring", len(distinct), "texts", delay=DELAY) as bar:
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            scores.update(zip(batch, score_batch(batch), strict=True))
            bar.update(len(batch))
    return [scores[item] for item in inputs]


def max_input_length(tokenizer: Any, config: Any) -> int:
    """Return the number of tokens that a classifier takes: its tokenizer's limit, or its positions' if smaller."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or tokenizer.model_max_length <= positions:
        return tokenizer.model_max_length
    return positions - 2  # RoBERTa counts from the position after its pad token


def read_lines(path: str | Path, kind: str, item: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file one at a time, as it may be larger than memory."""
    suffix = Path(path).suffix.lower()
    if suffix in (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".parquet", ".xlsx", ".gz", ".zip"):
        raise InputError(
            f"the {kind} {str(path)!r} is a {suffix} file by its name: give a .txt file with one {item} per line, or "
            f"a list of {item}s"
        )
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as file:
            yield from file
    except (OSError, ValueError) as error:
        raise InputError(
            f"no {kind} could be read from {str(path)!r} ({error}): give a UTF-8 file with one {item} per line, or a "
            f"list of {item}s"
        ) from error


def fold_case(text: str) -> str:
    """Return the text in lower case and composed letters, for comparison."""
    # Twice: casefolding can leave letters decomposed.
    return normalize("NFKC", normalize("NFKC", text).casefold())


def is_combining_mark(character: str) -> bool:
    """`True` for marks that are part of a word, e.g. vowel signs, which `\\w` does not match."""
    return category(character).startswith("M")
