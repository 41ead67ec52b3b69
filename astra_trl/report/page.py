"""The report as one HTML file without any other files."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from astra_trl.report.data import report_data
from astra_trl.report.figures import Table, headline, summary_line, tables
from astra_trl.report.output import write_output
from astra_trl.report.setup import all_settings, setup
from astra_trl.results.reading import Folder, read_folders

# In the order of their dependencies; together they are one module.
SCRIPTS = (
    "dom.js", "corpus.js", "charts.js", "overview.js", "filters.js", "list.js", "scatter.js", "tree.js", "dialogue.js",
    "main.js",
)  # fmt: skip


def write_report(folders: Sequence[str | Path] | str | Path, output: str | Path) -> Path:
    """Write the report on run and evaluation folders, side by side if there are several, and return its path.

    Args:
        folders (`Sequence[str]`):
            Each is the `output_dir` of a run or the folder of an evaluation.
        output (`str`):
            The HTML file.

    Raises:
        InputError: a folder holds neither a run nor an evaluation, a file in it is damaged, or `output` exists and is
            not a report.
    """
    return write_output(output, lambda: html_report(read_folders(folders)))


def html_report(folders: Sequence[Folder]) -> str:
    """Return the page's HTML."""
    source = files("astra_trl.report")
    style = (source / "page.css").read_text(encoding="utf-8")
    script = "\n".join((source / name).read_text(encoding="utf-8") for name in SCRIPTS)
    data = json.dumps(report_data(folders), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    by_key = tables(folders)
    parts = {
        "policy": _policy(script, style),
        "title": escape(", ".join(folder.name for folder in folders)),
        "style": style,
        "script": script,
        # Only `<` could end a script element, or begin a comment in it.
        "data": data.replace("<", "\\u003c"),
        "headline": "<br>".join(
            f"{_bold_name(folders, folder)}<bdi>{escape(headline(folder))}</bdi>" for folder in folders
        ),
        "several": ' class="several"' if len(folders) > 1 else "",
        "summary": _summary(folders),
        "figures": _table(by_key["figures"]) if "figures" in by_key else _no_figures(folders),
        "transfer": f"<h3>{by_key['transfer'].title}</h3>{_table(by_key['transfer'])}" if "transfer" in by_key else "",
        **{key: _folded(by_key[key]) if key in by_key else "" for key in ("counts", "all")},
        "setup": "".join(_setup(folders, folder) for folder in folders),
    }
    template = (source / "page.html").read_text(encoding="utf-8")
    # In one pass, so that inserted text is not searched again.
    return re.sub(r"<!-- (\w+) -->", lambda match: parts[match[1]], template)


def _policy(script: str, style: str) -> str:
    def source_hash(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source_hash(script)}; style-src {source_hash(style)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _summary(folders: Sequence[Folder]) -> str:
    if len({summary_line(folder) for folder in folders}) == 1:
        return f"<p>{escape(summary_line(folders[0]))}</p>"
    return "".join(f"<p>{_bold_name(folders, folder)}{escape(summary_line(folder))}</p>" for folder in folders)


def _bold_name(folders: Sequence[Folder], folder: Folder) -> str:
    return f"<b><bdi>{escape(folder.name)}</bdi></b> " if len(folders) > 1 else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"><bdi>{escape(name)}</bdi></th>' for name in table.head)
    rows = []
    for name, cells in table.rows:
        values = "".join(
            f"<td><bdi>{escape(cell.text)}</bdi>"
            + (f" <small>{escape(cell.interval)}</small>" if cell.interval else "")
            + "</td>"
            for cell in cells
        )
        rows.append(f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>{values}</tr>')
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    title = escape(table.title)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _folded(table: Table) -> str:
    return f"<details><summary>{escape(table.title)}</summary>{_table(table)}</details>"


def _no_figures(folders: Sequence[Folder]) -> str:
    if any(folder.evaluation for folder in folders):
        return (
            "<p>No figures are shown: neither the untrained tester nor the openings alone were evaluated, so there is "
            "nothing to compare them with.</p>"
        )
    return "<p>Not evaluated yet.</p>"


def _setup(folders: Sequence[Folder], folder: Folder) -> str:
    def pairs(rows: Sequence[tuple[str, str]]) -> str:
        return "".join(
            f"<div><dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd></div>" for name, value in rows
        )

    name = f"<h3><bdi>{escape(folder.name)}</bdi></h3>" if len(folders) > 1 else ""
    return (
        f"<section>{name}<dl>{pairs(setup(folder))}</dl><details><summary>Every setting</summary>"
        f'<dl class="settings">{pairs(all_settings(folder))}</dl></details></section>'
    )
