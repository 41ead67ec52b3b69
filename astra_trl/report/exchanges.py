"""The exchanges of run and evaluation folders as columns: every text once, conversations as links to a parent."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from astra_trl.report.reading import Folder, damaged, number, read_lines
from astra_trl.text import visible

MOST_EXCHANGES = 100_000  # that are embedded: a browser opens as many in a second or two

COULD_NOT = "nan"  # in a column: measured, and no number came out; null is what was not measured at all

NUMBERS = ("probe_logprob_per_token", "baseline_logprob_per_token", "reward", "credit")

Said = tuple[tuple[str, int], ...]  # turns: speaker, number of the text


class _Row(NamedTuple):
    path: tuple[int, ...]
    context: Said
    probe: int
    response: int
    error: int | None
    scores: Mapping[str, Any]
    terms: Mapping[str, Any]
    numbers: Sequence[float | None]

    @property
    def said(self) -> Said:
        return (*self.context, ("tester", self.probe), ("target", self.response))


class _Tree(NamedTuple):
    source: int
    round: int  # 0 in an evaluation
    number: int
    opening: Said
    rows: list[_Row]


@dataclass
class Exchanges:
    """What the page embeds, and the probes of each folder's rounds.

    A source is a folder's training, or one arm against one target. The rows of a tree stand together, parents first;
    behind all of them stand those of which only the text is known, as context of others: PPO keeps no more of them.
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


TREE = ("source", "round", "number", "opening", "first", "count", "first_unmeasured", "count_unmeasured")


def read_exchanges(folders: Sequence[Folder], most: int = MOST_EXCHANGES) -> Exchanges:
    """All exchanges of the folders; where they are more than `most`, of the largest files whole trees, evenly spaced.

    Raises `InputError` where a line is damaged.
    """
    reader = _Reader()
    files = [file for folder in folders for file in (folder.training_exchanges, folder.evaluation_exchanges) if file]
    every = _spacing({file: _count_lines(file) for file in files}, most)
    for place, folder in enumerate(folders):
        reader.read(place, folder, folder.evaluation_exchanges, every)
        reader.found.probes.append(reader.read(place, folder, folder.training_exchanges, every))
    reader.finish()
    return reader.found


def distinct_bigrams(texts: Iterable[str]) -> float | None:
    """Distinct pairs of neighbouring words by all pairs (distinct-2); `None` where there is none."""
    words = [re.findall(r"[\w'’]+|[^\w\s]", text) for text in texts]
    pairs = [pair for said in words for pair in itertools.pairwise(said)]
    return len(set(pairs)) / len(pairs) if pairs else None


def _spacing(lines: Mapping[Path, int], most: int) -> dict[Path, int]:
    # Every how manieth tree of each file is taken: small files are whole, and leave more to the large ones.
    spacing, left = {}, most
    for taken, (file, count) in enumerate(sorted(lines.items(), key=lambda item: item[1])):
        spacing[file] = max(1, math.ceil(count / max(1, left // (len(lines) - taken))))
        left -= count // spacing[file]
    return spacing


def _count_lines(file: Path) -> int:
    with file.open("rb") as data:
        return sum(part.count(b"\n") for part in iter(lambda: data.read(1 << 20), b""))


class _Reader:
    def __init__(self) -> None:
        self.found = Exchanges()
        self._texts: dict[str, int] = {}
        self._sources: dict[Hashable, int] = {}
        self._trees: list[_Tree] = []

    def read(self, place: int, folder: Folder, file: Path | None, spacing: Mapping[Path, int]) -> dict[int, list[str]]:
        """Adds the trees of a file, and returns its probes by round, none where it is an evaluation's."""
        probes: dict[int, list[str]] = defaultdict(list)
        if file is None:
            return probes
        if file == folder.evaluation_exchanges and folder.evaluation:
            for known in folder.evaluation["arms"]:  # the tester first, whichever was evaluated first
                self._source(place, folder, known["arm"], known["target"])
        every = spacing[file]
        seen: dict[Hashable, int] = {}
        trees: dict[Hashable, _Tree] = {}
        for at, line in read_lines(file):
            self.found.in_files += 1
            try:
                arm, tree = (line.get("arm"), line.get("target")), line["tree"] + 0
                if arm == (None, None):
                    probes[line["round"] + 0].append(line["probe"] + "")
                    key: tuple[Any, ...] = (line["round"], tree)
                    ordinal = seen.setdefault(key, len(seen))
                else:
                    key, ordinal = (*arm, tree), tree  # the same openings in every arm
                if ordinal % every:
                    continue
                row = self._row(line)
                opening = row.context[: len(row.context) - 2 * (len(row.path) - 1)]
                if (key, opening) not in trees:
                    # Training measures the scorer that its figures are about before all others.
                    source = self._source(place, folder, arm[0], arm[1], next(iter(row.scores), "harm"))
                    trees[key, opening] = _Tree(source, key[0] if arm == (None, None) else 0, tree, opening, [])
                    self._trees.append(trees[key, opening])
                trees[key, opening].rows.append(row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise damaged(file, f"line {at} is no exchange") from error
        return probes

    def finish(self) -> None:
        """Fills the columns."""
        found, self._trees = self.found, sorted(self._trees, key=lambda tree: tree[:3])
        count = sum(len(tree.rows) for tree in self._trees)
        rows: list[_Row] = []
        unmeasured: list[_Row] = []
        parents: list[int] = []
        parents_of_unmeasured: list[int] = []
        openings: dict[Said, int] = {}
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
            found.trees.append([tree.source, tree.round, tree.number, opening, *place])
            thresholds += [found.sources[tree.source]["threshold"]] * len(tree.rows)
        found.openings = [[list(turn) for turn in opening] for opening in openings]
        found.texts = [visible(text) for text in self._texts]
        everything = rows + unmeasured
        found.rows = {
            "parent": parents + parents_of_unmeasured,
            "depth": [len(row.path) for row in everything],
            "branch": [row.path[-1] for row in everything],
            "probe": [row.probe for row in everything],
            "response": [row.response for row in everything],
            "error": [row.error for row in rows],
            **{name: [_short(row.numbers[place]) for row in rows] for place, name in enumerate(NUMBERS)},
        }
        for columns, measured in ((found.scores, [r.scores for r in rows]), (found.terms, [r.terms for r in rows])):
            for name in dict.fromkeys(name for values in measured for name in values):
                columns[visible(name)] = [
                    _measured(values, name, threshold) for values, threshold in zip(measured, thresholds, strict=True)
                ]

    def _row(self, line: Mapping[str, Any]) -> _Row:
        context = tuple((_speaker(speaker), self._text(text)) for speaker, text in line["context"])
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
        arm, target = (None if name is None else visible(name) for name in (arm, target))
        key = (place, arm, target)
        if key not in self._sources:
            self._sources[key] = len(self._sources)
            settings = (folder.evaluation or {}).get("settings", {})
            harm = settings.get("harm") or visible(harm)
            source = {"folder": place, "arm": arm, "target": target, "harm": harm, "threshold": folder.threshold}
            self.found.sources.append(source)
        return self._sources[key]


class _Links:
    """Who an exchange follows: the one of its tree, at the place above, after which its context ends. A context that
    none of them ends is that of an exchange whose text alone is known."""

    def __init__(self, rows: Sequence[_Row], first: int, first_unmeasured: int) -> None:
        self.unmeasured: list[_Row] = []
        self.parents: list[int] = []  # of the unmeasured
        self._first_unmeasured = first_unmeasured
        self._places: dict[tuple[tuple[int, ...], Said], int] = {}
        for place, row in enumerate(rows, first):
            self._places.setdefault((row.path, row.said), place)

    def parent(self, row: _Row) -> int:
        """The parent's place, -1 for the opening."""
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


def _speaker(speaker: str) -> str:
    return visible(speaker)


def _measured(values: Mapping[str, Any], name: str, threshold: float) -> float | str | None:
    if name not in values:
        return None
    value = _short(number(values[name]), threshold)
    return COULD_NOT if value is None else value


def _short(value: float | None, threshold: float = math.nan) -> float | None:
    # Six digits, unless they would carry the value over the threshold.
    if value is None:
        return None
    short = float(f"{value:.6g}")
    if (short >= threshold) != (value >= threshold):
        return value
    return int(short) if short == int(short) else short
