"""The files of an evaluation, written as it goes, so that it can be taken up again where it stopped."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_trl.conversation import Turn
from astra_trl.errors import InputError
from astra_trl.results.run_folder import (
    add_lines,
    as_line,
    damaged,
    ends_whole,
    exchange_line,
    read_exchanges,
    read_lines,
    with_no_ids,
    write_whole,
)
from astra_trl.text import parse_object
from astra_trl.tree import Tree

RESULT = "evaluation.json"


class EvaluationFolder:
    """`exchanges.jsonl` holds what was grown, `settings.json` from what, `evaluation.json` what came out at the end.

    Args:
        path (`str` or `Path`):
            May hold an earlier evaluation with the same settings, whole or not.
        settings (`dict`):
            What all arms share.
        writes (`bool`, *optional*, defaults to `True`):
            Whether this process writes; others only read.

    Raises:
        InputError: the folder holds an evaluation with other settings.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], writes: bool = True) -> None:
        self.path, self.settings, self.writes = Path(path), _as_read(settings), writes
        self.exchanges, self.result = self.path / "exchanges.jsonl", self.path / RESULT
        self._known: dict[str, Any] = {"settings": self.settings, "arms": []}
        if (file := self.path / "settings.json").exists():
            self._known = _read_settings(file)
            was, now = self._known["settings"], self.settings
            if changed := [key for key in {**was, **now} if was.get(key) != now.get(key)]:
                changes = ", ".join(f"{key} ({was.get(key)!r}, now {now.get(key)!r})" for key in changed)
                raise InputError(
                    f"'{self.path}' holds an evaluation with other settings: {changes}. Choose another folder, or "
                    "delete this one"
                )
        # Read before anything is written, so that all processes find the same.
        self._lines: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
        for number, (line, _) in enumerate(read_exchanges(self.exchanges), start=1):
            arm, target, tree = (line.get(name) for name in ("arm", "target", "tree"))
            if not (isinstance(arm, str) and isinstance(target, str) and isinstance(tree, int)):
                raise damaged(self.exchanges, number, ValueError("it names no arm, target and tree"))
            self._lines.setdefault((arm, target), {}).setdefault(tree, []).append(line)
        if self.writes and not ends_whole(self.exchanges):
            self._keep(lambda line: True)  # drops what a crash has left of a last line

    def begin(self, arm: Mapping[str, Any], replace: bool = False) -> None:
        """Notes an arm (`arm`, `target`, `description`). One of that name that was of other models is dropped with
        `replace`, else an `InputError`."""
        known = {(old["arm"], old["target"]): old for old in self._known["arms"]}
        arm, key = _as_read(arm), (arm["arm"], arm["target"])
        if key in known and known[key] != arm:
            if not replace:
                raise InputError(
                    f"'{self.path}' holds figures of another {arm['arm']} against {arm['target']!r}: choose another "
                    "folder, or delete this one"
                )
            self._lines.pop(key, None)
            self._keep(lambda line: (line["arm"], line["target"]) != key)
        self._known["arms"] = [*({**known, key: arm}).values()]
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "settings.json", json.dumps(self._known, indent=2) + "\n")

    def grown(self, arm: str, target: str, indices: Sequence[int], exchanges: int) -> list[Tree] | None:
        """The trees of these openings where all of them are there as a whole, `exchanges` each, else `None`; what is
        there of them is then forgotten."""
        found = self._lines.get((arm, target), {})
        if all(len(found.get(index, ())) == exchanges for index in indices):
            return [self._tree(found[index]) for index in indices]
        if any(index in found for index in indices):
            again = set(indices)
            self._keep(lambda line: (line["arm"], line["target"]) != (arm, target) or line["tree"] not in again)
        return None

    def add(self, arm: str, target: str, indices: Sequence[int], trees: Sequence[Tree]) -> None:
        """Appends the exchanges of trees, the number of whose openings are the indices."""
        if not self.writes:
            return
        lines = (
            {"arm": arm, "target": target, **exchange_line(node, index, path), "opening": _turns(tree.opening)}
            for index, tree in zip(indices, trees, strict=True)
            for path, node in tree.walk()
        )
        add_lines(self.exchanges, map(as_line, lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes `evaluation.json`."""
        if self.writes:
            write_whole(self.result, json.dumps(result, indent=1) + "\n")

    def _tree(self, lines: Sequence[dict[str, Any]]) -> Tree:
        try:
            return Tree.from_json({"opening": lines[0].get("opening"), "nodes": [with_no_ids(line) for line in lines]})
        except InputError as error:
            raise InputError(f"{str(self.exchanges)!r}, tree {lines[0]['tree']}: {error}") from error

    def _keep(self, wanted: Any) -> None:
        if self.writes and self.exchanges.exists():
            write_whole(self.exchanges, "".join(as_line(line) for line in read_lines(self.exchanges) if wanted(line)))


def _as_read(data: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(data))  # as it will be read again: a tuple is a list


def _turns(opening: Sequence[Turn]) -> list[list[str]]:
    return [[turn.speaker, turn.text] for turn in opening]


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        known = parse_object(file.read_text(encoding="utf-8"))
        known["settings"].keys(), [(arm["arm"] + "", arm["target"] + "") for arm in known["arms"]]
        return known
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{str(file)!r} is damaged ({error}): choose another folder, or delete this one") from error
