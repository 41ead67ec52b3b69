"""Readers of run and evaluation folders. Files are checked, and every text in them is made safe to show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.evaluation.results import ARMS, Evaluation
from astra_trl.lines import read_lines
from astra_trl.links import refuse_links
from astra_trl.text import parse_json, parse_yaml, visible


@dataclass(frozen=True)
class Folder:
    """Content of a folder; `evaluation` is `None` and the tables are empty if nothing was written yet.

    Args:
        name (`str`): The end of its path, as long as necessary to distinguish it from the other folders.
        is_run (`bool`): `True` for a run's folder, `False` for an evaluation's.
        config, summary (`dict`): `config.yaml` and `summary.json`.
        rounds, log (`list[dict]`): `rounds.jsonl`, and the `log_history` of `trainer_state.json`.
        evaluation (`Evaluation`, *optional*): `evaluation.json`.
        training_exchanges, evaluation_exchanges (`Path`, *optional*): The two files `exchanges.jsonl`.
    """

    name: str
    is_run: bool
    config: dict[str, Any]
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    log: list[dict[str, Any]]
    evaluation: Evaluation | None
    training_exchanges: Path | None
    evaluation_exchanges: Path | None


def read_folders(paths: Sequence[str | Path] | str | Path) -> list[Folder]:
    """Return the folders in their order. Raises `InputError` if one holds no run and no evaluation, or if a file is
    damaged."""
    folders = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not folders:
        raise InputError("give a folder to report on: a run's output_dir or an evaluation folder")
    return [_read_folder(path, name) for path, name in zip(folders, _names(folders), strict=True)]


def read_evaluation(file: Path) -> Evaluation | None:
    """Return the evaluation of an `evaluation.json` with its arms in the order in which they are shown; `None` if
    the file does not exist."""
    if not file.exists():
        return None
    read = Evaluation.read(file)
    read = Evaluation(**{name: harmless(getattr(read, name)) for name in read.to_json() if name != "schema_version"})
    targets = list(dict.fromkeys(row["target"] for row in read.arms + read.counts))
    order = {arm: place for place, arm in enumerate(ARMS)}

    def place(row: Mapping[str, Any]) -> tuple[int, int]:
        return targets.index(row["target"]), order.get(row["arm"], len(order))

    return replace(read, arms=sorted(read.arms, key=place), counts=sorted(read.counts, key=place))


def read_config(run: Path) -> dict[str, Any]:
    """Return the settings of a run's `config.yaml`; none if the file does not exist."""
    return read_object(run / "config.yaml", parse_yaml)


def read_object(file: Path, parse: Callable[[str], Any] = parse_json) -> dict[str, Any]:
    """Return the object that a file holds; an empty one without a file. Raises `InputError` if it is damaged."""
    if not file.exists():
        return {}
    try:
        data = parse(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(file, f"it cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise damaged(file, "it must hold names with values")
    return harmless(data)


def harmless(data: Any) -> Any:
    """Return the data with every text and every key in it made visible."""
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, Mapping):
        return {visible(str(key)): harmless(value) for key, value in data.items()}
    return [harmless(value) for value in data] if isinstance(data, list | tuple) else data


def damaged(file: Path, problem: str) -> InputError:
    """Return the error for a file with unexpected content."""
    return InputError(f"'{visible(str(file))}' is damaged ({visible(problem)}): restore it, or delete it")


def _read_folder(path: Path, name: str) -> Folder:
    quoted = f"'{visible(str(path))}'"
    if not path.is_dir():
        raise InputError(f"{quoted} is not a folder: give a run's output_dir or an evaluation folder")
    refuse_links(path)
    is_run = any((path / file).exists() for file in ("config.yaml", "summary.json", "rounds.jsonl"))
    evaluation = path / "evaluation" if is_run else path
    if not is_run and not (path / "evaluation.json").exists():
        if (path / "exchanges.jsonl").exists():
            raise InputError(f"{quoted} holds an evaluation without evaluation.json: evaluate again to finish it")
        raise InputError(f"{quoted} holds no run and no evaluation: give a run's output_dir or an evaluation folder")
    result = read_evaluation(evaluation / "evaluation.json")
    files = (path / "exchanges.jsonl" if is_run else None, evaluation / "exchanges.jsonl" if result else None)
    training, held_out = (file if file is not None and file.exists() else None for file in files)
    return Folder(
        name=name,
        is_run=is_run,
        config=read_config(path),
        summary=read_object(path / "summary.json"),
        rounds=[harmless(line) for line in read_lines(path / "rounds.jsonl")],
        log=_log_history(path) if is_run else [],
        evaluation=result,
        training_exchanges=training,
        evaluation_exchanges=held_out,
    )


def _log_history(path: Path) -> list[dict[str, Any]]:
    # At the top once the run has ended; before that in the checkpoints, each of which holds all up to itself.
    def step(file: Path) -> int:
        digits = file.parent.name.removeprefix("checkpoint-")
        return int(digits) if digits.isdecimal() else -1

    states = [path / "trainer_state.json", *sorted(path.glob("checkpoint-*/trainer_state.json"), key=step)[::-1]]
    for file in states:
        if file.exists():
            history = read_object(file).get("log_history", [])
            if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
                raise damaged(file, "log_history must be a list of objects")
            return history
    return []


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
