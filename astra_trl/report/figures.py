"""Figures of evaluations in sentences and tables: headline, comparison, transfer, counts. Text is not escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from astra_trl.evaluation.results import BASELINE, OPENINGS, TESTER, Evaluation, Figure, cut_responses, number
from astra_trl.results.labels import (
    ARM_NAMES,
    LABELS,
    Cell,
    arm_name,
    format_figure,
    isolated,
    long_label,
    model_name,
    percent,
)
from astra_trl.results.reading import Folder

_IN_FIRST_TABLE = list(LABELS)[: list(LABELS).index("probe_logprob_per_token") + 1]
_OF_HELD_OUT = ("harmful_share", "harmful_conversations")
_COUNTS = ("conversations", "exchanges", "failed", "empty_responses", "empty_probes", "unrewarded")
_COUNTS_IF_ANY = ("cut_responses", "cut_probes", "openings_left_out", "openings_shortened")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    title: str
    note: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]


class Column(NamedTuple):
    """One arm of the evaluation in one folder, against one target; `folder` is the place of the folder."""

    folder: int
    evaluation: Evaluation
    arm: str
    target: str

    def find(self, name: str, against: str | None = None) -> Figure | None:
        """Return a figure of the arm, or its difference."""
        return self.evaluation.find(name, self.arm, self.target, against)

    def has_comparison(self, name: str) -> bool:
        """`True` if the arm that figures are shown_columns beside has this one too."""
        beside = self.evaluation.compared_with(self.target)
        return beside is not None and self.evaluation.find(name, beside, self.target) is not None


def headline(folder: Folder) -> str:
    """Return one sentence: the share of harmful responses, and that of the untrained tester."""
    evaluation = folder.evaluation
    if evaluation is None:
        return _headline_of_training(folder)
    figures = {arm: evaluation.find(f"harmful_share/{evaluation.harm}", arm) for arm in evaluation.arms_of()}
    texts = {arm: percent(figure.value) for arm, figure in figures.items() if figure}
    beside = ", ".join(f"{ARM_NAMES[arm]} {texts[arm]}" for arm in (BASELINE, OPENINGS) if arm in texts)
    if not beside:
        return "Evaluated without an arm to compare with."
    main = next((arm for arm in texts if arm not in (BASELINE, OPENINGS)), None)
    return f"Harmful in {texts[main]} of responses; {beside}." if main else f"Harmful responses: {beside}."


def summary_line(folder: Folder) -> str:
    """Return what the headline's figures were measured on."""
    evaluation = folder.evaluation
    if evaluation is None:
        last = _unmeasured(folder.rounds[-1]) if folder.rounds else ""
        return "Not evaluated yet: these are figures of training, on the openings that the tester is trained on." + (
            f" In no figure of harm in the last round: {last}." if last else ""
        )
    settings = evaluation.settings
    width, parts = settings.get("width", 1), []
    for row in evaluation.counts:
        unscored = row["unscored"].get(evaluation.harm) if isinstance(row.get("unscored"), dict) else 0
        if row["target"] == evaluation.targets[0] and (some := _unmeasured({**row, "unscored": unscored})):
            parts.append(f"{arm_name(row['arm'])} {some}")
    system = str(settings.get("system_label") or settings.get("system", "The system"))
    return (
        f"{isolated(system)} against {model_name(evaluation.targets[0])} on "
        f"{settings.get('openings', '?')} held-out openings, {settings.get('depth', '?')} turns each"
        f"{f', {width} probes per node' if width != 1 else ''}. A response counts as harmful if "
        f"{isolated(evaluation.harm)} scores it at or above {evaluation.threshold:g}. Brackets hold 95% intervals: "
        "how much a figure could change with other openings."
    ) + (f" In no figure of harm: {'; '.join(parts)}." if parts else "")


def columns(folders: Sequence[Folder], every_target: bool = False) -> list[Column]:
    """Return the arms to show, of each folder against its first target or against all. A folder without an arm to
    compare with has none."""
    return [
        Column(place, folder.evaluation, arm["arm"], arm["target"])
        for place, folder in enumerate(folders)
        if folder.evaluation
        for arm in folder.evaluation.arms
        if (every_target or arm["target"] == folder.evaluation.targets[0])
        and folder.evaluation.compared_with(arm["target"])
    ]


def column_name(folders: Sequence[Folder], folder: int, arm: str) -> str:
    """Return the name of an arm, with its folder's if there are several folders."""
    return f"{isolated(folders[folder].name)}: {arm_name(arm)}" if len(folders) > 1 else arm_name(arm)


def tables(folders: Sequence[Folder]) -> dict[str, Table]:
    """Return the tables `figures`, `transfer`, `counts` and `all`, except empty ones."""
    evaluations = [folder.evaluation for folder in folders if folder.evaluation]
    names = list(dict.fromkeys(row["figure"] for evaluation in evaluations for row in evaluation.figures))
    order = {kind: place for place, kind in enumerate(LABELS)}
    names.sort(key=lambda name: order.get(name.split("/")[0], len(order)))
    held_out = {name for evaluation in evaluations for name in evaluation.scorers} - {e.harm for e in evaluations}
    important = [
        name
        for name in names
        if (kind := name.partition("/"))[0] in (_OF_HELD_OUT if kind[2] in held_out else _IN_FIRST_TABLE)
    ]
    by_key = {
        "figures": _comparison(folders, important, "Figures"),
        "transfer": _transfer(folders),
        "counts": _counts(folders),
        "all": _comparison(folders, names, "All figures and differences", everything=True),
    }
    return {key: table for key, table in by_key.items() if table.rows}


def _headline_of_training(folder: Folder) -> str:
    shares = [(row.get("round"), row.get("harmful_share")) for row in folder.rounds]
    shares = [(at, share) for at, share in shares if number(at) is not None and number(share) is not None]
    if not shares:
        return "No round of training is finished yet."
    (first, before), (last, after) = shares[0], shares[-1]
    if first == last:
        return f"One round of training: harmful in {percent(before)} of responses, not evaluated yet."
    return f"Harmful in {percent(after)} of responses in training’s round {last}, {percent(before)} in round {first}."


def _unmeasured(row: Mapping[str, Any]) -> str:
    counts = {"failed": row.get("failed"), "empty": row.get("empty_responses"), "not scored": row.get("unscored")}
    some = [f"{count} {name}" for name, count in counts.items() if count]
    return f"{', '.join(some)} of {row.get('exchanges', '?')}" if some else ""


def _comparison(folders: Sequence[Folder], names: Sequence[str], title: str, everything: bool = False) -> Table:
    shown_columns = columns(folders)
    scorers = list(
        dict.fromkeys(name for folder in folders if folder.evaluation for name in folder.evaluation.scorers)
    )
    pairs = [
        (column, against)
        for column in shown_columns
        for against in _compared(column)
        if everything or (column.arm == TESTER and against == column.evaluation.compared_with(column.target))
    ]
    head = [column_name(folders, column.folder, column.arm) for column in shown_columns]
    head += [f"{column_name(folders, column.folder, column.arm)} − {arm_name(against)}" for column, against in pairs]
    rows = []
    for name in names:
        beside = {column.folder for column in shown_columns if column.has_comparison(name)}
        if beside:
            figures = [column.find(name) for column in shown_columns]
            sizes = dict.fromkeys(str(figure.size) for figure in figures if figure and isinstance(figure.size, int))
            cells = [
                format_figure(name, figure if column.folder in beside else None)
                for column, figure in zip(shown_columns, figures, strict=True)
            ]
            cells += [format_figure(name, column.find(name, against), True) for column, against in pairs]
            size = f", {' or '.join(sizes)} at a time" if sizes else ""
            rows.append((long_label(name, scorers, shown_columns[0].evaluation.harm) + size, cells))
    note = (
        "The openings alone have one turn each, so figures of whole conversations are of that turn. Diversity and "
        "the number of attacks found depend on the number of texts: they are averages over sets of one size, the same "
        "for all arms of a target."
    )
    return Table(title, note if any(column.arm == OPENINGS for column in shown_columns) else "", head, rows)


def _compared(column: Column) -> Iterable[str]:
    place = (column.arm, column.target)
    rows = column.evaluation.differences
    return dict.fromkeys(row["against"] for row in rows if (row["arm"], row["target"]) == place)


def _transfer(folders: Sequence[Folder]) -> Table:
    shown_columns = columns([f for f in folders if f.evaluation and len(f.evaluation.targets) > 1], every_target=True)
    arms = list(dict.fromkeys(column.arm for column in shown_columns))
    rows = []
    for folder in folders:
        evaluation = folder.evaluation
        if evaluation is None or len(evaluation.targets) < 2:
            continue
        for target, scorer in ((target, scorer) for target in evaluation.targets for scorer in evaluation.scorers):
            name, beside = f"harmful_share/{scorer}", evaluation.compared_with(target)
            if beside is None or evaluation.find(name, beside, target) is None:
                continue
            cells = [format_figure(name, evaluation.find(name, arm, target)) for arm in arms]
            difference = format_figure(name, evaluation.find(name, TESTER, target, BASELINE), True)
            trained = " (headline)" if target == evaluation.targets[0] else ""
            run = f"{isolated(folder.name)}: " if len(folders) > 1 else ""
            rows.append((f"{run}{model_name(target)}{trained}", [Cell(scorer), *cells, difference]))
    head = ["scorer", *(arm_name(arm) for arm in arms), f"{ARM_NAMES[TESTER]} − {ARM_NAMES[BASELINE]}"]
    return Table("Transfer to other targets", "Share of harmful responses.", head, rows)


def _counts(folders: Sequence[Folder]) -> Table:
    counts = [
        (place, row)
        for place, folder in enumerate(folders)
        for row in (folder.evaluation.counts if folder.evaluation else [])
    ]
    keys = (*_COUNTS, *(key for key in _COUNTS_IF_ANY if any(row.get(key) for _, row in counts)))
    rows, notes = [], []
    for place, row in counts:
        unscored = row.get("unscored")
        counts_by_scorer = unscored.items() if isinstance(unscored, dict) else ()
        some = ", ".join(f"{name} {count}" for name, count in counts_by_scorer if count) or "0"
        name = f"{column_name(folders, place, row['arm'])}, {model_name(row['target'])}"
        rows.append((name, [*(Cell(str(row.get(key, "–"))) for key in keys), Cell(some)]))
        evaluation = folders[place].evaluation
        if row["arm"] == TESTER and evaluation and (cut := cut_responses(row, evaluation.is_chat(row["target"]))):
            notes.append(f" {name}: {cut}.")
    return Table(
        "Counts: what failed, was empty or could not be scored",
        "Exchanges that failed, got an empty response or could not be scored are in no figure of harm, and never "
        "count as 0. The openings alone end at the last user’s turn: the assistant’s turns after it are dropped "
        "(openings shortened), and openings without such a turn are left out." + "".join(notes),
        [*(key.replace("_", " ") for key in keys), "not scored"],
        rows,
    )
