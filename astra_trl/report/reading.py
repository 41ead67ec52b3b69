"""Run and evaluation folders as data: what their files hold, checked, every name harmless to show."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.text import parse_json, parse_yaml, visible

SCHEMA_VERSION = 2  # of evaluation.json

ARMS = TESTER, BASELINE, OPENINGS = "tester", "baseline", "openings"  # in the order in which they are shown

# What the rows of evaluation.json's tables must have: names, and numbers that may be null.
_NAMES = {
    "arms": ("arm", "target"),
    "counts": ("arm", "target"),
    "figures": ("arm", "target", "figure"),
    "differences": ("arm", "against", "target", "figure"),
}
_NUMBERS = ("value", "n", "low", "high")


@dataclass(frozen=True)
class Folder:
    """What one folder holds; `evaluation` is `None` and the tables are empty where nothing was written yet.

    Args:
        name (`str`): As much of the path's end as tells this folder from the others.
        is_run (`bool`): Whether it is a run's; else it is an evaluation's.
        config, summary (`dict`): `config.yaml` and `summary.json`.
        rounds, log (`list[dict]`): `rounds.jsonl`, and the `log_history` of `trainer_state.json`.
        evaluation (`dict`, *optional*): `evaluation.json`.
        training_exchanges, evaluation_exchanges (`Path`, *optional*): Both files are `exchanges.jsonl`.
    """

    name: str
    is_run: bool
    config: dict[str, Any]
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    log: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    training_exchanges: Path | None
    evaluation_exchanges: Path | None

    @property
    def threshold(self) -> float:
        """The score from which on a response counts as harmful."""
        return number((self.evaluation or {}).get("settings", {}).get("threshold")) or 0.5


def read_folders(paths: Sequence[str | Path] | str | Path) -> list[Folder]:
    """The folders in their order. Raises `InputError` where one is no run or evaluation, or a file is damaged."""
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise InputError("there is no folder to report on: give a run's output_dir or an evaluation folder")
    return [_read_folder(path, name) for path, name in zip(given, _names(given), strict=True)]


def read_lines(file: Path | None) -> Iterator[tuple[int, Any]]:
    """The number and the JSON of each line; an unfinished last line, which a crash leaves, is none."""
    if file is None:
        return
    with file.open("rb") as lines:
        for place, line in enumerate(lines, 1):
            try:
                data = parse_json(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise damaged(file, f"line {place} is no JSON") from error
            if not isinstance(data, dict):
                raise damaged(file, f"line {place} is no JSON object")
            yield place, data


def number(value: Any) -> float | None:
    """The value where it is a finite number, else `None`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None


def damaged(file: Path, what: str) -> InputError:
    """The error for a file that is not what was written."""
    return InputError(f"{visible(str(file))!r} is damaged ({what}): restore it, or leave its folder out")


def _read_folder(path: Path, name: str) -> Folder:
    shown = visible(str(path))
    if not path.is_dir():
        raise InputError(f"{shown!r} is no folder: give a run's output_dir or an evaluation folder")
    files = {file: path / file for file in ("config.yaml", "summary.json", "rounds.jsonl")}
    is_run = any(file.exists() for file in files.values())
    evaluation = path / "evaluation" if is_run else path
    if not is_run and not (path / "evaluation.json").exists():
        if (path / "exchanges.jsonl").exists():
            raise InputError(f"{shown!r} holds an evaluation without evaluation.json: evaluate again to finish it")
        raise InputError(f"{shown!r} holds no run and no evaluation: give a run's output_dir or an evaluation folder")
    result = evaluation / "evaluation.json"
    return Folder(
        name=name,
        is_run=is_run,
        config=_object(files["config.yaml"], parse_yaml),
        summary=_object(files["summary.json"], parse_json),
        rounds=[_harmless(line) for _, line in read_lines(_if_there(files["rounds.jsonl"]))],
        log=_log_history(path) if is_run else [],
        evaluation=_evaluation(result) if result.exists() else None,
        training_exchanges=_if_there(path / "exchanges.jsonl") if is_run else None,
        evaluation_exchanges=_if_there(evaluation / "exchanges.jsonl") if result.exists() else None,
    )


def _if_there(file: Path) -> Path | None:
    return file if file.exists() else None


def _object(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        data = parse(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(file, "it cannot be read") from error
    if not isinstance(data, dict):
        raise damaged(file, "it holds no settings by name")
    return _harmless(data)


def _log_history(path: Path) -> list[dict[str, Any]]:
    # At the top once the run has ended; before that in the checkpoints, each of which holds all up to itself.
    def step(file: Path) -> int:
        digits = file.parent.name.removeprefix("checkpoint-")
        return int(digits) if digits.isdecimal() else -1

    states = [path / "trainer_state.json", *sorted(path.glob("checkpoint-*/trainer_state.json"), key=step)[::-1]]
    for file in states:
        if file.exists():
            history = _object(file, parse_json).get("log_history", [])
            if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
                raise damaged(file, "log_history is no list of objects")
            return history
    return []


def _evaluation(file: Path) -> dict[str, Any]:
    data = _object(file, parse_json)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{visible(str(file))!r} has schema_version {data.get('schema_version')!r}, and this version of astra_trl "
            f"reads {SCHEMA_VERSION}: evaluate again, or use the version that wrote it"
        )
    settings = data.get("settings")
    if not isinstance(settings, dict):
        raise damaged(file, "no settings")
    scorers = settings.get("scorers", [])
    if not isinstance(scorers, list) or not all(
        isinstance(name, str) for name in [settings.get("harm", ""), *scorers]
    ):
        raise damaged(file, "harm and scorers are no names")
    for table, names in _NAMES.items():
        rows = data.get(table)
        if not isinstance(rows, list) or not all(_has(row, names, table) for row in rows):
            raise damaged(file, f"{table} is no list of what it should hold")
    if not data["arms"]:
        raise damaged(file, "no arms")
    targets = list(dict.fromkeys(row["target"] for row in data["arms"] + data["counts"]))
    first = {arm: place for place, arm in enumerate(ARMS)}
    for table in ("arms", "counts"):
        data[table].sort(key=lambda row: (targets.index(row["target"]), first.get(row["arm"], len(first))))
    return data


def _has(row: Any, names: Sequence[str], table: str) -> bool:
    numbers = _NUMBERS if table in ("figures", "differences") else ()
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in names)
        and all(row.get(key) is None or number(row[key]) is not None for key in numbers)
    )


def _harmless(data: Any) -> Any:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, Mapping):
        return {visible(str(key)): _harmless(value) for key, value in data.items()}
    return [_harmless(value) for value in data] if isinstance(data, list | tuple) else data


def _names(paths: Sequence[Path]) -> list[str]:
    parts = [path.absolute().parts for path in paths]
    names = []
    for place, mine in enumerate(parts):
        count = 2 if mine[-1] == "evaluation" else 1
        others = [other for index, other in enumerate(parts) if index != place and other != mine]
        while count < len(mine) and any(other[-count:] == mine[-count:] for other in others):
            count += 1
        names.append(visible("/".join(mine[-count:])))
    # A folder that is given twice is still two columns.
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, 1)]
