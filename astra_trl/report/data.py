"""The data that the page embeds as one JSON object: exchanges in columns, curves, and figures with intervals."""

from collections.abc import Sequence
from typing import Any

from astra_trl.report.coverage import coverage_charts
from astra_trl.report.curves import curves
from astra_trl.report.exchanges import NUMBERS, TREE, read_exchanges
from astra_trl.report.figures import Column, column_name, columns
from astra_trl.results.labels import arm_name, isolated, model_name
from astra_trl.results.reading import Folder


def report_data(folders: Sequence[Folder]) -> dict[str, Any]:
    """Return the data that the page's script draws. Raises `InputError` if a line of a file is damaged."""
    exchanges = read_exchanges(folders)
    rows = exchanges.rows
    for source in exchanges.sources:
        source["name"] = _source_name(folders, source)
    training, arms = coverage_charts(folders, exchanges)
    return {
        "folders": [folder.name for folder in folders],
        "sources": exchanges.sources,
        "curves": [*curves(folders, exchanges), *([training] if training else [])],
        "coverage": arms,
        "shares": [share for column in columns(folders) if (share := _share(folders, column)) is not None],
        "trees": {name: [tree[place] for tree in exchanges.trees] for place, name in enumerate(TREE)},
        "openings": exchanges.openings,
        "texts": exchanges.texts,
        "rows": {name: column for name, column in rows.items() if name not in NUMBERS},
        "numbers": {name: rows[name] for name in NUMBERS},
        "scores": exchanges.scores,
        "terms": exchanges.terms,
        "in_files": exchanges.in_files,
    }


def _source_name(folders: Sequence[Folder], source: dict[str, Any]) -> str:
    folder = folders[source["folder"]]
    run = f"{isolated(folder.name)}: " if len(folders) > 1 else ""
    if source["arm"] is None:
        return f"{run}training"
    several = folder.evaluation is not None and len(folder.evaluation.targets) > 1
    return f"{run}{arm_name(source['arm'])}" + (f", {model_name(source['target'])}" if several else "")


def _share(folders: Sequence[Folder], column: Column) -> dict[str, Any] | None:
    # An arm's harmful share over all turns and by turn, with intervals; `None` if there is nothing to compare with.
    harm, prefix = column.evaluation.harm, "harmful_share_turn_"

    def point(name: str) -> dict[str, Any] | None:
        figure = column.find(name) if column.has_comparison(name) else None
        return {key: getattr(figure, key) for key in ("value", "low", "high", "n")} if figure else None

    over_all = point(f"harmful_share/{harm}")
    if over_all is None:
        return None
    numbers = {
        row["figure"].removeprefix(prefix).partition("/")[0]
        for row in column.evaluation.figures
        if row["figure"].startswith(prefix)
    }
    turns = sorted(int(digits) for digits in numbers if digits.isdecimal())
    return {
        "folder": column.folder,
        "arm": column.arm,
        "name": column_name(folders, column.folder, column.arm),
        **over_all,
        "turns": [{"turn": t, **p} for t in turns if (p := point(f"{prefix}{t}/{harm}")) is not None],
    }
