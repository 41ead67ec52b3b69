"""The `output_dir` of a run: the files beside TRL's checkpoints and the final model."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from astra_trl.errors import InputError
from astra_trl.lines import add_lines, as_line, damaged_line, put, read_lines, write_whole
from astra_trl.outputs import HOLDER, LOCK, lock_folder
from astra_trl.text import parse_object
from astra_trl.tree import Node


class RunFolder:
    """Files of one run; rounds are numbered from 1.

    `exchanges.jsonl` holds one line per exchange, `rounds.jsonl` one line per round, `records/` the records that each
    round was trained on, `config.yaml` the settings, `usage.json` the requests to endpoints, and `summary.json` the
    final figures.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.exchanges = self.path / "exchanges.jsonl"
        self.rounds = self.path / "rounds.jsonl"
        self.config = self.path / "config.yaml"
        self.summary = self.path / "summary.json"
        self.usage = self.path / "usage.json"

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Keep other processes from writing to the folder within the block.

        Raises:
            InputError: the folder cannot be written to, or another process writes to it.
        """
        lock = lock_folder(self.path, "choose another output_dir")
        try:
            yield
        finally:
            if {*os.listdir(self.path)} <= {LOCK, HOLDER} and lock.lock_counter == 1:  # nothing came of the run
                shutil.rmtree(self.path)
            lock.release()

    def refuse_if_used(self) -> None:
        """Raise `InputError` if the folder holds another run, finished or not."""
        if self.config.exists() and not self.summary.exists():
            raise InputError(
                f"output_dir {str(self.path)!r} holds an unfinished run: resume it with --resume_from_checkpoint "
                "true, choose another output_dir, or delete the folder"
            )
        if self.exchanges.exists() or self.summary.exists():
            raise InputError(
                f"output_dir {str(self.path)!r} holds another run: choose another output_dir, delete the folder, or "
                "resume that run with --resume_from_checkpoint true"
            )

    def write_exchanges(self, number: int, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Append the exchanges of a round, each as `exchange_line` returns it."""
        add_lines(self.exchanges, (as_line({"round": number, **line}) for line in nodes))

    def write_figures(self, number: int, figures: Mapping[str, Any]) -> None:
        """Append the figures of a round."""
        add_lines(self.rounds, [as_line({"round": number, **figures})])

    def write_records(self, number: int, records: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> None:
        """Write the records of a round and the figures of collecting them.

        The file appears as a whole, and marks the round as collected: write everything else of the round before it.
        """
        file = self._records_file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        table = pyarrow.Table.from_pylist(list(records)).replace_schema_metadata({"figures": json.dumps(figures)})
        parquet.write_table(table, unfinished)
        put(unfinished, file)

    def has_records(self, number: int) -> bool:
        """`True` if the round was collected completely."""
        return self._records_file(number).exists()

    def read_records(self, number: int) -> list[dict[str, Any]]:
        """Return the records of a collected round."""
        return parquet.read_table(self._records_file(number)).to_pylist()

    def read_figures(self, number: int) -> dict[str, Any]:
        """Return the figures that were written with the records of a round."""
        return json.loads(parquet.read_schema(self._records_file(number)).metadata[b"figures"])

    def read_usage(self) -> dict[str, int]:
        """Return the counts of `usage.json`."""
        try:
            return {key: int(count) for key, count in parse_object(self.usage.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{str(self.usage)!r} is damaged ({error}): delete it, and a budget counts from here"
            ) from error

    def read_nodes(self, number: int) -> list[Node]:
        """Return the exchanges of a round as nodes without token ids."""
        return [node for line, node in read_exchanges(self.exchanges) if line.get("round") == number]

    def forget(self, later: Callable[[dict[str, Any]], bool]) -> None:
        """Remove everything that a run resumed from an earlier checkpoint will write again: lines for which
        `later(line)` is true, and records of rounds for which `later({"round": number, "step": 0})` is."""
        for file in (self.exchanges, self.rounds):
            if file.exists():
                write_whole(file, (as_line(line) for line in read_lines(file) if not later(line)))
        for records in (self.path / "records").glob("round-*.parquet"):
            if later({"round": int(records.stem.removeprefix("round-")), "step": 0}):
                records.unlink()

    def _records_file(self, number: int) -> Path:
        return self.path / "records" / f"round-{number:05d}.parquet"


def exchange_line(node: Node, tree: int, path: Sequence[int]) -> dict[str, Any]:
    """Return a line of `exchanges.jsonl`: the exchange, its place in the tree, and its measurements."""
    # The token ids are in the records; here they would only be in a reader's way.
    exchange = {key: value for key, value in node.to_json().items() if not key.endswith("_ids")}
    return {"tree": tree, "path": list(path), "depth": len(path), **exchange}


def with_no_ids(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of `exchanges.jsonl` as the JSON of a node, with empty token ids."""
    return {"prompt_ids": [], "probe_ids": [], **line}


def read_exchanges(file: Path) -> Iterator[tuple[dict[str, Any], Node]]:
    """Yield the lines of an `exchanges.jsonl`, each with its exchange as a node without token ids."""
    for number, line in enumerate(read_lines(file), start=1):
        try:
            yield line, Node.from_json(with_no_ids(line))
        except InputError as error:
            raise damaged_line(file, number, error) from error
