"""Files of an evaluation, written while it runs, so that it can be resumed."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from astra_trl.conversation import Turn
from astra_trl.errors import InputError
from astra_trl.lines import add_lines, as_line, damaged_line, ends_with_newline, read_lines, write_whole
from astra_trl.outputs import lock_folder
from astra_trl.rollout.run_folder import exchange_line, read_exchanges, with_no_ids
from astra_trl.text import parse_object
from astra_trl.tree import Tree


class EvaluationFolder:
    """`exchanges.jsonl` holds the conversations, `settings.json` what they depend on, `evaluation.json` the result.

    Args:
        path (`str` or `Path`):
            May hold an earlier evaluation with the same settings, finished or not.
        settings (`dict`):
            The settings that all arms share.
        writes (`bool`, *optional*, defaults to `True`):
            `False` in processes that only read.

    Raises:
        InputError: the folder holds a run, an evaluation with different settings or a damaged one, cannot be written
            to, or another process writes to it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], writes: bool = True) -> None:
        self.path, self.settings, self.writes = Path(path), _through_json(settings), writes
        self.exchanges, self.result = self.path / "exchanges.jsonl", self.path / "evaluation.json"
        self._lock = lock_evaluation(self.path) if self.writes else None  # held as long as this object
        self._known: dict[str, Any] = {"settings": self.settings, "arms": []}
        if (file := self.path / "settings.json").exists():
            self._known = _read_settings(file)
            old, new = self._known["settings"], self.settings
            changes = [
                f"{key} ({old.get(key)!r}, now {new.get(key)!r})"
                for key in {**old, **new}
                if old.get(key) != new.get(key)
            ]
            if changes:
                raise InputError(
                    f"'{self.path}' holds an evaluation with different settings: {', '.join(changes)}. Choose another "
                    "folder, or delete this one"
                )
        # Read before anything is written, so that all processes read the same.
        self._lines: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
        for number, (line, _) in enumerate(read_exchanges(self.exchanges), start=1):
            arm, target, tree = (line.get(name) for name in ("arm", "target", "tree"))
            if not (isinstance(arm, str) and isinstance(target, str) and isinstance(tree, int)):
                raise damaged_line(self.exchanges, number, "it names no arm, target and tree")
            self._lines.setdefault((arm, target), {}).setdefault(tree, []).append(line)
        if self.writes and not ends_with_newline(self.exchanges):
            self._keep(lambda line: True)  # drops the unfinished last line of a crash

    def begin(self, arm: Mapping[str, Any], replace: bool = False) -> None:
        """Note an arm (`arm`, `target`, `description`). If the folder holds one of that name with other models, drop
        it with `replace`, else raise `InputError`."""
        arms = {(old["arm"], old["target"]): old for old in self._known["arms"]}
        arm, key = _through_json(arm), (arm["arm"], arm["target"])
        if key in arms and arms[key] != arm:
            if not replace:
                raise InputError(
                    f"'{self.path}' holds figures of another {arm['arm']} against {arm['target']!r}: choose another "
                    "folder, or delete this one"
                )
            self._lines.pop(key, None)
            self._keep(lambda line: (line["arm"], line["target"]) != key)
        self._known["arms"] = [*({**arms, key: arm}).values()]
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "settings.json", json.dumps(self._known, indent=2) + "\n")

    def take_trees(self, arm: str, target: str, indices: Sequence[int], exchanges: int) -> list[Tree] | None:
        """Return the trees of these openings if each of them has all its `exchanges`. Otherwise forget the incomplete
        ones and return `None`."""
        trees = self._lines.get((arm, target), {})
        if all(len(trees.get(index, ())) == exchanges for index in indices):
            return [self._tree(trees[index]) for index in indices]
        if any(index in trees for index in indices):
            again = set(indices)
            self._keep(lambda line: (line["arm"], line["target"]) != (arm, target) or line["tree"] not in again)
        return None

    def add(self, arm: str, target: str, indices: Sequence[int], trees: Sequence[Tree]) -> None:
        """Append the exchanges of trees; `indices` are the numbers of their openings."""
        if not self.writes:
            return
        lines = (
            {"arm": arm, "target": target, **exchange_line(node, index, path), "opening": _turns(tree.opening)}
            for index, tree in zip(indices, trees, strict=True)
            for path, node in tree.walk()
        )
        add_lines(self.exchanges, map(as_line, lines))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write `evaluation.json`."""
        if self.writes:
            write_whole(self.result, json.dumps(result, indent=1) + "\n")

    def _tree(self, lines: Sequence[dict[str, Any]]) -> Tree:
        try:
            return Tree.from_json({"opening": lines[0].get("opening"), "nodes": [with_no_ids(line) for line in lines]})
        except InputError as error:
            raise InputError(f"{str(self.exchanges)!r}, tree {lines[0]['tree']}: {error}") from error

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        if self.writes and self.exchanges.exists():
            write_whole(self.exchanges, [as_line(line) for line in read_lines(self.exchanges) if wanted(line)])


def lock_evaluation(folder: Path) -> FileLock:
    """Return the lock of an evaluation's folder, which no other process writes to as long as it is held.

    Raises:
        InputError: the folder holds a run, cannot be written to, or another process writes to it.
    """
    if os.path.exists(folder / "config.yaml"):  # also if the name is too long for a file
        raise InputError(f"'{folder}' holds a run, whose files stay as they are: choose another output_dir")
    return lock_folder(folder, "choose another output_dir")


def _through_json(data: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(data))  # equal to what will be read: a tuple becomes a list


def _turns(opening: Sequence[Turn]) -> list[list[str]]:
    return [[turn.speaker, turn.text] for turn in opening]


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        saved = parse_object(file.read_text(encoding="utf-8"))
        saved["settings"].keys(), [(arm["arm"] + "", arm["target"] + "") for arm in saved["arms"]]
        return saved
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{str(file)!r} is damaged ({error}): choose another folder, or delete this one") from error
