"""The result of an evaluation as data: figures with intervals, differences between arms, the trees themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.text import parse_object, visible
from astra_trl.tree import Tree

SCHEMA_VERSION = 2  # of evaluation.json

ARMS = TESTER, BASELINE, OPENINGS = "tester", "baseline", "openings"  # in the order in which they are shown

ArmKey = tuple[str, str]  # arm and target

# The names that the rows of each table must have; figures and differences also have numbers, which may be null.
_NAMES = {
    "arms": ("arm", "target"),
    "counts": ("arm", "target"),
    "figures": ("arm", "target", "figure"),
    "differences": ("arm", "target", "figure", "against"),
    "coverage": ("arm", "target"),
}
_OPTIONAL = ("coverage",)  # older evaluations have none, and so have those without an embedder
_POINT = ("exchanges", "attacks")  # the numbers of a row of coverage
_NUMBERS = ("value", "n", "low", "high")


@dataclass(frozen=True)
class Figure:
    """A number with its 95% interval; `None` if there was nothing to measure.

    `n` is the number of values that it was computed from. A figure with a `size` is the average over sets of so many
    values.
    """

    value: float | None
    n: int
    low: float | None
    high: float | None
    size: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of a tester beside those of the arms that it is compared with.

    Args:
        settings (`dict`):
            The settings that all arms share: openings, seed, depth, scorers, threshold, versions.
        arms, counts, figures, differences (`list[dict]`):
            Tables in rows, in the format of `evaluation.json`.
        trees (`Mapping[tuple[str, str], list[Tree]]`):
            The trees by arm and target.
        coverage (`list[dict]`, *optional*):
            A table of the points of each arm's curve: the expected number of distinct `attacks` among so many random
            `exchanges`.
    """

    settings: dict[str, Any]
    arms: list[dict[str, Any]]
    counts: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    trees: Mapping[ArmKey, Sequence[Tree]] = field(default_factory=dict, repr=False, compare=False)
    coverage: list[dict[str, Any]] = field(default_factory=list)

    @property
    def harm(self) -> str:
        """The scorer that training's figures are about; the other scorers are held out."""
        return self.settings["harm"]

    @property
    def scorers(self) -> list[str]:
        """The names of all scorers."""
        return self.settings["scorers"]

    @property
    def threshold(self) -> float:
        """The lowest score of a harmful response."""
        return number(self.settings.get("threshold")) or 0.5

    @property
    def targets(self) -> list[str]:
        """The names of the targets; most figures are shown against the first."""
        return list(dict.fromkeys(arm["target"] for arm in self.arms))

    def arms_of(self, target: str | None = None) -> list[str]:
        """Return the arms that were measured against a target, by default the first."""
        return [arm["arm"] for arm in self.arms if arm["target"] == (target or self.targets[0])]

    def compared_with(self, target: str | None = None) -> str | None:
        """Return the arm that every figure is shown beside: the untrained tester, or else the openings alone."""
        arms = self.arms_of(target)
        return next((arm for arm in (BASELINE, OPENINGS) if arm in arms), None)

    def find(
        self, name: str, arm: str = TESTER, target: str | None = None, against: str | None = None
    ) -> Figure | None:
        """Return one figure, or with `against` its paired difference; `None` if the tables do not hold it."""
        rows = self.figures if against is None else [row for row in self.differences if row["against"] == against]
        wanted = (name, arm, target or self.targets[0])
        for row in rows:
            if (row["figure"], row["arm"], row["target"]) == wanted:
                return Figure(row["value"], row["n"], row["low"], row["high"], row.get("size"))
        return None

    def figure(self, name: str, arm: str = TESTER, target: str | None = None, against: str | None = None) -> Figure:
        """Return one figure, or with `against` its paired difference; without a value if it was not measured."""
        return self.find(name, arm, target, against) or Figure(None, 0, None, None)

    def counts_of(self, arm: str = TESTER, target: str | None = None) -> dict[str, Any]:
        """Return the counts of an arm."""
        wanted = (arm, target or self.targets[0])
        return next(row for row in self.counts if (row["arm"], row["target"]) == wanted)

    def is_chat(self, target: str | None = None) -> bool:
        """Return `True` if a target is a chat model, whose responses end by themselves."""
        rows = [arm.get("description") for arm in self.arms if arm["target"] == (target or self.targets[0])]
        model = rows[0].get("target") if rows and isinstance(rows[0], dict) else None
        return isinstance(model, dict) and bool(model.get("chat") or model.get("api") == "chat completions")

    def headline(self, arm: str = TESTER, target: str | None = None) -> dict[str, Any]:
        """Return the figures of a run's summary, by their plain names."""
        counted = self.counts_of(arm, target)

        def value(name: str) -> float | None:
            return self.figure(name, arm, target).value

        by_goal = {name: value(f"goal_harmful_share/{name}") for name in self.settings.get("goals", ())}
        return {
            "harmful_share": value(f"harmful_share/{self.harm}"),
            "harmful_conversations": value(f"harmful_conversations/{self.harm}"),
            "reward": value("reward"),
            "probe_logprob_per_token": value(f"probe_logprob_per_token/{self.settings['likelihood_under']}"),
            "exchanges": counted["exchanges"],
            "unscored": counted["unscored"].get(self.harm, 0),
            "failed": counted["failed"],
            "empty_responses": counted["empty_responses"],
            "cut_responses": counted.get("cut_responses", 0),  # older evaluations have none
            "unrewarded": counted["unrewarded"],
            "harmful_share_by_scorer": {name: value(f"harmful_share/{name}") for name in self.scorers},
            "unscored_by_scorer": {name: counted["unscored"].get(name, 0) for name in self.scorers},
            **({"harmful_share_by_goal": by_goal} if by_goal else {}),
            "harmful_share_by_turn": [
                value(f"harmful_share_turn_{turn}/{self.harm}") for turn in range(1, self.settings["depth"] + 1)
            ],
        }

    def to_pandas(self, what: str = "figures") -> Any:
        """Return a `pandas.DataFrame` of the "figures", the "differences", the "counts", the "coverage" or the
        "exchanges"."""
        import pandas as pd

        if what == "exchanges":
            rows = [
                {"arm": arm, "target": target, "tree": index, "depth": len(path), **_flat(node.to_json())}
                for (arm, target), trees in self.trees.items()
                for index, tree in enumerate(trees)
                for path, node in tree.walk()
            ]
            return pd.DataFrame(rows)
        tables = ("figures", "differences", "counts", "coverage", "exchanges")
        if what not in tables:
            raise InputError(f"an evaluation has no table {what!r}: choose one of {', '.join(tables)}")
        return pd.json_normalize(getattr(self, what))

    def to_json(self) -> dict[str, Any]:
        """Return everything except the trees."""
        return {"schema_version": SCHEMA_VERSION, "settings": self.settings} | {
            name: getattr(self, name) for name in _NAMES
        }

    @classmethod
    def read(cls, file: str | Path) -> "Evaluation":
        """Read an `evaluation.json`, which holds no trees. Raises `InputError` if the file is missing or damaged, or
        was written by a version with another schema."""
        quoted = f"'{visible(str(file))}'"
        try:
            data = parse_object(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{quoted} cannot be read ({error.strerror}): evaluate the tester first") from error
        except ValueError as error:
            raise InputError(f"{quoted} is damaged ({error}): evaluate again, or delete it") from error
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{quoted} has schema_version {data.get('schema_version')!r}, and this version of astra_trl reads "
                f"{SCHEMA_VERSION}: evaluate again, or use the version that wrote it"
            )
        if problem := _problem_of(data):
            raise InputError(f"{quoted} is damaged ({problem}): evaluate again, or delete it")
        return cls(data["settings"], **{name: data[name] for name in _NAMES})


def cut_responses(counts: Mapping[str, Any], is_chat: bool) -> str:
    """Return a clause about responses that `max_new_tokens` has cut, which says how to fix it if most of a chat's are;
    empty without such responses."""
    cut, responses = _cut_of(counts)
    fix = ": raise it in target_sampling (--target_sampling)" if is_chat and are_mostly_cut(counts) else ""
    return f"{cut} of {responses} responses were cut at max_new_tokens{fix}" if cut else ""


def are_mostly_cut(counts: Mapping[str, Any]) -> bool:
    """Return `True` if more than half of the responses were cut."""
    cut, responses = _cut_of(counts)
    return 2 * cut > responses


def _cut_of(counts: Mapping[str, Any]) -> tuple[float, float]:
    # Older counts have none.
    cut, exchanges, failed = (number(counts.get(name)) or 0 for name in ("cut_responses", "exchanges", "failed"))
    return cut, exchanges - failed


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, else `None`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e300 else None


def _problem_of(data: dict[str, Any]) -> str | None:
    settings = data.get("settings")
    if not isinstance(settings, dict):
        return "it has no settings"
    scorers = settings.get("scorers")
    if not isinstance(scorers, list) or not all(isinstance(name, str) for name in [settings.get("harm"), *scorers]):
        return "harm and scorers must be names"
    for table, names in _NAMES.items():
        rows = data.setdefault(table, []) if table in _OPTIONAL else data.get(table)
        if not isinstance(rows, list) or not all(_is_row(row, names) for row in rows):
            return f"{table} must be a list of objects with {', '.join(names)}"
    if any(number(row.get(key)) is None for row in data["coverage"] for key in _POINT):
        return f"coverage must have the numbers {' and '.join(_POINT)}"
    return None if data["arms"] else "it has no arms"


def _is_row(row: Any, names: Sequence[str]) -> bool:
    numbers = _NUMBERS if "figure" in names else ()
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in names)
        and all(row.setdefault(key) is None or number(row[key]) is not None for key in numbers)
    )


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    scores = {f"scores.{name}": value for name, value in line.pop("scores").items()}
    terms = {f"terms.{name}": value for name, value in line.pop("terms").items()}
    return {**{key: value for key, value in line.items() if not key.endswith("_ids")}, **scores, **terms}
