"""Figures of evaluations in words and tables: headline, comparison, transfer, counts. Text is plain, not escaped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from astra_trl.report.reading import BASELINE, OPENINGS, TESTER, Folder, number
from astra_trl.results.labels import ARM_NAMES, LABELS, Cell, arm_name, isolated, label, model_name, percent, written

_IN_HEADLINE = tuple(LABELS)[:11]
_NOTE = (
    "The openings alone are answered once each: what is said of whole conversations is then of one turn. Diversity "
    "falls as texts grow in number: it is the average over sets of one size, the same for all arms of a target."
)
_OF_HELD_OUT = ("harmful_share", "harmful_conversations")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    title: str
    note: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]


class Column(NamedTuple):
    """One arm of one folder against one target."""

    folder: int
    arm: str
    target: str


def headline(folder: Folder) -> str:
    """One sentence: what share of responses is harmful, and beside it that of the untrained tester."""
    if folder.evaluation is None:
        return _of_training(folder)
    target, harm = first_target(folder), folder.evaluation["settings"].get("harm", "harm")
    arms = dict.fromkeys(arm["arm"] for arm in folder.evaluation["arms"] if arm["target"] == target)
    shares = {arm: figure(folder, f"harmful_share/{harm}", arm, target) for arm in arms}
    texts = {arm: percent(number(row.get("value"))) for arm, row in shares.items() if row}
    beside = ", ".join(f"{ARM_NAMES[arm]} {texts[arm]}" for arm in (BASELINE, OPENINGS) if arm in texts)
    if not beside:
        return "Evaluated without anything to compare with."
    main = next((arm for arm in texts if arm not in ARM_NAMES), None)
    return f"Harmful in {texts[main]} of responses; {beside}." if main else f"Harmful responses: {beside}."


def summary_line(folder: Folder) -> str:
    """What the headline's figures were measured on."""
    if folder.evaluation is None:
        last = _unmeasured(folder.rounds[-1]) if folder.rounds else ""
        return "Not evaluated yet: these are figures of training, on the openings that the tester is trained on." + (
            f" In no figure of harm in the last round: {last}." if last else ""
        )
    settings = folder.evaluation["settings"]
    width = settings.get("width", 1)
    trees = f", {width} probes a node" if width != 1 else ""
    harm = isolated(str(settings.get("harm", "harm")))
    return (
        f"{isolated(str(settings.get('system', 'The system')))} against {model_name(first_target(folder))} on "
        f"{settings.get('openings', '?')} held-out openings, {settings.get('depth', '?')} turns each{trees}. A "
        f"response counts as harmful from a score of {folder.threshold:g} on, by {harm}. Brackets hold 95% "
        f"intervals: how much other openings could change a figure.{_left_out(folder)}"
    )


def _left_out(folder: Folder) -> str:
    # What stands in no figure of harm, of the arms that the headline is about.
    assert folder.evaluation is not None
    counts = [row for row in folder.evaluation["counts"] if row["target"] == first_target(folder)]
    harm, parts = folder.evaluation["settings"].get("harm", "harm"), []
    for row in counts:
        unscored = row["unscored"].get(harm) if isinstance(row.get("unscored"), dict) else 0
        if some := _unmeasured({**row, "unscored": unscored}):
            parts.append(f"{arm_name(row['arm'])} {some}")
    return f" In no figure of harm: {'; '.join(parts)}." if parts else ""


def _unmeasured(row: Mapping[str, Any]) -> str:
    found = {"failed": row.get("failed"), "empty": row.get("empty_responses"), "not scored": row.get("unscored")}
    some = [f"{count} {name}" for name, count in found.items() if count]
    return f"{', '.join(some)} of {row.get('exchanges', '?')}" if some else ""


def first_target(folder: Folder) -> str:
    """The target whose figures make the headline."""
    return folder.evaluation["arms"][0]["target"] if folder.evaluation else ""


def compared_with(folder: Folder, target: str) -> str | None:
    """The arm that stands beside every figure: the untrained tester, or else the openings alone."""
    arms = [arm["arm"] for arm in folder.evaluation["arms"] if arm["target"] == target] if folder.evaluation else []
    return next((arm for arm in (BASELINE, OPENINGS) if arm in arms), None)


def columns(folders: Sequence[Folder], targets: Sequence[str] | None = None) -> list[Column]:
    """The arms to show, of each folder against its first target or against those given; a folder without anything to
    compare with has none."""
    return [
        Column(place, arm["arm"], arm["target"])
        for place, folder in enumerate(folders)
        if folder.evaluation
        for arm in folder.evaluation["arms"]
        if arm["target"] in (targets or [first_target(folder)]) and compared_with(folder, arm["target"])
    ]


def figure(folder: Folder, name: str, arm: str, target: str, against: str | None = None) -> dict[str, Any] | None:
    """A row of the evaluation's figures, or of its differences; `None` where it holds none."""
    wanted = {"arm": arm, "target": target, "figure": name, **({"against": against} if against else {})}
    rows = (folder.evaluation or {}).get("differences" if against else "figures", [])
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def tables(folders: Sequence[Folder]) -> dict[str, Table]:
    """`figures`, `transfer`, `counts` and `all`, those of which there is anything to show."""
    names = list(dict.fromkeys(row["figure"] for f in folders if f.evaluation for row in f.evaluation["figures"]))
    settings = [folder.evaluation["settings"] for folder in folders if folder.evaluation]
    scorers = list(dict.fromkeys(name for one in settings for name in one.get("scorers", [])))
    order = {kind: place for place, kind in enumerate(LABELS)}
    names.sort(key=lambda name: order.get(name.split("/")[0], len(order)))
    harms = {one.get("harm") for one in settings}
    important = [
        name
        for name in names
        if (kind := name.partition("/"))[0] in (_OF_HELD_OUT if kind[2] in set(scorers) - harms else _IN_HEADLINE)
    ]
    found = {
        "figures": _comparison(folders, important, scorers, "Figures"),
        "transfer": _transfer(folders, scorers),
        "counts": _counts(folders),
        "all": _comparison(folders, names, scorers, "All figures and differences", everything=True),
    }
    return {key: table for key, table in found.items() if table.rows}


def column_name(folders: Sequence[Folder], column: Column) -> str:
    """What an arm is called: with its folder's name where there are several."""
    arm = arm_name(column.arm)
    return f"{isolated(folders[column.folder].name)}: {arm}" if len(folders) > 1 else arm


def _of_training(folder: Folder) -> str:
    shares = [(row["round"], row["harmful_share"]) for row in folder.rounds if _has_share(row)]
    if not shares:
        return "No round of training is finished yet."
    (first, before), (last, after) = shares[0], shares[-1]
    if first == last:
        return f"One round of training: harmful in {percent(before)} of responses, not evaluated yet."
    return f"Harmful in {percent(after)} of responses in training’s round {last}, {percent(before)} in round {first}."


def _has_share(row: Mapping[str, Any]) -> bool:
    return number(row.get("harmful_share")) is not None and number(row.get("round")) is not None


def _comparison(
    folders: Sequence[Folder], names: Sequence[str], scorers: Sequence[str], title: str, everything: bool = False
) -> Table:
    shown = columns(folders)
    pairs = _differences(folders, shown, everything)
    head = [column_name(folders, column) for column in shown]
    head += [f"{column_name(folders, column)} − {arm_name(against)}" for column, against in pairs]
    rows = []
    for name in names:
        beside = {
            c.folder for c in shown if c.arm == compared_with(folders[c.folder], c.target) and _row(folders, c, name)
        }
        cells = [written(name, _row(folders, c, name)) if c.folder in beside else Cell("") for c in shown]
        cells += [written(name, _row(folders, c, name, against), True) for c, against in pairs]
        if beside:
            rows.append((label(name, scorers, _harm(folders, shown)) + _size(folders, shown, name), cells))
    return Table(title, _NOTE if any(column.arm == OPENINGS for column in shown) else "", head, rows)


def _differences(folders: Sequence[Folder], shown: Sequence[Column], everything: bool) -> list[tuple[Column, str]]:
    found = []
    for column in shown:
        folder = folders[column.folder]
        assert folder.evaluation is not None
        rows = [r for r in folder.evaluation["differences"] if (r["arm"], r["target"]) == (column.arm, column.target)]
        against = list(dict.fromkeys(row["against"] for row in rows))
        beside = compared_with(folder, column.target)
        found += [(column, other) for other in against if everything or (column.arm == TESTER and other == beside)]
    return found


def _transfer(folders: Sequence[Folder], scorers: Sequence[str]) -> Table:
    arms: dict[tuple[int, str], None] = {}
    lines: list[tuple[int, str, str]] = []
    for place, folder in enumerate(folders):
        targets = list(dict.fromkeys(arm["target"] for arm in folder.evaluation["arms"])) if folder.evaluation else []
        if len(targets) < 2:
            continue
        shown = columns([folder], targets)
        arms |= dict.fromkeys((place, column.arm) for column in shown)
        lines += [(place, target, scorer) for target in targets for scorer in scorers]
    names = list(dict.fromkeys(arm for _, arm in arms))
    head = ["scorer", *(arm_name(arm) for arm in names), "tester − untrained"]
    rows = []
    for place, target, scorer in lines:
        folder, name = folders[place], f"harmful_share/{scorer}"
        beside = compared_with(folder, target)
        if beside is None or figure(folder, name, beside, target) is None:
            continue
        against = figure(folder, name, TESTER, target, BASELINE)
        cells = [written(name, figure(folder, name, arm, target)) for arm in names]
        trained = " (headline)" if target == first_target(folder) else ""
        run = f"{isolated(folder.name)}: " if len(folders) > 1 else ""
        rows.append((f"{run}{model_name(target)}{trained}", [Cell(scorer), *cells, written(name, against, True)]))
    return Table("Transfer to other targets", "Share of harmful responses.", head, rows)


def _counts(folders: Sequence[Folder]) -> Table:
    keys: tuple[str, ...] = ("conversations", "exchanges", "failed", "empty_responses", "empty_probes", "unrewarded")
    of_openings = ("openings_left_out", "openings_shortened")  # shown if there are any
    rows_of = [row for folder in folders for row in (folder.evaluation["counts"] if folder.evaluation else [])]
    keys += tuple(key for key in of_openings if any(row.get(key) for row in rows_of))
    head = [*(key.replace("_", " ") for key in keys), "not scored"]
    rows = []
    for place, folder in enumerate(folders):
        for row in folder.evaluation["counts"] if folder.evaluation else []:
            unscored = row.get("unscored") if isinstance(row.get("unscored"), dict) else {}
            some = ", ".join(f"{name} {count}" for name, count in unscored.items() if count) or "0"
            arm = column_name(folders, Column(place, row["arm"], row["target"]))
            rows.append(
                (f"{arm}, {model_name(row['target'])}", [*(Cell(str(row.get(key, "–"))) for key in keys), Cell(some)])
            )
    return Table(
        "Counts: what failed, was empty or could not be scored",
        "What failed, got an empty response or could not be scored is in no figure of harm, and never counts as 0. "
        "The openings alone end at the last user’s turn: the assistant’s turns behind it are dropped (openings "
        "shortened), and those without such a turn are left out.",
        head,
        rows,
    )


def _size(folders: Sequence[Folder], shown: Iterable[Column], name: str) -> str:
    # How many texts a figure of diversity is of at a time.
    sizes = dict.fromkeys((_row(folders, column, name) or {}).get("size") for column in shown)
    numbers = [str(size) for size in sizes if isinstance(size, int)]
    return f", {' or '.join(numbers)} at a time" if numbers else ""


def _row(folders: Sequence[Folder], c: Column, name: str, against: str | None = None) -> dict[str, Any] | None:
    return figure(folders[c.folder], name, c.arm, c.target, against)


def _harm(folders: Sequence[Folder], shown: Iterable[Column]) -> str:
    def harms() -> Iterator[str]:
        for column in shown:
            yield (folders[column.folder].evaluation or {})["settings"].get("harm", "harm")

    return next(harms(), "harm")
