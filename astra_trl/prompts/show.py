"""Prompt sets as text for the terminal and as files."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from astra_trl.conversation import Opening, as_conversation, as_messages
from astra_trl.errors import InputError
from astra_trl.prompts.base import draw_sample, read_prompts
from astra_trl.text import visible

# The source of each set in `NAMED`, and its content.
ABOUT = {
    "convokit-reddit": ("ConvoKit", "last turns of Reddit threads, toxic ones left out"),
    "sandbox": ("embedded", "small talk of the sandbox's world"),
    "realtoxicityprompts": ("Hub", "the prompts of RealToxicityPrompts"),
    "advbench": ("Hub", "harmful requests of AdvBench; has terms to accept"),
}
FORMATS = (".jsonl", ".txt")
MAX_CHARACTERS = 1000  # of a turn on the terminal


def describe_sets() -> str:
    """Return one line per named set: its name, source and content."""
    width = max(map(len, ABOUT))
    rows = (f"{name:{width}}  {source:8}  {content}" for name, (source, content) in ABOUT.items())
    return "\n".join([*rows, "", "ConvoKit: downloaded, cleaned and scored by Detoxify when first used, then kept."])


def describe_openings(openings: Sequence[Opening], limit: int, seed: int = 0, place: str | None = None) -> str:
    """Return the number of openings, the place they are from, and a sample of them, as text of at most 80 columns."""
    several = sum(len(as_conversation(opening)) > 1 for opening in openings)
    head = f"{len(openings):,} openings" + (f", {several:,} of them of several turns" if several else "")
    head += f", read from {visible(place)}" if place else ""
    return "\n\n".join(
        [
            textwrap.fill(head, 80),
            *("\n".join(_lines(opening)) for opening in draw_sample(list(openings), limit, seed)),
        ]
    )


def write_openings(openings: Sequence[Opening], output: str | Path, force: bool = False) -> Path:
    """Write the openings to a .jsonl or .txt file from which `load_prompts` reads equal ones, and return its path.

    A line of JSON has a text as `opening` and a conversation as `messages`; if there are both, the texts are in
    `messages` too. Raises `InputError` if the file exists or its format cannot hold the openings.
    """
    path = Path(output).expanduser()
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"cannot write '{path}': give a {' or '.join(FORMATS)} file")
    if path.exists() and not force:
        raise InputError(f"'{path}' exists: name another file, or write over it with --force")
    if suffix == ".txt":
        lines = [opening if isinstance(opening, str) else repr(opening) for opening in openings]
    else:
        column = "opening" if all(isinstance(opening, str) for opening in openings) else "messages"
        rows = [opening if isinstance(opening, str) else as_messages(opening) for opening in openings]
        lines = [json.dumps({column: row}, ensure_ascii=False) for row in rows]
    partial = path.with_name(f"unfinished-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        if read_prompts(partial)[0] != list(openings):  # a text with line ends in it, a conversation
            raise InputError(f"'{path}' cannot hold these openings, one per line: give a .jsonl file")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"'{path}' could not be written ({error}): name another file") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _lines(opening: Opening) -> Iterator[str]:
    turns = as_conversation(opening)
    width = max(len(turn.speaker) for turn in turns)
    for turn in turns:
        text = " ".join(visible(turn.text).split())
        text = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ... ({len(text):,} characters)"
        lead = "- " if len(turns) == 1 else f"{turn.speaker:>{width}}: "
        yield textwrap.fill(text, 80, initial_indent=lead, subsequent_indent=" " * len(lead))
