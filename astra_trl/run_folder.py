"""What a run leaves in its `output_dir` beside TRL's checkpoints and the final model."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from astra_trl.errors import InputError
from astra_trl.tree import Tree


class RunFolder:
    """The files of one run; rounds are numbered from 1.

    `exchanges.jsonl` holds a line an exchange, `rounds.jsonl` a line a round, `records/` the preference records that
    each round was trained on, `config.yaml` the resolved settings and `summary.json` what came out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.exchanges = self.path / "exchanges.jsonl"
        self.rounds = self.path / "rounds.jsonl"
        self.config = self.path / "config.yaml"
        self.summary = self.path / "summary.json"

    def refuse_if_used(self) -> None:
        """`InputError` where the folder holds another run."""
        if self.exchanges.exists() or self.summary.exists() or self.config.exists():
            raise InputError(
                f"output_dir {str(self.path)!r} holds another run: choose another output_dir, delete the folder, "
                "or go on with that run by resume_from_checkpoint"
            )

    def write_round(
        self, number: int, trees: Sequence[Tree], records: Sequence[dict[str, Any]], figures: dict[str, Any]
    ) -> None:
        """Adds a collected round; its records are written last and under their name at once, so that they tell a
        whole round from a broken one."""
        self._records_file(number).parent.mkdir(parents=True, exist_ok=True)
        with self.exchanges.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in _exchange_lines(number, trees))
        with self.rounds.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, **figures}) + "\n")
        unfinished = self._records_file(number).with_suffix(".tmp")
        parquet.write_table(pyarrow.Table.from_pylist(list(records)), unfinished)
        unfinished.replace(self._records_file(number))

    def read_round(self, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Records and figures of a round that was collected before."""
        records = parquet.read_table(self._records_file(number)).to_pylist()
        figures = next(line for line in _lines(self.rounds) if line["round"] == number)
        return records, {key: value for key, value in figures.items() if key != "round"}

    def forget_rounds_from(self, number: int) -> None:
        """Drops this round and all later ones, for a run that takes up an earlier checkpoint."""
        for file in (self.exchanges, self.rounds):
            if file.exists():
                unfinished = file.with_suffix(".tmp")
                with unfinished.open("w", encoding="utf-8") as kept:
                    kept.writelines(
                        json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(file) if line["round"] < number
                    )
                unfinished.replace(file)
        for records in (self.path / "records").glob("round-*.parquet"):
            if int(records.stem.removeprefix("round-")) >= number:
                records.unlink()

    def _records_file(self, number: int) -> Path:
        return self.path / "records" / f"round-{number:05d}.parquet"


def _exchange_lines(number: int, trees: Sequence[Tree]) -> Iterator[str]:
    for tree_index, tree in enumerate(trees):
        for path, node in tree.walk():
            # The token ids are in the records; here they would only be in the way of a reader.
            said = {key: value for key, value in node.to_json().items() if not key.endswith("_ids")}
            line = {"round": number, "tree": tree_index, "path": list(path), "depth": len(path), **said}
            yield json.dumps(line, ensure_ascii=False)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):  # a line without its end was cut off by a crash
                yield json.loads(line)
