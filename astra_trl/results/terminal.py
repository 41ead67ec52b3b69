"""An evaluation for the terminal: tables of at most 80 columns, and conversations to read."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from astra_trl.evaluation.rarefaction import evenness
from astra_trl.evaluation.results import ARMS, BASELINE, OPENINGS, TESTER, Evaluation, cut_responses
from astra_trl.results.labels import SHORT_ARM_NAMES, SUCCESSFUL, format_short, headline_figures, short_label
from astra_trl.text import visible
from astra_trl.tree import Tree

_COUNTS = (
    *("failed", "empty_responses", "empty_probes", "cut_responses", "cut_probes"),
    *("openings_left_out", "openings_shortened", "unrewarded"),
)


def summary(evaluation: Evaluation, target: str | None = None) -> Table:
    """Return the table of the tester's figures with 95% intervals, those of the untrained tester and of the openings
    alone, and the paired difference to the untrained tester.

    A figure is shown only beside that of the untrained tester, or if there is none of the openings alone.
    """
    arms = evaluation.arms_of(target)
    main = next((arm for arm in (TESTER, *arms) if arm in arms and arm not in (BASELINE, OPENINGS)), None)
    against = evaluation.compared_with(target) if main else None
    compared = [arm for arm in (OPENINGS, BASELINE) if arm in arms]
    columns = [*compared, *([main] if main else [])]
    table = _table(f"{evaluation.settings['openings']} held-out openings", columns)
    if against:
        table.add_column("difference", justify="right")
    heading = "successful probes'"
    for name in headline_figures(evaluation.settings):
        figures = [evaluation.figure(name, arm, target) for arm in columns]
        cells = [
            format_short(name, figure, interval=arm == main) for arm, figure in zip(columns, figures, strict=True)
        ]
        if main and against:
            cells.append(format_short(name, evaluation.figure(name, main, target, against), signed=True))
        if any(cell != "-" for cell in cells):
            if heading and (name.endswith(SUCCESSFUL) or name.startswith("harmless_looking")):
                table.add_row(heading, *[""] * len(cells))
                heading = ""
            table.add_row(Text(visible(short_label(name, evaluation.settings))), *cells)
    for label, counts in _counts(evaluation, target, columns):
        table.add_row(Text(visible(label)), *map(str, counts))
    return table


def further(evaluation: Evaluation, target: str | None = None) -> Table:
    """Return a table with one row per further arm: its figures, and the tester's difference to it."""
    names = [f"harmful_share/{evaluation.harm}", f"probe_logprob_per_token/{evaluation.settings['likelihood_under']}"]
    names.append(f"self_bleu/{SUCCESSFUL}")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("compared with", no_wrap=True, max_width=20)
    for column in ("harmful responses %", "tester's more", "log-prob.", "self-BLEU"):
        table.add_column(column, justify="right")
    for arm in _further_arms(evaluation, target):
        share, *rest = (
            format_short(name, evaluation.figure(name, arm, target), interval=n == 0) for n, name in enumerate(names)
        )
        more = format_short(names[0], evaluation.figure(names[0], TESTER, target, arm), signed=True)
        table.add_row(Text(visible(arm)), share, more, *rest)
    return table


def transfer(evaluation: Evaluation) -> Table:
    """Return a table of the harmful share of every arm against every target."""
    arms, name = list(dict.fromkeys(arm["arm"] for arm in evaluation.arms)), f"harmful_share/{evaluation.harm}"
    table = _table(short_label(name, evaluation.settings), arms)
    for target in evaluation.targets:
        cells = [format_short(name, evaluation.figure(name, arm, target)) for arm in arms]
        table.add_row(Text(visible(target)), *cells)
    return table


def show(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the figures of an evaluation, those of the first target in full."""
    parts: list[Table | Text] = [summary(evaluation)]
    if TESTER in evaluation.arms_of() and _further_arms(evaluation):
        parts += [Text(), further(evaluation)]
    if len(evaluation.targets) > 1:
        parts += [Text(), transfer(evaluation)]
    notes = [
        f"In brackets: 95% intervals. Log-probabilities: natural, under the {evaluation.settings['likelihood_under']}."
    ]
    if any(arm["arm"] == OPENINGS for arm in evaluation.arms):
        notes.append("alone: the target hears only the opening.")
    if any(row["openings_shortened"] for row in evaluation.counts):
        notes.append("openings shortened: without the assistant's last turns, which are answers already.")
    if any(row["openings_left_out"] for row in evaluation.counts):
        notes.append("openings left out: they do not end with a user's turn that could be answered.")
    if any(row["empty_responses"] for row in evaluation.counts):
        notes.append("Empty responses are in no figure of harm.")
    main = next(arm for arm in (TESTER, *evaluation.arms_of()) if arm in evaluation.arms_of())
    if cut := cut_responses(evaluation.counts_of(main), evaluation.is_chat()):
        notes.append(f"{SHORT_ARM_NAMES.get(main, visible(main))}: {cut}.")
    if left_out := evaluation.settings.get("reward_left_out"):
        notes.append(f"Rewards are without {visible(', '.join(left_out))}, which would fall during training.")
    if sizes := _sizes(evaluation):
        notes.append(f"Self-BLEU and other diversity: averages over sets of {sizes}.")
    if len(evaluation.scorers) > 1:
        notes.append(f"Trained on {visible(evaluation.harm)}; other scorers are held out.")
    (console or Console(width=80, highlight=False)).print(Group(*parts, Text(" ".join(notes), style="dim")))


def weaknesses(hits: Mapping[str, int], planted: int) -> str:
    """Return the weak topics that were found, with their shares of the hits, in lines of at most 80 columns."""
    if not hits:
        return "weak topics found: none"
    total, even = sum(hits.values()), evenness(hits, planted)
    order = sorted(hits.items(), key=lambda item: (-item[1], item[0]))
    shares = ", ".join(f"{visible(topic)} {count / total:.0%}" for topic, count in order)
    text = f"weak topics found: {len(hits)} of {planted} in {total} hits: {shares}"
    return textwrap.fill(text if math.isnan(even) else f"{text}; evenness {even:.2f} (1: all equal)", 80)


def transcript(tree: Tree, harm: str = "harm") -> str:
    """Return a width-1 conversation as text of at most 80 columns, with the score in brackets after each response."""
    lines: list[tuple[str, str]] = [(turn.speaker, turn.text) for turn in tree.opening]
    for node in tree.nodes():
        lines.append(("tester", node.exchange.probe))
        score = f"{harm} {node.scores[harm]:.2f}" if node.has_response else "empty"
        score = f"failed: {node.error}" if node.error else score
        lines.append(("target", f"{node.exchange.response}  [{score}]"))
    width = max(8, *(len(speaker) for speaker, _ in lines))
    return "\n".join(
        textwrap.fill(
            " ".join(visible(text).split()),
            80,
            initial_indent=f"{speaker:>{width}}: ",
            subsequent_indent=" " * (width + 2),
        )
        for speaker, text in lines
    )


def _sizes(evaluation: Evaluation) -> str:
    # Sizes of the sets that the first target's figures of diversity are computed on.
    sizes = []
    kinds = {"attacks_found": "exchanges", **{f"self_bleu/{kind}": kind for kind in ("probes", SUCCESSFUL)}}
    for name, kind in kinds.items():
        figures = [evaluation.figure(name, arm) for arm in evaluation.arms_of()]
        if size := next((figure.size for figure in figures if figure.size), None):
            sizes.append(f"{size} {kind.replace('_', ' ')}")
    return " and ".join(", ".join(sizes).rsplit(", ", 1))


def _further_arms(evaluation: Evaluation, target: str | None = None) -> list[str]:
    return [arm for arm in evaluation.arms_of(target) if arm not in ARMS]


def _table(title: str, arms: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True, max_width=23)
    for arm in arms:
        table.add_column(Text(visible(SHORT_ARM_NAMES.get(arm, arm))), justify="right", max_width=19)
    return table


def _counts(evaluation: Evaluation, target: str | None, arms: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    rows = [evaluation.counts_of(arm, target) for arm in arms]
    for key in _COUNTS:
        # The openings alone have no probe with a likelihood that a reward could be made of.
        counts = [0 if key == "unrewarded" and row["arm"] == OPENINGS else row.get(key, 0) for row in rows]
        if any(counts):
            yield "without a reward" if key == "unrewarded" else key.replace("_", " "), counts
    for name in evaluation.scorers:
        if any(counts := [row["unscored"].get(name, 0) for row in rows]):
            yield f"not scored by {name}", counts
