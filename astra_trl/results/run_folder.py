"""What a run leaves in its `output_dir` beside TRL's checkpoints and the final model."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from astra_trl.errors import InputError
from astra_trl.text import parse_object
from astra_trl.tree import Node


class RunFolder:
    """The files of one run; rounds are numbered from 1.

    `exchanges.jsonl` holds a line an exchange, `rounds.jsonl` a line a round, `records/` the preference records that
    each round was trained on, `config.yaml` the resolved settings, `usage.json` what endpoints were asked for
    and `summary.json` what came out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.exchanges = self.path / "exchanges.jsonl"
        self.rounds = self.path / "rounds.jsonl"
        self.config = self.path / "config.yaml"
        self.summary = self.path / "summary.json"
        self.usage = self.path / "usage.json"

    def refuse_if_used(self) -> None:
        """`InputError` where the folder holds another run, finished or not."""
        if self.config.exists() and not self.summary.exists():
            raise InputError(
                f"output_dir {str(self.path)!r} holds a run that is not finished: go on with it by "
                "--resume_from_checkpoint true, choose another output_dir, or delete the folder"
            )
        if self.exchanges.exists() or self.summary.exists():
            raise InputError(
                f"output_dir {str(self.path)!r} holds another run: choose another output_dir, delete the folder, "
                "or go on with that run by resume_from_checkpoint"
            )

    def write_exchanges(self, number: int, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Adds exchanges of this round, each as `exchange_line` gives it."""
        add_lines(self.exchanges, (as_line({"round": number, **line}) for line in nodes))

    def write_figures(self, number: int, figures: Mapping[str, Any]) -> None:
        """Adds the line of this round."""
        add_lines(self.rounds, [as_line({"round": number, **figures})])

    def write_records(self, number: int, records: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> None:
        """Puts this round's records, and the figures of collecting them, under their name at once, so that they tell a
        collected round from a broken one: write them after all else that belongs to collecting it."""
        file = self._records_file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        table = pyarrow.Table.from_pylist(list(records)).replace_schema_metadata({"figures": json.dumps(figures)})
        parquet.write_table(table, unfinished)
        _put(unfinished, file)

    def has_records(self, number: int) -> bool:
        """Whether a round was collected as a whole."""
        return self._records_file(number).exists()

    def read_records(self, number: int) -> list[dict[str, Any]]:
        """The records of a round that was collected before."""
        return parquet.read_table(self._records_file(number)).to_pylist()

    def read_figures(self, number: int) -> dict[str, Any]:
        """The figures that the records of a round were written with."""
        return json.loads(parquet.read_schema(self._records_file(number)).metadata[b"figures"])

    def read_usage(self) -> dict[str, int]:
        """What `usage.json` counts."""
        try:
            return {key: int(count) for key, count in parse_object(self.usage.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{str(self.usage)!r} is damaged ({error}): delete it, and a budget counts from here"
            ) from error

    def read_nodes(self, number: int) -> list[Node]:
        """The exchanges of a round as nodes without token ids."""
        return [node for line, node in read_exchanges(self.exchanges) if line.get("round") == number]

    def forget(self, later: Callable[[dict[str, Any]], bool]) -> None:
        """Drops what a run that takes up an earlier checkpoint will write again: lines for which `later(line)` holds,
        and records of rounds for which `later({"round": number, "step": 0})` does."""
        for file in (self.exchanges, self.rounds):
            if file.exists():
                unfinished = file.with_suffix(".tmp")
                with unfinished.open("w", encoding="utf-8") as kept:
                    kept.writelines(as_line(line) for line in read_lines(file) if not later(line))
                _put(unfinished, file)
        for records in (self.path / "records").glob("round-*.parquet"):
            if later({"round": int(records.stem.removeprefix("round-")), "step": 0}):
                records.unlink()

    def _records_file(self, number: int) -> Path:
        return self.path / "records" / f"round-{number:05d}.parquet"


def exchange_line(node: Node, tree: int, path: Sequence[int]) -> dict[str, Any]:
    """A line of `exchanges.jsonl`: where the exchange stands, what was said, and how it was measured."""
    # The token ids are in the records; here they would only be in the way of a reader.
    said = {key: value for key, value in node.to_json().items() if not key.endswith("_ids")}
    return {"tree": tree, "path": list(path), "depth": len(path), **said}


def with_no_ids(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `exchanges.jsonl` as a node's JSON, which has token ids."""
    return {"prompt_ids": [], "probe_ids": [], **line}


def as_line(data: Mapping[str, Any]) -> str:
    """A line of JSON. Half a surrogate pair, which UTF-8 has no bytes for, is escaped."""
    line = json.dumps(data, ensure_ascii=False)
    return (line if line.isascii() or _encodes(line) else json.dumps(data)) + "\n"


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """What the lines of a file of JSON hold, an object each; none where there is no file. Raises `InputError` where a
    line is damaged."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # cut off by a crash, maybe within a letter
                return
            try:
                yield parse_object(line)
            except ValueError as error:
                raise damaged(file, number, error) from error


def read_exchanges(file: Path) -> Iterator[tuple[dict[str, Any], Node]]:
    """The lines of an `exchanges.jsonl`, each with its exchange as a node without token ids."""
    for number, line in enumerate(read_lines(file), start=1):
        try:
            yield line, Node.from_json(with_no_ids(line))
        except InputError as error:
            raise damaged(file, number, error) from error


def damaged(file: Path, number: int, error: Exception) -> InputError:
    """The error for a line that is not what was written."""
    return InputError(f"{str(file)!r}, line {number} is damaged ({error}): restore it, or remove that line")


def ends_whole(file: Path) -> bool:
    """Whether the last line of a file has its end; also where there is no line, or no file."""
    if not file.exists() or not file.stat().st_size:
        return True
    with file.open("rb") as lines:
        lines.seek(-1, os.SEEK_END)
        return lines.read() == b"\n"


def write_whole(file: Path, text: str) -> None:
    """Writes a file so that it is there as a whole or not at all."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as out:
        out.write(text)
    _put(unfinished, file)


def add_lines(file: Path, lines: Iterable[str]) -> None:
    """Adds lines to a file, which need not be there yet, and returns when they are on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.writelines(lines)
    sync(file)


def sync(path: Path) -> None:
    """Returns when a file, or which files there are in a folder, is on the disk and no longer only in memory."""
    if path.is_dir() and os.name != "posix":
        return  # folders cannot be opened there
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _put(unfinished: Path, file: Path) -> None:
    # Under its name once it is on the disk.
    sync(unfinished)
    unfinished.replace(file)
    sync(file.parent)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
