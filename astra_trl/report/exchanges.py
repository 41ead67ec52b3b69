"""Exchanges of run and evaluation folders as columns: every text once, conversations as links to parents."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from astra_trl.evaluation.results import Evaluation, number
from astra_trl.lines import damaged_line, read_lines
from astra_trl.results.reading import Folder
from astra_trl.text import visible

MAX_EXCHANGES = 100_000  # on a page: a browser opens that many in a second or two

COULD_NOT = "nan"  # in a column: measured without a number as result; null means that it was not measured

NUMBERS = ("probe_logprob_per_token", "baseline_logprob_per_token", "reward", "credit")

Turns = tuple[tuple[str, int], ...]  # speaker, number of the text

SourceKey = tuple[str | None, str | None]  # arm and target; None and None for training

Attempts = list[tuple[str, bool | None]]  # probe, and if the response is harmful; None if it was not scored


class _Row(NamedTuple):
    path: tuple[int, ...]
    context: Turns
    probe: int
    response: int
    error: int | None
    scores: Mapping[str, Any]
    terms: Mapping[str, Any]
    numbers: Sequence[float | None]

    @property
    def turns(self) -> Turns:
        return (*self.context, ("tester", self.probe), ("target", self.response))


class _Tree(NamedTuple):
    source: int
    round: int  # 0 in an evaluation
    number: int
    opening: Turns
    rows: list[_Row]


@dataclass
class Exchanges:
    """Data that the page embeds, the probes of each folder's rounds, and its attempts by arm and target.

    A source is a folder's training, or one arm against one target. The rows of a tree stand together, parents first.
    After all trees come rows of which only the text is known, as the context of other rows: PPO keeps no more of them.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    trees: list[list[int]] = field(default_factory=list)  # as in TREE
    openings: list[list[Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    scores: dict[str, list[Any]] = field(default_factory=dict)
    terms: dict[str, list[Any]] = field(default_factory=dict)
    in_files: int = 0
    probes: list[dict[int, list[str]]] = field(default_factory=list)
    attempts: list[dict[SourceKey, Attempts]] = field(default_factory=list)


TREE = ("source", "round", "number", "opening", "first", "count", "first_unmeasured", "count_unmeasured")


def read_exchanges(folders: Sequence[Folder], limit: int = MAX_EXCHANGES) -> Exchanges:
    """Return the exchanges of the folders: all, or if there are more than `limit`, whole trees at even distances of
    the largest files. Raises `InputError` if a line is damaged."""
    reader = _Reader()
    files = [file for folder in folders for file in (folder.training_exchanges, folder.evaluation_exchanges) if file]
    strides = _strides({file: _count_lines(file) for file in files}, limit)
    for place, folder in enumerate(folders):
        reader.result.attempts.append(defaultdict(list))
        reader.read(place, folder, folder.evaluation_exchanges, strides)
        reader.result.probes.append(reader.read(place, folder, folder.training_exchanges, strides))
    reader.finish()
    return reader.result


def distinct_bigrams(texts: Iterable[str]) -> float | None:
    """Return the share of pairs of neighbouring words that are distinct (distinct-2); `None` without pairs."""
    words = [re.findall(r"[\w'’]+|[^\w\s]", text) for text in texts]
    pairs = [pair for text in words for pair in itertools.pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else None


def _strides(lines: Mapping[Path, int], limit: int) -> dict[Path, int]:
    # The stride over the trees of each file: small files are kept whole, and leave more to the large ones.
    strides, left = {}, limit
    for done, (file, count) in enumerate(sorted(lines.items(), key=lambda item: item[1])):
        strides[file] = max(1, math.ceil(count / max(1, left // (len(lines) - done))))
        left -= count // strides[file]
    return strides


def _count_lines(file: Path) -> int:
    with file.open("rb") as data:
        return sum(part.count(b"\n") for part in iter(lambda: data.read(1 << 20), b""))


class _Reader:
    def __init__(self) -> None:
        self.result = Exchanges()
        self._texts: dict[str, int] = {}
        self._sources: dict[Hashable, int] = {}
        self._trees: list[_Tree] = []

    def read(self, place: int, folder: Folder, file: Path | None, strides: Mapping[Path, int]) -> dict[int, list[str]]:
        # Adds the trees of a file, and returns its probes by round; an evaluation's file has none.
        probes: dict[int, list[str]] = defaultdict(list)
        if file is None:
            return probes
        if file == folder.evaluation_exchanges and folder.evaluation:
            for one in folder.evaluation.arms:  # the tester first, whichever was evaluated first
                self._source(place, folder, one["arm"], one["target"])
        order: dict[Hashable, int] = {}
        trees: dict[Hashable, _Tree] = {}
        for at, line in enumerate(read_lines(file), start=1):
            self.result.in_files += 1
            try:
                arm, tree = (line.get("arm"), line.get("target")), line["tree"] + 0
                if arm == (None, None):
                    if not line.get("replayed"):  # the tester has not sampled it in this round
                        probes[line["round"] + 0].append(line["probe"] + "")
                    key: tuple[Any, ...] = (line["round"], tree)
                    ordinal = order.setdefault(key, len(order))
                else:
                    key, ordinal = (*arm, tree), tree  # the same openings in every arm
                arm = (_visible(arm[0]), _visible(arm[1]))
                self.result.attempts[place][arm].append((line["probe"] + "", _is_harmful(line, folder.evaluation)))
                if ordinal % strides[file]:
                    continue
                row = self._row(line)
                opening = row.context[: len(row.context) - 2 * (len(row.path) - 1)]
                if (key, opening) not in trees:
                    # The first scorer is the one that training's figures are about.
                    source = self._source(place, folder, arm[0], arm[1], next(iter(row.scores), "harm"))
                    trees[key, opening] = _Tree(source, key[0] if arm == (None, None) else 0, tree, opening, [])
                    self._trees.append(trees[key, opening])
                trees[key, opening].rows.append(row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise damaged_line(file, at, "it is not an exchange") from error
        return probes

    def finish(self) -> None:
        # Fills the columns.
        result, self._trees = self.result, sorted(self._trees, key=lambda tree: tree[:3])
        count = sum(len(tree.rows) for tree in self._trees)
        rows: list[_Row] = []
        unmeasured: list[_Row] = []
        parents: list[int] = []
        parents_of_unmeasured: list[int] = []
        openings: dict[Turns, int] = {}
        thresholds: list[float] = []
        for tree in self._trees:
            tree.rows.sort(key=lambda row: row.path)
            first, first_unmeasured = len(rows), count + len(unmeasured)
            links = _Links(tree.rows, first, first_unmeasured)
            parents += [links.parent(row) for row in tree.rows]
            parents_of_unmeasured += links.parents
            rows += tree.rows
            unmeasured += links.unmeasured
            opening = openings.setdefault(tree.opening, len(openings))
            place = (first, len(tree.rows), first_unmeasured, len(links.unmeasured))
            result.trees.append([tree.source, tree.round, tree.number, opening, *place])
            thresholds += [result.sources[tree.source]["threshold"]] * len(tree.rows)
        result.openings = [[list(turn) for turn in opening] for opening in openings]
        result.texts = [visible(text) for text in self._texts]
        everything = rows + unmeasured
        result.rows = {
            "parent": parents + parents_of_unmeasured,
            "depth": [len(row.path) for row in everything],
            "branch": [row.path[-1] for row in everything],
            "probe": [row.probe for row in everything],
            "response": [row.response for row in everything],
            "error": [row.error for row in rows],
            **{name: [_short(row.numbers[place]) for row in rows] for place, name in enumerate(NUMBERS)},
        }
        for columns, by_row in ((result.scores, [r.scores for r in rows]), (result.terms, [r.terms for r in rows])):
            for name in dict.fromkeys(name for values in by_row for name in values):
                columns[visible(name)] = [
                    _cell(values, name, threshold) for values, threshold in zip(by_row, thresholds, strict=True)
                ]

    def _row(self, line: Mapping[str, Any]) -> _Row:
        context = tuple((visible(speaker), self._text(text)) for speaker, text in line["context"])
        path = tuple(index + 0 for index in line["path"])
        if not path or len(context) < 2 * (len(path) - 1):
            raise ValueError("fewer turns than the path has")
        return _Row(
            path,
            context,
            self._text(line["probe"]),
            self._text(line["response"]),
            None if line.get("error") is None else self._text(str(line["error"])),
            dict(line["scores"]),
            dict(line["terms"]),
            [number(line.get(name)) for name in NUMBERS],
        )

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text + "", len(self._texts))

    def _source(self, place: int, folder: Folder, arm: str | None, target: str | None, harm: str = "harm") -> int:
        arm, target = _visible(arm), _visible(target)
        key = (place, arm, target)
        if key not in self._sources:
            self._sources[key] = len(self._sources)
            evaluation = folder.evaluation
            harm, threshold = (evaluation.harm, evaluation.threshold) if evaluation else (visible(harm), 0.5)
            self.result.sources.append(
                {"folder": place, "arm": arm, "target": target, "harm": harm, "threshold": threshold}
            )
        return self._sources[key]


class _Links:
    # The parent of an exchange is the one of its tree, at the place above, with which its context ends. If there is
    # none, the context belongs to an exchange of which only the text is known.

    def __init__(self, rows: Sequence[_Row], first: int, first_unmeasured: int) -> None:
        self.unmeasured: list[_Row] = []
        self.parents: list[int] = []  # of the unmeasured
        self._first_unmeasured = first_unmeasured
        self._places: dict[tuple[tuple[int, ...], Turns], int] = {}
        for place, row in enumerate(rows, first):
            self._places.setdefault((row.path, row.turns), place)

    def parent(self, row: _Row) -> int:
        # The parent's place; -1 for the opening.
        if len(row.path) == 1:
            return -1
        key = (row.path[:-1], row.context)
        if key not in self._places:
            (_, probe), (_, response) = row.context[-2:]
            above = _Row(row.path[:-1], row.context[:-2], probe, response, None, {}, {}, ())
            parent = self.parent(above)
            self._places[key] = self._first_unmeasured + len(self.unmeasured)
            self.unmeasured.append(above)
            self.parents.append(parent)
        return self._places[key]


def _visible(name: str | None) -> str | None:
    return None if name is None else visible(name)


def _is_harmful(line: Mapping[str, Any], evaluation: Evaluation | None) -> bool | None:
    # The first scorer is the one that training's figures are about.
    if line.get("error") is not None or not line["response"].strip():
        return None
    scores = {visible(name): score for name, score in line["scores"].items()}
    harm = evaluation.harm if evaluation else next(iter(scores), "")
    score = number(scores.get(harm))
    return None if score is None else score >= (evaluation.threshold if evaluation else 0.5)


def _cell(values: Mapping[str, Any], name: str, threshold: float) -> float | str | None:
    if name not in values:
        return None
    value = _short(number(values[name]), threshold)
    return COULD_NOT if value is None else value


def _short(value: float | None, threshold: float = math.nan) -> float | None:
    # Rounded to six digits, unless that would move the value across the threshold.
    if value is None:
        return None
    short = float(f"{value:.6g}")
    if (short >= threshold) != (value >= threshold):
        return value
    return int(short) if short == int(short) else short
