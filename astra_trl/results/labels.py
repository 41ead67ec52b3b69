"""Labels of figures, arms and models: long for report and model card, short for the terminal."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from astra_trl.evaluation.results import BASELINE, OPENINGS, TESTER, Figure

ARM_NAMES = {TESTER: "tester", BASELINE: "untrained", OPENINGS: "openings alone"}
SHORT_ARM_NAMES = {**ARM_NAMES, OPENINGS: "alone"}

DASH = "–"  # for a figure without a value


class Label(NamedTuple):
    """Texts of a figure, and its digits after the point, long and short. A share is shown in percent."""

    long: str
    short: str
    digits: int = 3
    short_digits: int = 2
    is_share: bool = False


def _share(long: str, short: str) -> Label:
    return Label(long, short, 1, 1, is_share=True)


# By the whole name of a figure, or by the part before the slash, in the order in which figures are shown.
LABELS = {
    "harmful_share": _share("Harmful responses", "harmful responses"),
    "harmful_conversations": _share("Conversations with a harmful response", "harmful conversations"),
    "first_harmful_turn": Label("First harmful turn (conversations with one)", "  first harmful turn", 2),
    "target_harmful_first": _share("Conversations in which the target turned harmful first", "  before the tester"),
    "harmless_looking": _share("Harmful responses whose probe looked harmless", "  harmless share"),
    "attacks_found": Label("Distinct attacks found in exchanges", "distinct attacks found", 2, 1),
    "reward": Label("Reward, mean", "mean reward"),
    "first_credit": Label("Credit of first probes, mean", "  first probes' credit"),
    "term/no_question": _share("Probes without a question", "  no question"),
    "term": Label("Reward term", "  {}"),
    "goal_harmful_share": _share("Harmful responses", "  goal: {}"),
    "goal_harmful_conversations": _share("Conversations with a harmful response", "  goal: {}"),
    "probe_logprob_per_token": Label("Probe log-probability, nats per token", "log-prob. per token"),
    "harmful_share_turn": _share("Harmful responses in turn", "  turn {}"),
    "distinct_2": Label("Distinct-2", "distinct-2"),
    "self_bleu": Label("Self-BLEU (lower is more diverse)", "self-BLEU"),
    "cosine_distance": Label("Cosine distance", "cosine distance"),
    "vendi_score": Label("Vendi score", "  Vendi score", 2, 1),
    "distinct_attacks": Label("Distinct attacks", "  distinct attacks", 2, 0),
    "distinct_1": Label("Distinct-1", "distinct-1"),
    "distinct_3": Label("Distinct-3", "distinct-3"),
    "probe_perplexity": Label("Probe perplexity", "probe perplexity", 2),
    "score_mean": Label("Score, mean", "mean score"),
    "score_q25": Label("Score, lower quartile", "lower quartile"),
    "score_median": Label("Score, median", "median score"),
    "score_q75": Label("Score, upper quartile", "upper quartile"),
    "score_max": Label("Score, highest", "highest score"),
}
# Terms of a reward whose figures are shown by other names, or mean nothing by themselves.
_SHOWN_ELSEWHERE = {
    *("harm", "target_harm", "probe_and_response_harm", "probe_harm", "likelihood", "answer_harm"),
}  # fmt: skip
SUCCESSFUL = "successful_probes"


class Cell(NamedTuple):
    """Content of a cell: a value, and its 95% interval if there is one."""

    text: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


def headline_figures(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the figures that terminal and model card show, in their order."""
    harm, under = settings["harm"], settings.get("likelihood_under", "target")
    yield f"harmful_share/{harm}"
    for turn in range(1, (settings.get("depth") or 0) + 1):
        yield f"harmful_share_turn_{turn}/{harm}"
    yield from (f"harmful_share/{name}" for name in settings["scorers"] if name != harm)
    yield from (f"goal_harmful_share/{name}" for name in settings.get("goals", ()))
    yield from (f"{kind}/{harm}" for kind in ("harmful_conversations", "first_harmful_turn", "target_harmful_first"))
    yield from ("reward", "first_credit")
    yield from (f"term/{name}" for name in settings.get("reward", ()) if name not in _SHOWN_ELSEWHERE)
    yield from dict.fromkeys((f"probe_logprob_per_token/{under}", "probe_logprob_per_token/baseline"))
    yield "self_bleu/probes"
    yield "attacks_found"
    yield f"harmless_looking/{harm}"
    yield from (f"{kind}/{SUCCESSFUL}" for kind in ("self_bleu", "vendi_score", "distinct_attacks"))


def long_label(name: str, scorers: Sequence[str], harm: str) -> str:
    """Return the label of a figure in a report or a card."""
    label, rest, turn = _parts(name)
    if label is None:
        return name
    text = f"{label.long} {turn}" if turn else label.long
    if name in LABELS:
        return text
    if name.startswith("term/"):
        return f"{text}: {isolated(rest.replace('_', ' '))}"
    if name.startswith("goal_"):
        return f"{text}, goal: {isolated(rest)}"
    if rest in ("target", "baseline"):
        return f"{text}, under the {rest}"
    if rest in ("probes", SUCCESSFUL):
        return f"{text} of {rest.replace('_', ' ')}"
    if rest in scorers and rest != harm:
        return f"{text}, by {isolated(rest)} (held out)"
    return f"{text}, by {isolated(rest)}" if rest and (len(scorers) > 1 or rest != harm) else text


def short_label(name: str, settings: Mapping[str, Any]) -> str:
    """Return the label of a figure in the terminal, where a share has its unit in the label."""
    label, rest, turn = _parts(name)
    if label is None:
        return name
    text = label.short.format(turn or (rest.replace("_", " ") if name.startswith("term/") else rest))
    if name.startswith("harmful_share/") and rest != settings["harm"]:
        text = f"  by {rest}"
    elif name.startswith("probe_logprob_per_token/") and rest != settings["likelihood_under"]:
        text = f"  under the {rest}"
    elif name.startswith("self_bleu/"):
        text = "probe self-BLEU" if rest == "probes" else "  self-BLEU"
    return f"{text} %" if label.is_share else text


def format_figure(name: str, figure: Figure | None, difference: bool = False) -> Cell:
    """Return a figure as text with its interval; a dash if there was nothing to measure, empty if it is `None`."""
    if figure is None:
        return Cell("")
    if figure.value is None:
        return Cell(DASH)
    label = _parts(name)[0] or Label(name, name)
    unit = "" if not label.is_share else " points" if difference else "%"
    value, low, high = (text.replace("-", "−") for text in _numbers(figure, label, label.digits, difference))
    return Cell(f"{value}{unit}", f"[{low}, {high}]" if low else "")


def format_short(name: str, figure: Figure, signed: bool = False, interval: bool = True) -> str:
    """Return a figure as text for the terminal, without its unit."""
    if figure.value is None:
        return "-"
    label = _parts(name)[0] or Label(name, name)
    value, low, high = _numbers(figure, label, label.short_digits, signed)
    return f"{value} [{low},{high}]" if interval and low else value


def percent(share: float | None) -> str:
    """Return a share as text."""
    return DASH if share is None else f"{100 * share:.1f}%"


def arm_name(arm: str) -> str:
    """Return the name of an arm."""
    return ARM_NAMES.get(arm) or isolated(arm)


def model_name(model: str) -> str:
    """Return the name of a model; of the path of a folder, only the end."""
    return isolated("/".join(model.split("/")[-2:]) if model.startswith(("/", "~", ".")) else model)


def isolated(name: str) -> str:
    """Return the name, isolated if it is written from right to left, so that it does not reverse the words around."""
    right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in name)
    return f"\u2068{name}\u2069" if right_to_left else name


def _parts(name: str) -> tuple[Label | None, str, str]:
    # The label, the part after the slash, and the number of the turn, if the figure is of one turn.
    kind, _, rest = name.partition("/")
    turn = kind.removeprefix("harmful_share_turn_")
    if turn != kind:
        return LABELS["harmful_share_turn"], rest, turn
    return LABELS.get(name) or LABELS.get(kind), rest, ""


def _numbers(figure: Figure, label: Label, digits: int, signed: bool) -> tuple[str, str, str]:
    # The value and the ends of its interval, which are empty if there is none.
    factor = 100 if label.is_share else 1
    assert figure.value is not None
    value = f"{factor * figure.value:{'+' if signed else ''}.{digits}f}"
    if figure.low is None or figure.high is None:
        return value, "", ""
    return value, f"{factor * figure.low:.{digits}f}", f"{factor * figure.high:.{digits}f}"
