"""The report's figures as Markdown, for a model card or a pull request."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_trl.evaluation.results import TESTER, number
from astra_trl.lines import damaged_line, read_lines
from astra_trl.report.figures import Table, headline, summary_line, tables
from astra_trl.report.output import MARKDOWN_MARK, write_output
from astra_trl.report.setup import setup
from astra_trl.results.markdown import escape, fenced, table
from astra_trl.results.reading import Folder, read_folders
from astra_trl.text import visible

CONVERSATIONS = 3
MAX_CHARACTERS = 2000  # of a turn


def markdown_report(folders: Sequence[str | Path] | str | Path) -> str:
    """Return headline, figures with intervals, counts, setup, and the tester's first conversations (not its best ones)
    as Markdown. Raises `InputError` as `write_report` does."""
    read = read_folders(folders)
    several = len(read) > 1
    parts = [
        f"{f'{escape(folder.name)}: ' if several else ''}**{escape(headline(folder))}** {escape(summary_line(folder))}"
        for folder in read
    ]
    by_key = tables(read)
    parts += [_section(by_key[key]) for key in ("figures", "transfer", "counts") if key in by_key]
    suffixes = [f": {escape(folder.name)}" if several else "" for folder in read]
    for folder, suffix in zip(read, suffixes, strict=True):
        rows = [f"- {escape(name)}: {escape(value)}" for name, value in setup(folder)]
        parts.append("\n".join([f"### What was tested{suffix}\n", *rows]))
    if conversations := _conversations(read[0]):
        parts += [f"### The first conversations{suffixes[0]}, not the best ones", *conversations]
    return "\n\n".join(parts) + "\n"


def write_markdown_report(folders: Sequence[str | Path] | str | Path, output: str | Path) -> Path:
    """Write the report as Markdown and return its path. Raises `InputError` as `write_report` does."""
    return write_output(output, lambda: MARKDOWN_MARK + markdown_report(folders))


def _section(content: Table) -> str:
    note = f"{escape(content.note)}\n\n" if content.note else ""
    rows = table(["", *content.head], [(name, *cells) for name, cells in content.rows], right=True)
    return f"### {content.title}\n\n{note}{rows}"


def _conversations(folder: Folder) -> list[str]:
    # The first openings' trees of the tester, each down its first branches.
    file, evaluation = folder.evaluation_exchanges, folder.evaluation
    if file is None or evaluation is None:
        return []
    conversations: dict[int, list[str]] = {}
    for at, line in enumerate(read_lines(file), start=1):
        try:
            arm, target = visible(line["arm"]), visible(line["target"])
            if arm != TESTER or target != evaluation.targets[0] or any(line["path"]):
                continue
            if line["tree"] in conversations or len(conversations) < CONVERSATIONS:
                turns = conversations.setdefault(line["tree"], [])
                if not turns:
                    turns += [_turn(speaker, text) for speaker, text in line["context"]]
                turns += _exchange(line, evaluation.harm)
            elif len(conversations) == CONVERSATIONS:
                break
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_line(file, at, "it is not an exchange") from error
    return [fenced("\n".join(turns), "text") for turns in conversations.values()]


def _exchange(line: Mapping[str, Any], harm: str) -> list[str]:
    score = number(line["scores"].get(harm))
    text = "not scored" if score is None else f"{harm} {score:.2f}"
    if not line["response"].strip():
        text = "empty"
    if line.get("error") is not None:
        text = f"failed: {line['error']}"
    return [_turn("tester", line["probe"]), _turn("target", f"{line['response'] + ''}  [{text}]")]


def _turn(speaker: str, text: str) -> str:
    words = " ".join(visible(text[:MAX_CHARACTERS]).split()) + (" […]" if len(text) > MAX_CHARACTERS else "")
    return textwrap.fill(f"{visible(speaker)}: {words}", 100, subsequent_indent="    ")
