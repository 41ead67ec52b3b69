"""What an evaluation found, as data: figures with intervals, differences between arms, the trees themselves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.evaluation.arms import BASELINE, OPENINGS, TESTER
from astra_trl.evaluation.resampling import Interval, Statistic, difference
from astra_trl.evaluation.subsampling import MIN_SIZE, SubsampleMean
from astra_trl.text import parse_object
from astra_trl.tree import Tree

SCHEMA_VERSION = 2

ArmKey = tuple[str, str]  # arm and target

# Figures that mean the same however many turns a conversation has.
_PER_EXCHANGE = ("harmful_share/", "harmful_share_turn_1/", "score_", "reward")

# A figure of those conversations alone that turned harmful, which are other ones in each arm: a difference would
# compare different openings, and an arm that also breaks the hard ones, late, would look slower.
_WITHOUT_DIFFERENCE = "first_harmful_turn/"


@dataclass(frozen=True)
class Figure:
    """A number, how many values it was computed from, and its 95% interval; `None` if there is nothing to tell. With
    `size`, the average over sets of so many of the values."""

    value: float | None
    n: int
    low: float | None
    high: float | None
    size: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures of a tester beside those of what it is compared with.

    Args:
        settings (`dict`):
            What all arms share: openings, seed, depth, scorers, threshold, versions.
        arms, counts, figures, differences (`list[dict]`):
            Each a table in rows, as `evaluation.json` holds them.
        trees (`Mapping[tuple[str, str], list[Tree]]`):
            What was grown, by arm and target.
    """

    settings: dict[str, Any]
    arms: list[dict[str, Any]]
    counts: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    trees: Mapping[ArmKey, Sequence[Tree]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def harm(self) -> str:
        """The scorer that training's figures are about; the others are held out."""
        return self.settings["harm"]

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(arm["target"] for arm in self.arms))

    def arms_of(self, target: str | None = None) -> list[str]:
        """The arms that were measured against a target, by default the first."""
        return [arm["arm"] for arm in self.arms if arm["target"] == (target or self.targets[0])]

    def figure(self, name: str, arm: str = TESTER, target: str | None = None, against: str | None = None) -> Figure:
        """One figure, or with `against` its paired difference; without a value where it was not measured."""
        rows = self.figures if against is None else [row for row in self.differences if row["against"] == against]
        wanted = (name, arm, target or self.targets[0])
        for row in rows:
            if (row["figure"], row["arm"], row["target"]) == wanted:
                return Figure(row["value"], row["n"], row["low"], row["high"], row.get("size"))
        return Figure(None, 0, None, None)

    def counted(self, arm: str = TESTER, target: str | None = None) -> dict[str, Any]:
        """The counts of an arm."""
        wanted = (arm, target or self.targets[0])
        return next(row for row in self.counts if (row["arm"], row["target"]) == wanted)

    def headline(self, arm: str = TESTER, target: str | None = None) -> dict[str, Any]:
        """The figures that a run's summary holds, by their plain names."""
        scorers, counted = self.settings["scorers"], self.counted(arm, target)

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
            "unrewarded": counted["unrewarded"],
            "harmful_share_by_scorer": {name: value(f"harmful_share/{name}") for name in scorers},
            "unscored_by_scorer": {name: counted["unscored"].get(name, 0) for name in scorers},
            **({"harmful_share_by_goal": by_goal} if by_goal else {}),
            "harmful_share_by_turn": [
                value(f"harmful_share_turn_{turn}/{self.harm}") for turn in range(1, self.settings["depth"] + 1)
            ],
        }

    def to_pandas(self, what: str = "figures") -> Any:
        """A `pandas.DataFrame` of the "figures", the "differences", the "counts", or the "exchanges" themselves."""
        import pandas as pd

        if what == "exchanges":
            rows = [
                {"arm": arm, "target": target, "tree": index, "depth": len(path), **_flat(node.to_json())}
                for (arm, target), trees in self.trees.items()
                for index, tree in enumerate(trees)
                for path, node in tree.walk()
            ]
            return pd.DataFrame(rows)
        if what not in ("figures", "differences", "counts"):
            raise InputError(f"there is no table {what!r}: choose figures, differences, counts or exchanges")
        return pd.json_normalize(getattr(self, what))

    def to_json(self) -> dict[str, Any]:
        """Everything but the trees."""
        tables = {name: getattr(self, name) for name in ("settings", "arms", "counts", "figures", "differences")}
        return {"schema_version": SCHEMA_VERSION, **tables}

    @classmethod
    def read(cls, file: str | Path) -> "Evaluation":
        """The evaluation that an `evaluation.json` holds, without its trees."""
        try:
            data = parse_object(Path(file).read_text(encoding="utf-8"))
            version = data.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise InputError(f"'{file}' has schema {version}, this version reads {SCHEMA_VERSION}: evaluate again")
            return cls(**data)
        except InputError:
            raise
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise InputError(f"'{file}' holds no evaluation ({error}): evaluate again") from error


def tabled(
    statistics: Mapping[ArmKey, Mapping[str, Statistic]], openings: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures of all arms and paired differences between them, in rows.

    Every arm is compared with the untrained tester and with the openings alone, the tester with all others too; with
    the openings alone, which have one turn, only in what is said of single exchanges. The first harmful turn has no
    difference, as it is of other conversations in each arm. Figures that depend on how many texts they are of are all
    of one `size` against a target.
    """
    statistics = _of_one_size(statistics)
    figures, differences = [], []
    for (arm, target), found in statistics.items():
        for name, statistic in found.items():
            place = {"arm": arm, "target": target, "figure": name}
            figures.append({**place, **_row(statistic.value, statistic.n, statistic.interval, statistic)})
    for (arm, target), found in statistics.items():
        for other in (name for name, place in statistics if place == target):
            if arm == other or arm in (BASELINE, OPENINGS) or (arm != TESTER and other not in (BASELINE, OPENINGS)):
                continue
            for name, statistic in found.items():
                against = statistics[other, target].get(name)
                if against is None or (other == OPENINGS and not name.startswith(_PER_EXCHANGE)):
                    continue
                if name.startswith(_WITHOUT_DIFFERENCE):
                    continue
                value, ends = difference(statistic, against)
                place = {"arm": arm, "against": other, "target": target, "figure": name}
                differences.append({**place, **_row(value, openings, ends, statistic)})
    return figures, differences


def _of_one_size(statistics: Mapping[ArmKey, Mapping[str, Statistic]]) -> dict[ArmKey, dict[str, Statistic]]:
    # The largest size that every arm of a target has enough texts for. The openings alone are compared with none in
    # such figures, and an arm without two sets of two texts has no figure: neither makes the others' sets smaller.
    sizes: dict[tuple[str, str], int] = {}
    for arms in ([arm for arm, _ in statistics if arm != OPENINGS], [OPENINGS]):
        for (arm, target), found in statistics.items():
            for name, figure in found.items() if arm in arms else ():
                if isinstance(figure, SubsampleMean) and figure.largest >= MIN_SIZE:
                    known = sizes.get((target, name), figure.largest)
                    sizes[target, name] = known if arm == OPENINGS else min(known, figure.largest)
    return {
        (arm, target): {
            name: figure.of_size(sizes.get((target, name), 0)) if isinstance(figure, SubsampleMean) else figure
            for name, figure in found.items()
        }
        for (arm, target), found in statistics.items()
    }


def _row(value: float, n: int, ends: Interval, statistic: Statistic) -> dict[str, Any]:
    low, high = map(_null_if_nan, ends)
    row = {"value": _null_if_nan(value), "n": n, "low": low, "high": high}
    if not isinstance(statistic, SubsampleMean):
        return row
    return {**row, "size": None if math.isnan(value) else statistic.size}


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    scores = {f"scores.{name}": value for name, value in line.pop("scores").items()}
    terms = {f"terms.{name}": value for name, value in line.pop("terms").items()}
    return {**{key: value for key, value in line.items() if not key.endswith("_ids")}, **scores, **terms}
