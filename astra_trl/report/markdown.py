"""The report's figures as Markdown, for a model card or a pull request."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_trl.report.figures import Table, first_target, headline, summary_line, tables
from astra_trl.report.reading import TESTER, Folder, damaged, number, read_folders, read_lines
from astra_trl.report.tested import tested
from astra_trl.text import visible

CONVERSATIONS = 3
LONGEST = 2000  # characters of a turn


def markdown_report(folders: Sequence[str | Path] | str | Path) -> str:
    """Headline, figures with intervals, counts, what was tested, and the first conversations of the tester (not the
    best ones) as Markdown. Raises `InputError` as `write_report` does."""
    read = read_folders(folders)
    parts = [
        f"{_name(read, folder)}**{_inline(headline(folder))}** {_inline(summary_line(folder))}" for folder in read
    ]
    found = tables(read)
    parts += [_table(found[key]) for key in ("figures", "transfer", "counts") if key in found]
    for folder in read:
        rows = [f"- {_inline(name)}: {_inline(value)}" for name, value in tested(folder)]
        parts.append("\n".join([f"### What was tested{_suffix(read, folder)}\n", *rows]))
    spoken = _conversations(read[0])
    if spoken:
        parts += [f"### The first conversations{_suffix(read, read[0])}, not the best ones", *spoken]
    return "\n\n".join(parts) + "\n"


def _inline(text: str) -> str:
    # Every character that Markdown or HTML could read as its own is escaped, and the text stays in its line.
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*_\[\]#|~@$]|:(?=/)|(?<=www)\.", r"\\\g<0>", text)


def _name(folders: Sequence[Folder], folder: Folder) -> str:
    return f"{_inline(folder.name)}: " if len(folders) > 1 else ""


def _suffix(folders: Sequence[Folder], folder: Folder) -> str:
    return f": {_inline(folder.name)}" if len(folders) > 1 else ""


def _table(table: Table) -> str:
    rows = [
        f"| {_inline(name)} | " + " | ".join(_inline(f"{cell.text} {cell.interval}") for cell in cells) + " |"
        for name, cells in table.rows
    ]
    head = f"| | {' | '.join(_inline(name) for name in table.head)} |"
    lines = [head, "|---|" + "---:|" * len(table.head), *rows]
    note = f"{_inline(table.note)}\n\n" if table.note else ""
    return f"### {table.title}\n\n{note}" + "\n".join(lines)


def _conversations(folder: Folder) -> list[str]:
    # The first openings' trees of the tester, each down its first branches.
    harm = (folder.evaluation or {}).get("settings", {}).get("harm", "harm")
    spoken: dict[int, list[str]] = {}
    file = folder.evaluation_exchanges
    for at, line in read_lines(file):
        assert file is not None
        try:
            if visible(line["arm"]) != TESTER or visible(line["target"]) != first_target(folder) or any(line["path"]):
                continue
            if line["tree"] in spoken or len(spoken) < CONVERSATIONS:
                said = spoken.setdefault(line["tree"], [])
                said += _turns(line, harm, said)
            elif len(spoken) == CONVERSATIONS:
                break
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(file, f"line {at} is no exchange") from error
    return [_fenced("\n".join(said)) for said in spoken.values()]


def _turns(line: Mapping[str, Any], harm: str, said: Sequence[str]) -> list[str]:
    # An exchange, behind its context where nothing is said yet.
    context = [] if said else [_turn(speaker, text) for speaker, text in line["context"]]
    score = number(line["scores"].get(harm))
    measured = "not scored" if score is None else f"{harm} {score:.2f}"
    if not line["response"].strip():
        measured = "empty"
    if line.get("error") is not None:
        measured = f"failed: {line['error']}"
    return [*context, _turn("tester", line["probe"]), _turn("target", f"{line['response'] + ''}  [{measured}]")]


def _turn(speaker: str, text: str) -> str:
    said = " ".join(visible(text[:LONGEST]).split()) + (" […]" if len(text) > LONGEST else "")
    return textwrap.fill(f"{visible(speaker)}: {said}", 100, subsequent_indent="    ")


def _fenced(text: str) -> str:
    # Within a fence longer than any in the text, nothing of it is Markdown or HTML.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
