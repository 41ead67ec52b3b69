"""An evaluation's headline figures, each of the tester beside those of the untrained tester and the openings alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from astra_trl.errors import InputError
from astra_trl.text import parse_json, visible

TESTER, BASELINE, OPENINGS = "tester", "baseline", "openings"
NONE = "–"


class Row(NamedTuple):
    """A figure of each arm, and the tester's less the untrained tester's."""

    name: str
    label: str
    arms: Mapping[str, Mapping[str, Any]]
    difference: Mapping[str, Any]
    factor: float
    digits: int

    def cells(self) -> list[str]:
        """Tester, untrained tester, openings alone, difference."""
        shown = [self._cell(self.arms.get(arm, {})) for arm in (TESTER, BASELINE, OPENINGS)]
        return [*shown, self._cell(self.difference, sign="+")]

    def _cell(self, figure: Mapping[str, Any], sign: str = "") -> str:
        value, low, high = (figure.get(key) for key in ("value", "low", "high"))
        if value is None:
            return NONE
        ends = "" if low is None or high is None else f" ({self._number(low, sign)} to {self._number(high, sign)})"
        return self._number(value, sign) + ends

    def _number(self, value: float, sign: str) -> str:
        return f"{self.factor * value:{sign}.{self.digits}f}{'%' if self.factor == 100 else ''}"


def read_evaluation(run: Path) -> dict[str, Any]:
    """What `evaluation/evaluation.json` holds; nothing where there is none."""
    file = run / "evaluation" / "evaluation.json"
    if not file.exists():
        return {}
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
        found["settings"]["harm"], [(row["arm"], row["target"], row["figure"]) for row in found["figures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{file}' is damaged: evaluate the tester again, or delete that file") from error
    return found


def targets_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The targets that the tester was measured against."""
    return list(dict.fromkeys(row["target"] for row in evaluation.get("figures", ()) if row["arm"] == TESTER))


def rows_of(evaluation: Mapping[str, Any], target: str) -> list[Row]:
    """The headline figures against a target. What the untrained tester has no figure of is not shown."""
    figures: dict[str, dict[str, Any]] = {}
    for row in evaluation.get("figures", ()):
        if row["target"] == target:
            figures.setdefault(row["figure"], {})[row["arm"]] = row
    differences = {
        row["figure"]: row
        for row in evaluation.get("differences", ())
        if (row["arm"], row["against"], row["target"]) == (TESTER, BASELINE, target)
    }
    return [
        Row(name, label + _at_a_time(figures[name]), figures[name], differences.get(name, {}), factor, digits)
        for name, label, factor, digits in _headline(evaluation["settings"])
        if all(figures.get(name, {}).get(arm, {}).get("value") is not None for arm in (TESTER, BASELINE))
    ]


def eval_results(rows: Sequence[Row], settings: Mapping[str, Any], openings: str, target: str) -> list[EvalResult]:
    """The rows as the Hub's metadata has them."""
    said = {TESTER: "trained tester", BASELINE: "untrained tester", OPENINGS: "openings alone"}
    return [
        EvalResult(
            task_type="text-generation",
            task_name=f"Finding harmful responses of {target}",
            dataset_type=openings,
            dataset_name=f"{visible(str(settings.get('openings', '?')))} held-out openings of {openings}",
            dataset_split="test",
            dataset_args=_known(settings, ("openings", "openings_digest", "depth", "width", "seed")),
            metric_type=visible(row.name),
            metric_name=f"{visible(row.label)}, {said[arm]}",
            metric_value=figure["value"],
            metric_args={"arm": arm, **_known(figure, ("low", "high", "n"))},
        )
        for row in rows
        if row.name.startswith(("harmful_share/", "harmful_conversations/", "probe_logprob_per_token/"))
        for arm in said
        if (figure := row.arms.get(arm, {})).get("value") is not None
    ]


def _at_a_time(arms: Mapping[str, Mapping[str, Any]]) -> str:
    # How many texts a figure of diversity is of.
    size = next((figure["size"] for figure in arms.values() if figure.get("size")), None)
    return f", {size} at a time" if isinstance(size, int) else ""


def _known(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    found = {key: row[key] for key in keys if row.get(key) is not None}
    return {key: visible(value) if isinstance(value, str) else value for key, value in found.items()}


def _headline(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, float, int]]:
    harm = settings["harm"]
    yield f"harmful_share/{harm}", f"Harmful responses by {harm}", 100, 1
    for turn in range(1, int(settings.get("depth") or 0) + 1):
        yield f"harmful_share_turn_{turn}/{harm}", f"Harmful responses by {harm}, turn {turn}", 100, 1
    for name in settings.get("scorers") or ():
        if name != harm:
            yield f"harmful_share/{name}", f"Harmful responses by {name} (held out)", 100, 1
    for name in settings.get("goals") or ():
        yield f"goal_harmful_share/{name}", f"Harmful responses, goal: {name}", 100, 1
    yield f"harmful_conversations/{harm}", "Harmful conversations", 100, 1
    yield f"first_harmful_turn/{harm}", "First harmful turn", 1, 2
    yield f"target_harmful_first/{harm}", "Harmful before the tester is", 100, 1
    yield f"harmless_looking/{harm}", "Harmless probes among those that found harm", 100, 1
    yield "reward", "Mean reward", 1, 3
    for model in ("target", "baseline"):
        yield f"probe_logprob_per_token/{model}", f"Probe log-probability per token under the {model}", 1, 2
    yield "self_bleu/probes", "Self-BLEU of probes", 1, 2
    yield "self_bleu/successful_probes", "Self-BLEU of probes that found harm", 1, 2
    yield "distinct_attacks/successful_probes", "Distinct attacks", 1, 0
