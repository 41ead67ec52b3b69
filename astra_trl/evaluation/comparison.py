"""Tables of an evaluation: figures of all arms, and paired differences between them."""

import math
from collections.abc import Mapping
from typing import Any

from astra_trl.evaluation.resampling import Interval, Statistic, difference
from astra_trl.evaluation.results import BASELINE, OPENINGS, TESTER, ArmKey
from astra_trl.evaluation.subsampling import MIN_SIZE, SubsampleMean
from astra_trl.progress import DELAY, ProgressBar

# Figures whose meaning does not depend on the number of turns.
_PER_EXCHANGE = ("harmful_share/", "harmful_share_turn_1/", "score_", "reward")

# A figure of only those conversations that turned harmful, which differ between arms: a difference would compare
# different openings, and an arm that also breaks the hard ones, late, would look slower.
_WITHOUT_DIFFERENCE = "first_harmful_turn/"


def compare_arms(
    statistics: Mapping[ArmKey, Mapping[str, Statistic]], openings: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of all figures and of the paired differences between arms.

    Every arm is compared with the untrained tester and with the openings alone, the tester with all other arms too.
    The openings alone have one turn, so they are compared only in figures of single exchanges. Figures that depend on
    the number of texts are computed on sets of one `size` per target.
    """
    statistics = _of_one_size(statistics)
    figures, differences = [], []
    with ProgressBar("computing", sum(map(len, statistics.values())), "figures", delay=DELAY) as bar:
        for (arm, target), by_name in statistics.items():
            for name, statistic in by_name.items():
                place = {"arm": arm, "target": target, "figure": name}
                figures.append({**place, **_row(statistic.value, statistic.n, statistic.interval, statistic)})
                bar.update()
    for (arm, target), by_name in statistics.items():
        for other in (name for name, place in statistics if place == target):
            if arm == other or arm in (BASELINE, OPENINGS) or (arm != TESTER and other not in (BASELINE, OPENINGS)):
                continue
            for name, statistic in by_name.items():
                against = statistics[other, target].get(name)
                if against is None or (other == OPENINGS and not name.startswith(_PER_EXCHANGE)):
                    continue
                if name.startswith(_WITHOUT_DIFFERENCE):
                    continue
                value, interval = difference(statistic, against)
                place = {"arm": arm, "against": other, "target": target, "figure": name}
                differences.append({**place, **_row(value, openings, interval, statistic)})
    return figures, differences


def _of_one_size(statistics: Mapping[ArmKey, Mapping[str, Statistic]]) -> dict[ArmKey, dict[str, Statistic]]:
    # The largest size for which every arm of a target has enough texts. The openings alone are not compared in such
    # figures, and an arm without two sets of two texts has no figure: neither reduces the size of the other arms.
    sizes: dict[tuple[str, str], int] = {}
    for arms in ([arm for arm, _ in statistics if arm != OPENINGS], [OPENINGS]):
        for (arm, target), by_name in statistics.items():
            for name, figure in by_name.items() if arm in arms else ():
                if isinstance(figure, SubsampleMean) and figure.largest >= MIN_SIZE:
                    size = sizes.get((target, name), figure.largest)
                    sizes[target, name] = size if arm == OPENINGS else min(size, figure.largest)
    return {
        (arm, target): {
            name: figure.of_size(sizes.get((target, name), 0)) if isinstance(figure, SubsampleMean) else figure
            for name, figure in by_name.items()
        }
        for (arm, target), by_name in statistics.items()
    }


def _row(value: float, n: int, interval: Interval, statistic: Statistic) -> dict[str, Any]:
    low, high = map(_finite_or_none, interval)
    row = {"value": _finite_or_none(value), "n": n, "low": low, "high": high}
    return (
        {**row, "size": statistic.size if math.isfinite(value) else None}
        if isinstance(statistic, SubsampleMean)
        else row
    )


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
