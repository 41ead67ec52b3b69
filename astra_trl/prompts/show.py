"""Prompt sets for the terminal and as files: what there is, what is in one, one written down."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from astra_trl.conversation import Opening, as_conversation, as_messages
from astra_trl.errors import InputError
from astra_trl.prompts.base import load_prompts, sampled
from astra_trl.text import visible

# Where each of `NAMED` comes from, and what it holds.
ABOUT = {
    "convokit-reddit": ("ConvoKit", "last turns of Reddit threads, toxic ones left out"),
    "sandbox": ("embedded", "small talk of the sandbox's world"),
    "realtoxicityprompts": ("Hub", "the prompts of RealToxicityPrompts"),
    "advbench": ("Hub", "harmful requests of AdvBench; has terms to accept"),
}
FORMATS = (".jsonl", ".txt")
SHOWN_CHARACTERS = 1000  # of a turn


def listed() -> str:
    """A line for each named set: its name, where it comes from, what it holds."""
    width = max(map(len, ABOUT))
    rows = (f"{name:{width}}  {where:8}  {what}" for name, (where, what) in ABOUT.items())
    return "\n".join([*rows, "", "ConvoKit: downloaded, cleaned and scored by Detoxify when first used, then kept."])


def shown(openings: Sequence[Opening], limit: int, seed: int = 0) -> str:
    """How many openings there are and a sample of them, as text of at most 80 columns."""
    turns = Counter(len(as_conversation(opening)) for opening in openings)
    several = sum(count for length, count in turns.items() if length > 1)
    head = f"{len(openings):,} openings" + (f", {several:,} of them of several turns" if several else "")
    return "\n\n".join([head, *("\n".join(_lines(opening)) for opening in sampled(list(openings), limit, seed))])


def write_openings(openings: Sequence[Opening], output: str | Path, force: bool = False) -> Path:
    """Writes the openings to a .jsonl or .txt file that `load_prompts` reads as equal ones, and returns its path.

    A line of JSON has a text as `opening`, a conversation as `messages`; where there are both, all are `messages`'
    column, which may hold texts. Raises `InputError` where the file exists or its format cannot hold the openings.
    """
    path = Path(output).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot write '{path}': give a {' or '.join(FORMATS)} file")
    if path.exists() and not force:
        raise InputError(f"'{path}' exists: name another file, or write over it with --force")
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in _written(openings, path.suffix.lower()))
        if load_prompts(unfinished) != list(openings):  # a text with line ends in it, a conversation
            raise InputError(f"'{path}' cannot hold these openings, a line each: give a .jsonl file")
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"'{path}' could not be written ({error}): name another file") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _written(openings: Sequence[Opening], suffix: str) -> Iterator[str]:
    column = "messages" if any(not isinstance(opening, str) for opening in openings) else "opening"
    for opening in openings:
        if suffix == ".txt":
            yield opening if isinstance(opening, str) else repr(opening)
        else:
            row = opening if isinstance(opening, str) else as_messages(opening)
            yield json.dumps({column: row}, ensure_ascii=False)


def _lines(opening: Opening) -> Iterator[str]:
    turns = as_conversation(opening)
    width = max(len(turn.speaker) for turn in turns)
    for turn in turns:
        text = " ".join(visible(turn.text).split())
        text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ... ({len(text):,} characters)"
        lead = "- " if len(turns) == 1 else f"{turn.speaker:>{width}}: "
        yield textwrap.fill(text, 80, initial_indent=lead, subsequent_indent=" " * len(lead))
