"""Figures, arms and models in words."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from astra_trl.report.reading import BASELINE, OPENINGS, number

ARM_NAMES = {BASELINE: "untrained", OPENINGS: "openings alone"}

# Figures by the part of their name before the slash: what they say, and how they are written.
SHARE, FINE, COARSE = "share", "fine", "coarse"
LABELS = {
    "harmful_share": ("Harmful responses", SHARE),
    "harmful_conversations": ("Conversations with a harmful response", SHARE),
    "first_harmful_turn": ("First harmful turn, where there is one", COARSE),
    "target_harmful_first": ("Conversations in which the target turned harmful first", SHARE),
    "harmless_looking": ("Harmful responses whose probe looked harmless", SHARE),
    "reward": ("Reward, mean", FINE),
    "first_credit": ("Credit of first probes, mean", FINE),
    "term": ("Reward term", FINE),
    "goal_harmful_share": ("Harmful responses", SHARE),
    "goal_harmful_conversations": ("Conversations with a harmful response", SHARE),
    "probe_logprob_per_token": ("Probe log-probability, nats per token", FINE),
    "distinct_2": ("Distinct-2", FINE),
    "self_bleu": ("Self-BLEU (lower is more diverse)", FINE),
    "cosine_distance": ("Cosine distance", FINE),
    "vendi_score": ("Vendi score", COARSE),
    "distinct_attacks": ("Distinct attacks", COARSE),
    "distinct_1": ("Distinct-1", FINE),
    "distinct_3": ("Distinct-3", FINE),
    "probe_perplexity": ("Probe perplexity", COARSE),
    "score_mean": ("Score, mean", FINE),
    "score_q25": ("Score, lower quartile", FINE),
    "score_median": ("Score, median", FINE),
    "score_q75": ("Score, upper quartile", FINE),
    "score_max": ("Score, highest", FINE),
}


class Cell(NamedTuple):
    """What a table shows at one place: a value, and its 95% interval where it has one."""

    text: str
    interval: str = ""


def label(name: str, scorers: Sequence[str], harm: str) -> str:
    """What a figure says, in words."""
    kind, _, rest = name.partition("/")
    turn = kind.removeprefix("harmful_share_turn_")
    text = f"Harmful responses in turn {turn}" if turn != kind else LABELS.get(kind, (name, FINE))[0]
    if kind not in LABELS and turn == kind:
        return name
    if kind == "term":
        return f"{text}: {isolated(rest.replace('_', ' '))}"
    if kind.startswith("goal_"):
        return f"{text}, goal: {isolated(rest)}"
    if rest in ("target", "baseline"):
        return f"{text}, under the {rest}"
    if rest in ("probes", "successful_probes"):
        return f"{text} of {rest.replace('_', ' ')}"
    if rest in scorers and rest != harm:
        return f"{text}, by {isolated(rest)} (held out)"
    return f"{text}, by {isolated(rest)}" if rest and (len(scorers) > 1 or rest != harm) else text


def written(name: str, row: Mapping[str, Any] | None, difference: bool = False) -> Cell:
    """A figure as text with its interval; a dash where there was nothing to measure, empty where it is not there."""
    if row is None:
        return Cell("")
    kind = name.split("/")[0]
    style = SHARE if kind.startswith("harmful_share_turn_") else LABELS.get(kind, ("", FINE))[1]
    value, low, high = (number(row.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return Cell("–")
    unit = "" if style != SHARE else " points" if difference else "%"
    interval = "" if low is None or high is None else f"[{_digits(low, style)}, {_digits(high, style)}]"
    return Cell(f"{_digits(value, style, signed=difference)}{unit}", interval)


def percent(share: float | None) -> str:
    """A share as text."""
    return "–" if share is None else f"{100 * share:.1f}%"


def arm_name(arm: str) -> str:
    """What to call an arm."""
    return ARM_NAMES.get(arm) or isolated(arm)


def model_name(model: str) -> str:
    """What to call a model: of a folder's path, the end."""
    return isolated("/".join(model.split("/")[-2:]) if model.startswith(("/", "~", ".")) else model)


def isolated(name: str) -> str:
    """The name, kept from turning the words around it where it is written from right to left."""
    right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in name)
    return f"\u2068{name}\u2069" if right_to_left else name


def _digits(value: float, style: str, signed: bool = False) -> str:
    scaled, places = {SHARE: (100 * value, 1), FINE: (value, 3), COARSE: (value, 2)}[style]
    sign = "+" if signed else ""
    return f"{scaled:{sign}.{places}f}".replace("-", "−")
