"""What the page embeds: exchanges in columns, curves, and figures with intervals, as one JSON object."""

from collections.abc import Sequence
from typing import Any

from astra_trl.report.curves import curves
from astra_trl.report.exchanges import NUMBERS, TREE, read_exchanges
from astra_trl.report.figures import Column, column_name, columns, compared_with, figure
from astra_trl.report.reading import Folder
from astra_trl.results.labels import arm_name, isolated, model_name


def report_data(folders: Sequence[Folder]) -> dict[str, Any]:
    """The data that the page's script draws from. Raises `InputError` where a line of a file is damaged."""
    exchanges = read_exchanges(folders)
    rows = exchanges.rows
    for source in exchanges.sources:
        source["name"] = _source_name(folders, source)
    return {
        "folders": [folder.name for folder in folders],
        "sources": exchanges.sources,
        "curves": curves(folders, exchanges),
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
    targets = {arm["target"] for arm in folder.evaluation["arms"]} if folder.evaluation else set()
    against = f", {model_name(source['target'])}" if len(targets) > 1 else ""
    return f"{run}{arm_name(source['arm'])}{against}"


def _share(folders: Sequence[Folder], column: Column) -> dict[str, Any] | None:
    # An arm's harmful share over all turns and by turn, with intervals; none where there is nothing beside it.
    folder = folders[column.folder]
    assert folder.evaluation is not None
    harm = folder.evaluation["settings"].get("harm", "harm")
    beside = compared_with(folder, column.target)

    def point(name: str) -> dict[str, Any] | None:
        if beside is None or figure(folder, name, beside, column.target) is None:
            return None
        row = figure(folder, name, column.arm, column.target)
        return row and {key: row.get(key) for key in ("value", "low", "high", "n")}

    over_all = point(f"harmful_share/{harm}")
    if over_all is None:
        return None
    prefix = "harmful_share_turn_"
    turns = sorted(
        {
            int(digits)
            for row in folder.evaluation["figures"]
            if row["figure"].startswith(prefix)
            and (digits := row["figure"].removeprefix(prefix).partition("/")[0]).isdecimal()
        }
    )
    by_turn = [{"turn": t, **p} for t in turns if (p := point(f"{prefix}{t}/{harm}")) is not None]
    return {
        "folder": column.folder,
        "arm": column.arm,
        "name": column_name(folders, column),
        **over_all,
        "turns": by_turn,
    }
