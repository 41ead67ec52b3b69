"""Charts of coverage: the distinct successful probes that a number of exchanges finds, in training and in each arm."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

from astra_trl.evaluation.rarefaction import Points, attack_curve, cumulative_curve
from astra_trl.report.exchanges import Attempts, Exchanges, SourceKey
from astra_trl.report.figures import column_name, columns
from astra_trl.report.wording import group_by_wording
from astra_trl.results.labels import model_name
from astra_trl.results.reading import Folder

MAX_EXCHANGES = 50_000  # of a training: the time to compare probes grows with the square of their number

TRAINING: SourceKey = (None, None)


def coverage_charts(
    folders: Sequence[Folder], exchanges: Exchanges
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the chart of training and that of the evaluations' arms; `None` for a chart without a point.

    Training's curve counts the distinct successful probes so far, in the order of its exchanges. An arm's curve is the
    expected number among random exchanges, so that arms of different size can be compared. Both go by wording, as the
    page has no embeddings; the arms go by meaning if all of their evaluations have curves by the same embedder.
    """
    wordings = [_by_wording(attempts) for attempts in exchanges.attempts]
    training = [
        {"folder": place, "points": points}
        for place, attacks in enumerate(wordings)
        if (points := cumulative_curve([attack for attack, _ in attacks.get(TRAINING, ())]))
    ]
    shown = columns(folders)
    evaluations = [column.evaluation for column in shown]
    embedders = {str(evaluation.settings.get("embedder")) for evaluation in evaluations}
    by_meaning = len(embedders) == 1 and all(evaluation.coverage for evaluation in evaluations)
    arms = []
    for column in shown:
        if by_meaning:
            points = _by_meaning(column.evaluation.coverage, column.arm, column.target)
        else:
            attacks = wordings[column.folder].get((column.arm, column.target), ())
            points = attack_curve([attack for attack, scored in attacks if scored])
        name = column_name(folders, column.folder, column.arm)
        arms.append({"folder": column.folder, "arm": column.arm, "name": name, "points": points})
    kind = f"by meaning ({model_name(embedders.pop())})" if by_meaning else "by wording"
    return (
        _chart("Distinct successful probes so far", "by wording, of all rounds", training),
        _chart("Distinct successful probes", f"{kind}, expected among random exchanges", arms),
    )


def _chart(title: str, unit: str, series: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    filled = [one for one in series if one["points"]]
    return {"title": title, "unit": unit, "x": "exchanges", "series": filled} if filled else None


def _by_wording(attempts: Mapping[SourceKey, Attempts]) -> dict[SourceKey, list[tuple[Hashable | None, bool]]]:
    # For each exchange of each source of a folder: the group of its probe if it was successful, and if it was scored.
    kept = {key: some[:MAX_EXCHANGES] if key == TRAINING else some for key, some in attempts.items()}
    everything = list(chain.from_iterable(kept.values()))
    groups = group_by_wording([probe for probe, harmful in everything if harmful], (probe for probe, _ in everything))
    successful = iter(groups)
    return {
        key: [(next(successful) if harmful else None, harmful is not None) for _, harmful in some]
        for key, some in kept.items()
    }


def _by_meaning(rows: Sequence[Mapping[str, Any]], arm: str, target: str) -> Points:
    return [(row["exchanges"], row["attacks"]) for row in rows if (row["arm"], row["target"]) == (arm, target)]
