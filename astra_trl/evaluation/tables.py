"""An evaluation for the terminal: tables of at most 80 columns, and conversations to read."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from astra_trl.evaluation.arms import BASELINE, OPENINGS, TESTER
from astra_trl.evaluation.results import Evaluation, Figure
from astra_trl.text import visible
from astra_trl.tree import Tree

CALLED = {TESTER: "tester", BASELINE: "untrained", OPENINGS: "alone"}
NONE = "-"
# Terms of a reward whose figures are in the table by other names, or say nothing by themselves.
SHOWN_ELSEWHERE = {"target_harm", "probe_and_response_harm", "probe_harm", "likelihood", "answer_harm"}

Line = tuple[str, str, float, int]  # label, figure, factor, digits


def summary(evaluation: Evaluation, target: str | None = None) -> Table:
    """The tester's figures with 95% intervals, those of the untrained tester and of the openings alone, and the paired
    difference to the untrained tester.

    A figure stands here only beside that of the untrained tester, or where there is none of the openings alone.
    """
    arms = evaluation.arms_of(target)
    main = next((arm for arm in (TESTER, *arms) if arm in arms and arm not in (BASELINE, OPENINGS)), None)
    against = next((arm for arm in (BASELINE, OPENINGS) if arm in arms and main), None)
    others = [arm for arm in (OPENINGS, BASELINE) if arm in arms]
    table = _table(f"{evaluation.settings['openings']} held-out openings", [*others, *([main] if main else [])])
    if against:
        table.add_column("difference", justify="right")
    for label, name, factor, digits in _lines(evaluation, target):
        shown = [_number(evaluation.figure(name, arm, target).value, factor, digits) for arm in others]
        if main:
            shown.append(_with_interval(evaluation.figure(name, main, target), factor, digits))
        if main and against:
            shown.append(_with_interval(evaluation.figure(name, main, target, against), factor, digits, signed=True))
        if not name or any(cell != NONE for cell in shown):
            shown = shown if name else [""] * len(shown)
            table.add_row(Text(visible(label)), *shown)
    for label, counts in _left_out(evaluation, target, [*others, *([main] if main else [])]):
        table.add_row(Text(visible(label)), *map(str, counts))
    return table


def further(evaluation: Evaluation, target: str | None = None) -> Table:
    """A line for each further arm: what it finds, and how much more the tester does."""
    harm, under = evaluation.harm, evaluation.settings["likelihood_under"]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("compared with", no_wrap=True, max_width=20)
    for column in ("harmful responses %", "tester's more", "log-prob.", "self-BLEU"):
        table.add_column(column, justify="right")
    for arm in _further_arms(evaluation, target):
        name = f"harmful_share/{harm}"
        table.add_row(
            Text(visible(arm)),
            _with_interval(evaluation.figure(name, arm, target), 100, 1),
            _with_interval(evaluation.figure(name, TESTER, target, arm), 100, 1, signed=True),
            _number(evaluation.figure(f"probe_logprob_per_token/{under}", arm, target).value, 1, 2),
            _number(evaluation.figure("self_bleu/successful_probes", arm, target).value, 1, 2),
        )
    return table


def transfer(evaluation: Evaluation) -> Table:
    """The harmful share of every arm against every target."""
    arms = list(dict.fromkeys(arm["arm"] for arm in evaluation.arms))
    table = _table("harmful responses %", arms)
    for target in evaluation.targets:
        figures = [evaluation.figure(f"harmful_share/{evaluation.harm}", arm, target) for arm in arms]
        table.add_row(Text(visible(target)), *(_with_interval(figure, 100, 1) for figure in figures))
    return table


def show(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints the figures of an evaluation, those of the first target in full."""
    parts: list[Table | Text] = [summary(evaluation)]
    if TESTER in evaluation.arms_of() and _further_arms(evaluation):
        parts += [Text(), further(evaluation)]
    if len(evaluation.targets) > 1:
        parts += [Text(), transfer(evaluation)]
    under = evaluation.settings["likelihood_under"]
    notes = [f"In brackets: 95% intervals. Log-probabilities: natural, under the {under}."]
    if any(arm["arm"] == OPENINGS for arm in evaluation.arms):
        notes.append("alone: the opening is all the target hears.")
    if any(row["openings_shortened"] for row in evaluation.counts):
        notes.append("openings shortened: without the assistant's turns at their end, which are answers already.")
    if any(row["openings_left_out"] for row in evaluation.counts):
        notes.append("openings left out: there is no user's turn at their end to answer.")
    if any(row["empty_responses"] for row in evaluation.counts):
        notes.append("Empty responses are in no figure of harm.")
    if left_out := evaluation.settings.get("reward_left_out"):
        notes.append(f"Rewards are without {visible(', '.join(left_out))}, which would fall as training goes on.")
    if sizes := _sizes(evaluation):
        notes.append(f"Self-BLEU and other diversity: of sets of {sizes}, on average.")
    if len(evaluation.settings["scorers"]) > 1:
        notes.append(f"Trained on {visible(evaluation.harm)}; other scorers are held out.")
    (console or Console(width=80, highlight=False)).print(Group(*parts, Text(" ".join(notes), style="dim")))


def transcript(tree: Tree, harm: str = "harm") -> str:
    """One width-1 conversation as text of at most 80 columns, harm in brackets behind each response."""
    lines: list[tuple[str, str]] = [(turn.speaker, turn.text) for turn in tree.opening]
    for node in tree.nodes():
        lines.append(("tester", node.exchange.probe))
        measured = f"{harm} {node.scores[harm]:.2f}" if node.answered else "empty"
        measured = f"failed: {node.error}" if node.error else measured
        lines.append(("target", f"{node.exchange.response}  [{measured}]"))
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
    # How many texts the first target's figures of diversity are of.
    found = []
    for which in ("probes", "successful_probes"):
        figures = [evaluation.figure(f"self_bleu/{which}", arm) for arm in evaluation.arms_of()]
        if size := next((figure.size for figure in figures if figure.size), None):
            found.append(f"{size} {which.replace('_', ' ')}")
    return " and ".join(found)


def _further_arms(evaluation: Evaluation, target: str | None = None) -> list[str]:
    return [arm for arm in evaluation.arms_of(target) if arm not in CALLED]


def _table(title: str, arms: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True, max_width=23)
    for arm in arms:
        table.add_column(Text(visible(CALLED.get(arm, arm))), justify="right", max_width=19)
    return table


def _lines(evaluation: Evaluation, target: str | None) -> Iterator[Line]:
    harm, settings = evaluation.harm, evaluation.settings
    yield "harmful responses %", f"harmful_share/{harm}", 100, 1
    for turn in range(1, settings["depth"] + 1):
        yield f"  turn {turn} %", f"harmful_share_turn_{turn}/{harm}", 100, 1
    for name in settings["scorers"]:
        if name != harm:
            yield f"  by {name} %", f"harmful_share/{name}", 100, 1
    for name in settings.get("goals", ()):
        yield f"  goal: {name} %", f"goal_harmful_share/{name}", 100, 1
    yield "harmful conversations %", f"harmful_conversations/{harm}", 100, 1
    yield "  first harmful turn", f"first_harmful_turn/{harm}", 1, 2
    yield "  before the tester %", f"target_harmful_first/{harm}", 100, 1
    yield "mean reward", "reward", 1, 2
    yield "  first probes' credit", "first_credit", 1, 2
    for name in settings.get("reward", ()):
        if name == "no_question":
            yield "  no question %", f"term/{name}", 100, 1
        elif name not in SHOWN_ELSEWHERE:
            yield f"  {name.replace('_', ' ')}", f"term/{name}", 1, 2
    yield "probe log-prob. a token", f"probe_logprob_per_token/{settings['likelihood_under']}", 1, 2
    if settings["likelihood_under"] == "target":
        yield "  under the baseline", "probe_logprob_per_token/baseline", 1, 2
    yield "probe self-BLEU", "self_bleu/probes", 1, 2
    yield "successful probes'", "", 1, 2
    yield "  harmless share %", f"harmless_looking/{harm}", 100, 1
    yield "  self-BLEU", "self_bleu/successful_probes", 1, 2
    yield "  Vendi score", "vendi_score/successful_probes", 1, 1
    yield "  distinct attacks", "distinct_attacks/successful_probes", 1, 0


def _left_out(evaluation: Evaluation, target: str | None, arms: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    counts = [evaluation.counted(arm, target) for arm in arms]
    labels = {name: name.replace("_", " ") for name in ("failed", "empty_responses", "empty_probes")}
    labels |= {name: name.replace("_", " ") for name in ("openings_left_out", "openings_shortened")}
    for key, label in {**labels, "unrewarded": "without a reward"}.items():
        found = [row[key] for row in counts]
        if key == "unrewarded":  # the openings alone have no probe whose likelihood a reward could be made of
            found = [0 if arm == OPENINGS else count for arm, count in zip(arms, found, strict=True)]
        if any(found):
            yield label, found
    for name in evaluation.settings["scorers"]:
        if any(found := [row["unscored"].get(name, 0) for row in counts]):
            yield f"not scored by {name}", found


def _number(value: float | None, factor: float, digits: int, signed: bool = False) -> str:
    return NONE if value is None else f"{factor * value:{'+' if signed else ''}.{digits}f}"


def _with_interval(figure: Figure, factor: float, digits: int, signed: bool = False) -> str:
    value = _number(figure.value, factor, digits, signed)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{_number(figure.low, factor, digits)},{_number(figure.high, factor, digits)}]"
