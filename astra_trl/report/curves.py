"""Curves over the rounds of one run, or of several in the same axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from astra_trl.evaluation.results import number
from astra_trl.report.exchanges import Exchanges, distinct_bigrams
from astra_trl.results.reading import Folder

Points = list[tuple[float, float]]

_COLLECTED = "round"
_TRAINED = "rounds trained"
_NOT_METRICS = ("runtime", "_per_second")


def curves(folders: Sequence[Folder], exchanges: Exchanges) -> list[dict[str, Any]]:
    """Return charts: each has a title, the units of its axes and one series per folder. Charts without a point are
    left out."""
    charts = [
        _chart("Harmful share of responses", "share of responses", _COLLECTED, folders, _of_rounds("harmful_share")),
        _chart("Reward", "mean reward", _COLLECTED, folders, _of_rounds("reward")),
        _chart("Probe log-probability", "nats per token", _COLLECTED, folders, _of_rounds("probe_logprob_per_token")),
        *(_chart(title, unit, _TRAINED, folders, points) for title, unit, points in _KL),
        _diversity(folders, exchanges),
    ]
    metrics = dict.fromkeys(key for folder in folders for row in folder.log for key in row if key.startswith("eval_"))
    for key in metrics:
        if not key.endswith(_NOT_METRICS):
            charts.append(_chart(key, "as logged", _TRAINED, folders, partial(_logged, key=key)))
    return [chart for chart in charts if chart["series"]]


def _chart(
    title: str, unit: str, x: str, folders: Sequence[Folder], points: Callable[[Folder], Points]
) -> dict[str, Any]:
    series = [{"folder": place, "points": points(folder)} for place, folder in enumerate(folders)]
    return {"title": title, "unit": unit, "x": x, "series": [one for one in series if one["points"]]}


def _of_rounds(key: str) -> Callable[[Folder], Points]:
    return lambda folder: _points((row.get("round"), row.get(key)) for row in folder.rounds)


def _logged(folder: Folder, key: str) -> Points:
    return _points((row.get("epoch"), row.get(key)) for row in folder.log)


def _points(values: Iterable[tuple[Any, Any]]) -> Points:
    return [(x, y) for at, value in values if (x := number(at)) is not None and (y := number(value)) is not None]


def _per_token_kl(folder: Folder) -> Points:
    # PPO logs a KL of its own, per probe.
    return [] if any("objective/kl" in row for row in folder.log) else _logged(folder, "kl")


def _log_ratio(folder: Folder) -> Points:
    # rewards/* are beta times the log-ratio of tester to baseline, summed over the probe.
    beta = number(folder.config.get("beta"))
    if not beta:
        return []

    def mean(row: Mapping[str, Any]) -> float | None:
        winner, loser = number(row.get("rewards/chosen")), number(row.get("rewards/rejected"))
        return None if winner is None or loser is None else (winner + loser) / (2 * beta)

    return _points((row.get("epoch"), mean(row)) for row in folder.log)


_KL: list[tuple[str, str, Callable[[Folder], Points]]] = [
    ("Log-ratio of tester to baseline on the pairs trained on", "nats per probe", _log_ratio),
    ("KL from the baseline", "nats per token", _per_token_kl),
    ("KL from the baseline", "nats per probe", partial(_logged, key="objective/kl")),
]


def _diversity(folders: Sequence[Folder], exchanges: Exchanges) -> dict[str, Any]:
    # Distinct-2 falls with the number of probes, so every finished round is measured on the number of the smallest.
    finished = [
        {at: probes[at] for row in folder.rounds if isinstance(at := row.get("round"), int) and at in probes}
        for folder, probes in zip(folders, exchanges.probes, strict=True)
    ]
    size = min((len(texts) for rounds in finished for texts in rounds.values()), default=0)

    def points(rounds: Mapping[int, list[str]]) -> Points:
        some = {at: [texts[i * len(texts) // size] for i in range(size)] for at, texts in rounds.items()}
        return _points((at, distinct_bigrams(texts)) for at, texts in some.items())

    series = [{"folder": place, "points": points(rounds)} for place, rounds in enumerate(finished)]
    return {
        "title": "Diversity of probes (distinct-2)",
        "unit": f"distinct word pairs / all, of {size} probes per round",
        "x": _COLLECTED,
        "series": [one for one in series if one["points"]],
    }
