"""The evaluation of a run for its model card: paragraphs and metadata."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from astra_trl.evaluation.results import ARMS, BASELINE, OPENINGS, TESTER, Evaluation, cut_responses
from astra_trl.hub.redaction import last_part
from astra_trl.hub.run import Run
from astra_trl.results.labels import DASH, arm_name, format_figure, headline_figures, long_label
from astra_trl.results.markdown import escape, table


def eval_results(run: Run) -> Iterator[EvalResult]:
    """Yield the figures for the metadata: against the first target only, as the Hub cannot distinguish targets."""

    def some(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: row[key] for key in keys if row.get(key) is not None}

    if run.evaluation is None or not run.targets():
        return
    target, settings = run.targets()[0], run.settings
    for name, label in _figures(run.evaluation, target):
        if not name.startswith(("harmful_share/", "harmful_conversations/", "probe_logprob_per_token/")):
            continue
        for arm in ARMS:
            figure = run.evaluation.figure(name, arm, target)
            if figure.value is None:
                continue
            yield EvalResult(
                task_type="text-generation",
                task_name=f"Finding harmful responses of {last_part(target)}",
                dataset_type=run.openings(),
                dataset_name=f"{settings.get('openings', '?')} held-out openings of {run.openings()}",
                dataset_split="test",
                dataset_args=some(settings, "openings", "openings_digest", "depth", "width", "seed"),
                metric_type=name,
                metric_name=f"{label}, {arm_name(arm)}",
                metric_value=figure.value,
                metric_args={"arm": arm, **some(vars(figure), "low", "high", "n")},
            )


def paragraphs(run: Run) -> Iterator[str]:
    """Yield the paragraphs of the card's section; none without an evaluation."""
    if run.evaluation is None:
        return
    evaluation, settings = run.evaluation, run.settings
    figures = {target: _figures(evaluation, target) for target in run.targets()}
    if not any(figures.values()):
        yield "No untrained tester was evaluated beside this one, so its figures would mean nothing."
        return
    yield (
        f"{escape(settings.get('openings', '?'))} openings that training never saw; conversations of "
        f"{escape(settings.get('depth', '?'))} turns, with the same seeds for each tester. A response is harmful if "
        f"its score is at or above {evaluation.threshold:g}. In brackets: 95% intervals, between openings. The last "
        "column is the paired difference to the untrained tester."
    )
    for target, rows in figures.items():
        if rows:
            heading = f"### Against {escape(last_part(target))}\n\n" if len(figures) > 1 else ""
            yield heading + table(
                ["figure", *map(arm_name, ARMS), f"{arm_name(TESTER)} − {arm_name(BASELINE)}"],
                [
                    [
                        label,
                        *(format_figure(name, evaluation.figure(name, arm, target)) for arm in ARMS),
                        str(format_figure(name, evaluation.find(name, TESTER, target, BASELINE), True)) or DASH,
                    ]
                    for name, label in rows
                ],
            )
            for row in evaluation.counts:
                if row["target"] == target:
                    yield from _left_out(row, evaluation.scorers, evaluation.is_chat(target))
    if left_out := settings.get("reward_left_out"):
        yield f"Rewards are without {escape(left_out)}: these terms give less and less to a probe during training."


def _figures(evaluation: Evaluation, target: str) -> list[tuple[str, str]]:
    # Names and labels of the figures to show: those of which there is one of the untrained tester too.
    rows = []
    for name in headline_figures(evaluation.settings):
        figures = [evaluation.figure(name, arm, target) for arm in ARMS]
        if all(figure.value is not None for figure in figures[: ARMS.index(OPENINGS)]):
            size = next((figure.size for figure in figures if isinstance(figure.size, int)), None)
            label = long_label(name, evaluation.scorers, evaluation.harm)
            rows.append((name, f"{label}, {size} at a time" if size else label))
    return rows


def _left_out(counts: Mapping[str, Any], scorers: Sequence[str], is_chat: bool) -> Iterator[str]:
    failed, empty = counts.get("failed", 0), counts.get("empty_responses", 0)
    unscored = sum((counts.get("unscored") or {}).get(name, 0) for name in scorers)
    arm = escape(arm_name(counts["arm"]))
    if failed or empty or unscored:
        yield (
            f"Of the {escape(counts.get('exchanges'))} exchanges ({arm}), {escape(failed)} failed, {escape(empty)} "
            f"got an empty response and {escape(unscored)} could not be scored; they are in no figure of harm."
        )
    if cut := cut_responses(counts, is_chat):
        yield f"{escape(cut)} ({arm})."
    shortened, missing = (counts.get(f"openings_{name}", 0) for name in ("shortened", "left_out"))
    if shortened or missing:
        yield (
            f"Of the openings ({arm}), {escape(shortened)} were heard without the assistant's last turns, and "
            f"{escape(missing)} were left out, as they do not end with a user's turn that could be answered."
        )
