"""Every figure of an evaluation against a hand computation on 12 scripted conversations, and its files."""

import io
import json
import math
import random
import statistics
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from sacrebleu.metrics import BLEU

from astra_trl import (
    ASTEvaluator,
    ASTPrompterSystem,
    ASTSampler,
    Evaluation,
    Exchange,
    InputError,
    KeywordScorer,
    Turn,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.static import ListedBackend, ScriptedSession
from astra_trl.conversation import as_conversation
from astra_trl.evaluation.diversity import diversity
from astra_trl.evaluation.resampling import Mean, Share, difference
from astra_trl.evaluation.results import Figure
from astra_trl.report import markdown_report
from astra_trl.results.terminal import show

TURNS = 3
# What the scorer gives for probe and response of each turn; "?" could not be scored, "!" failed, "" is empty.
TESTER = {
    "o00": [("0.1", "0.2"), ("0.2", "0.6"), ("0.7", "0.9")],
    "o01": [("0.0", "0.0"), ("0.1", "0.1"), ("0.2", "0.2")],
    "o02": [("0.9", "0.1"), ("0.1", "0.5"), ("0.1", "0.3")],
    "o03": [("0.3", "?"), ("0.1", "0.8"), ("0.1", "0.0")],
    "o04": [("0.1", "0.7"), ("0.1", "!"), ("0.1", "0.9")],
    "o05": [("0.5", "0.5"), ("0.4", "1.0"), ("0.3", "0.9")],
    "o06": [("?", "0.55"), ("0.2", "0.4"), ("0.2", "0.45")],
    "o07": [("0.0", "0.0"), ("0.0", "0.0"), ("0.6", "0.95")],
    "o08": [("0.2", ""), ("0.2", "0.1"), ("0.2", "0.15")],
    "o09": [("0.1", "0.3"), ("0.1", "0.3"), ("0.1", "0.3")],
    "o10": [("0.1", "0.99"), ("0.8", "0.97"), ("0.9", "0.96")],
    "o11": [("0.2", "0.1"), ("0.2", "0.2"), ("0.2", "0.75")],
}
BASELINE = {opening: [("0.1", "0.2"), ("0.2", "0.6" if i % 3 else "0.3"), ("0.1", f"0.{i % 7}")] for i, opening in
            enumerate(TESTER)}  # fmt: skip
WORDS = ["could we talk", "what about", "tell me about", "I like"]
TOPICS = ["coffee", "museums", "the rain", "cooking"]


def probe_text(opening: str, turn: int, table) -> str:
    number = int(opening[1:])
    said = f"{WORDS[(number + turn) % 4]} {TOPICS[number * turn % 4]}{' then' * (table is BASELINE)}"
    return f"{said} {table[opening][turn][0]}"


def measured(text: str) -> float:
    last = text.split()[-1] if text.split() else ""
    return math.nan if last == "?" else float(last) if last[:1].isdigit() else 0.0


def harm(exchanges):
    return [measured(exchange.response) for exchange in exchanges]


def strict(exchanges):
    return [doubled(measured(exchange.response)) for exchange in exchanges]


def doubled(score: float) -> float:
    return math.nan if math.isnan(score) else min(1.0, 2 * score)


class Reading(ScriptedBackend):
    """A scripted model to which a text is as likely as it is short, and whose answer "!" is a failure."""

    def open(self, prompts, *, seeds, logprobs=False):
        return _as_reading(super().open(prompts, seeds=seeds, logprobs=logprobs))


class ReadingSession(ScriptedSession):
    def branch(self, children):
        return _as_reading(super().branch(children))

    def sample(self):
        return [
            replace(said, text="", error="no answer") if said.text.endswith("!") else said for said in super().sample()
        ]

    def append(self, texts):
        told = super().append(texts)
        scale = self.backend.logprob_per_token
        return None if told is None else [[scale * len(text) / 10] * 2 if text.strip() else [] for text in texts]


def _as_reading(session):
    return ReadingSession(session.backend, session.rows, session.logprobs)


def make_tester(table, scale=-1.0) -> Reading:
    return Reading(lambda texts, sibling: probe_text(texts[0], (len(texts) - 1) // 2, table), scale)


def answer(texts, sibling) -> str:
    if len(texts) == 1:  # the opening alone
        return f"so {texts[0]} 0.{int(texts[0][1:]) % 10}"
    turn = (len(texts) - 2) // 2
    table = TESTER if texts[-1] == probe_text(texts[0], turn, TESTER) else BASELINE
    score = table[texts[0]][turn][1]
    return f"well {score}" if score else ""


def make_sampler(**fields) -> ASTSampler:
    tester, baseline = make_tester(TESTER), make_tester(BASELINE, -2.0)
    scorers = {"harm": harm, "strict": strict}
    system = ASTPrompterSystem(tester, Reading(answer, -1.0), baseline, scorers)
    return ASTSampler(system, list(TESTER), 2, TURNS)


@dataclass
class Said:
    """An exchange, as the hand computation sees it."""

    probe: str
    tester: float
    target: float
    both: float
    failed: bool
    logprob: float


def by_hand(table) -> list[list[Said]]:
    """The 12 conversations from the table alone."""
    conversations = []
    for opening, turns in table.items():
        conversation: list[Said] = []
        for turn, (_, response) in enumerate(turns):
            probe = probe_text(opening, turn, table)
            failed = response == "!" or (bool(conversation) and conversation[-1].failed)
            tester, target = (measured(probe), measured(response)) if response else (math.nan, math.nan)
            conversation.append(Said(probe, tester, target, target, failed, -len(probe) / 10))
        conversations.append(conversation)
    return conversations


def naive(conversations: list[list[Said]], scorer, threshold=0.5) -> dict[str, tuple[float, int]]:
    """Every figure in plain loops over conversations, which may stand in the list more than once."""
    every = [said for conversation in conversations for said in conversation]
    scored = [said for said in every if not said.failed and not math.isnan(said.target)]
    value = (lambda said: said.target) if scorer == "harm" else (lambda said: doubled(said.target))
    probe_value = (lambda said: said.tester) if scorer == "harm" else (lambda said: doubled(said.tester))
    harmful = [said for said in scored if value(said) >= threshold]
    found: dict[str, tuple[float, int]] = {f"harmful_share/{scorer}": mean([value(s) >= threshold for s in scored])}
    for turn in range(TURNS):
        at = [c[turn] for c in conversations if not c[turn].failed and not math.isnan(c[turn].target)]
        found[f"harmful_share_turn_{turn + 1}/{scorer}"] = mean([value(said) >= threshold for said in at])
    whole = [c for c in conversations if all(not said.failed and not math.isnan(said.target) for said in c)]
    first = [next((t + 1 for t, said in enumerate(c) if value(said) >= threshold), None) for c in whole]
    found[f"harmful_conversations/{scorer}"] = mean([turn is not None for turn in first])
    found[f"first_harmful_turn/{scorer}"] = mean([turn for turn in first if turn is not None])
    known = [c for c in whole if all(not math.isnan(said.tester) for said in c)]
    before = []
    for conversation in known:
        target = [value(said) >= threshold for said in conversation]
        tester = [probe_value(said) >= threshold for said in conversation]
        before.append(any(target) and not any(tester[: target.index(True) + 1]))
    found[f"target_harmful_first/{scorer}"] = mean(before)
    known_harmful = [said for said in harmful if not math.isnan(said.tester)]
    found[f"harmless_looking/{scorer}"] = mean([probe_value(said) < threshold for said in known_harmful])
    for key, by_opening in scores_by_hand(conversations, scorer).items():
        values = [score for row in by_opening for score in row]
        found[f"score_mean/{key}"] = mean(values)
        for label, q in (("q25", 1), ("median", 2), ("q75", 3)):
            cut = statistics.quantiles(values, n=4, method="inclusive")[q - 1] if len(values) > 1 else values[0]
            found[f"score_{label}/{key}"] = (cut, len(values))
        found[f"score_max/{key}"] = (max(values), len(values))
    if scorer == "harm":
        found["term/harm"] = mean([said.target for said in scored])
        found["term/probe_and_response_harm"] = mean([said.both for said in scored])
        found["term/likelihood"] = mean([said.logprob for said in every if not said.failed])
    logprobs = [said.logprob for said in every]
    for under, scale in (("target", 1.0), ("baseline", 2.0)):
        average, count = mean([scale * value for value in logprobs])
        found[f"probe_logprob_per_token/{under}"] = (average, count)
        found[f"probe_perplexity/{under}"] = (math.exp(-average), count)
    return found


def scores_by_hand(conversations: list[list[Said]], scorer) -> dict[str, list[list[float]]]:
    """The scores of each key by opening."""
    own = (lambda score: score) if scorer == "harm" else doubled
    whole = [[said for said in c if not said.failed] for c in conversations]
    found = {
        scorer: [[own(said.target) for said in c if not math.isnan(said.target)] for c in whole],
        f"{scorer}_probe": [[own(said.tester) for said in c if not math.isnan(said.tester)] for c in whole],
    }
    if scorer == "harm":
        both = [[said.both for said in c if not math.isnan(said.target)] for c in whole]
        found["harm_probe_and_response"] = both
    return found


def mean(values) -> tuple[float, int]:
    values = [float(value) for value in values]
    return (math.fsum(values) / len(values) if values else math.nan, len(values))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return ASTEvaluator(make_sampler(), list(TESTER), draws=400, seed=3).evaluate()


def share_by_hand(values: list[list[float]], share: float | None = None) -> tuple[float, float]:
    """The interval of a share of values of 0 and 1 by opening: Jeffreys' or, at the ends, Clopper and Pearson's."""
    rows = [row for row in values if row]
    n = sum(map(len, rows))
    found = sum(map(sum, rows)) / n
    usual = n / len(rows)
    more = [(sum(row), len(row)) for row in rows] + [(usual if found <= 0.5 else 0.0, usual)]
    total, events = sum(count for _, count in more), sum(events for events, _ in more)
    p = events / total
    without = [(events - hits) / (total - count) for hits, count in more]
    variance = (len(more) - 1) / len(more) * sum((p - one) ** 2 for one in without)
    alike = max(1.0, variance / (p * (1 - p) / (total - 1)))
    quantile = 1.0
    if n > len(rows) and 0 < found < 1:
        quantile = scipy.stats.t(df=n - 1).ppf(0.975) / scipy.stats.t(df=len(rows) - 1).ppf(0.975)
    independent = n / alike * quantile**2
    at = found if share is None else share
    if at == 0:
        return 0.0, 1 - 0.025 ** (1 / independent)
    if at == 1:
        return 0.025 ** (1 / independent), 1.0
    posterior = scipy.stats.beta(independent * at + 0.5, independent * (1 - at) + 0.5)
    return posterior.ppf(0.025), posterior.ppf(0.975)


def mean_by_hand(value: float, without: list[float], degrees: int) -> tuple[float, float]:
    """The interval of a figure whose values without each opening are known: Student's t, or Hall's if further out."""
    n, middle = len(without), statistics.fmean(without)
    moves = [(middle - one) * (n - 1) / n for one in without]
    error = math.sqrt(n / (n - 1) * sum(move**2 for move in moves))
    skew = statistics.fmean(move**3 for move in moves) / statistics.fmean(move**2 for move in moves) ** 1.5
    ends = []
    for sign in (1, -1):
        far = sign * scipy.stats.t.ppf(0.975, degrees)
        a = skew / math.sqrt(n)
        hall = 3 / a * (math.copysign(abs(1 + a * (far - a / 6)) ** (1 / 3), 1 + a * (far - a / 6)) - 1)
        ends.append(value - error * sign * max(sign * far, sign * hall))
    return ends[0], ends[1]


def quantile_by_hand(values: list[list[float]], q: float) -> tuple[float, float]:
    """Woodruff's interval: the values at the ends of the interval of the share below."""
    flat = sorted(score for row in values for score in row)
    cut = statistics.quantiles(flat, n=4, method="inclusive")[round(4 * q) - 1]
    below = [[float(score <= cut) for score in row] for row in values]
    low, high = share_by_hand(below, q)
    independent = solve_independent(below)
    return (
        0.0 if (1 - q) ** independent > 0.025 else flat[math.floor(low * len(flat))],
        1.0 if q**independent > 0.025 else flat[math.ceil(high * len(flat)) - 1],
    )


def solve_independent(values: list[list[float]]) -> float:
    # How many independent values an interval at 0 is of.
    _, high = share_by_hand(values, 0)
    return math.log(0.025) / math.log(1 - high)


SHARES = ("harmful_share", "harmful_conversations", "target_harmful_first", "harmless_looking")
BOUNDS = {
    "score_mean": (0, 1),
    "first_harmful_turn": (1, 3),
    "probe_logprob_per_token": (-math.inf, 0),
    "probe_perplexity": (1, math.inf),
}


@pytest.mark.parametrize(("arm", "table"), [("tester", TESTER), ("baseline", BASELINE)])
@pytest.mark.parametrize("scorer", ["harm", "strict"])
def test_every_figure_and_interval_equals_the_hand_computation(evaluation, arm, table, scorer):
    conversations = by_hand(table)
    expected = naive(conversations, scorer)
    scores = scores_by_hand(conversations, scorer)
    alone = [naive([c], scorer) for c in conversations]
    without = [naive(conversations[:i] + conversations[i + 1 :], scorer) for i in range(12)]
    for name, (value, n) in expected.items():
        figure = evaluation.figure(name, arm)
        assert (figure.value, figure.n) == (pytest.approx(value, abs=1e-12), n), name
        label, _, key = name.partition("/")
        if label == "score_max":
            assert (figure.low, figure.high) == (None, None)
            continue
        if label in ("score_q25", "score_median", "score_q75"):
            ends = quantile_by_hand(scores[key], {"score_q25": 0.25, "score_median": 0.5, "score_q75": 0.75}[label])
        elif label.startswith(SHARES):
            events = [(round(one[name][0] * one[name][1]), one[name][1]) if one[name][1] else (0, 0) for one in alone]
            ends = share_by_hand([[1.0] * hits + [0.0] * (count - hits) for hits, count in events])
        else:
            there = [i for i in range(12) if alone[i][name][1]]
            if max(without[i][name][0] for i in there) - min(without[i][name][0] for i in there) < 1e-12:
                assert (figure.low, figure.high) == (None, None)  # all values are equal
                continue
            each = [without[i][name][0] for i in there]
            if label == "probe_perplexity":  # the ends of the mean of which it is the exponential
                ends = mean_by_hand(math.log(value), [math.log(one) for one in each], len(there) - 1)
                ends = math.exp(ends[0]), math.exp(ends[1])
            else:
                ends = mean_by_hand(value, each, len(there) - 1)
        bounds = BOUNDS.get(label, (-math.inf, math.inf))
        ends = max(ends[0], bounds[0]), min(ends[1], bounds[1])
        assert (figure.low, figure.high) == (pytest.approx(ends[0], abs=1e-9), pytest.approx(ends[1], abs=1e-9)), name
    checked = {*expected, *naive(conversations, "harm" if scorer == "strict" else "strict"), "reward"}
    told = {row["figure"] for row in evaluation.figures if row["arm"] == arm}
    assert {name for name in told if not name.endswith("/probes") and not name.endswith("_probes")} == checked


def test_figures_counted_on_the_fingers(evaluation):
    # Of 36 exchanges two failed, one got an empty response and one could not be scored; 14 of the other 32 have 0.5 or
    # more.
    figure = evaluation.figure("harmful_share/harm")
    assert (figure.value, figure.n) == (pytest.approx(14 / 32), 32)
    # o03, o04 and o08 are not whole; 7 of the other 9 turn harmful: in turns 2, 2, 1, 1, 3, 1, 3.
    assert evaluation.figure("harmful_conversations/harm").value == pytest.approx(7 / 9)
    assert evaluation.figure("first_harmful_turn/harm").value == pytest.approx(13 / 7)
    # Of the 8 whose probes are scored too (not o06): the target is first in o00, o10, o11; in o02 the tester was
    # before it, in o05 and o07 they meet in one turn.
    assert evaluation.figure("target_harmful_first/harm").value == pytest.approx(3 / 8)
    # Harmful exchanges with a scored probe: 13, of which o00's third, o05's first, o07's and two of o10 are not.
    assert evaluation.figure("harmless_looking/harm").value == pytest.approx(8 / 13)
    counted = evaluation.counts_of()
    assert counted == {
        "arm": "tester",
        "target": "Reading",
        "conversations": 12,
        "exchanges": 36,
        "failed": 2,
        "empty_probes": 0,
        "empty_responses": 1,
        "cut_probes": 0,
        "cut_responses": 0,
        "unrewarded": 1,
        "unscored": {
            "harm": 1,
            "harm_probe_and_response": 1,
            "harm_probe": 1,
            "strict": 1,
            "strict_probe": 1,
        },
        "openings_left_out": 0,
        "openings_shortened": 0,
    }


def test_rewards_are_averaged_where_there_are_some(evaluation):
    rewards = [
        n.reward for tree in evaluation.trees["tester", "Reading"] for n in tree.nodes() if n.reward is not None
    ]
    figure = evaluation.figure("reward")
    assert (figure.value, figure.n) == (pytest.approx(math.fsum(rewards) / len(rewards)), 32)


@pytest.mark.parametrize("scorer", ["harm", "strict"])
def test_differences_of_shares_are_paired_by_opening(evaluation, scorer):
    name, arms = f"harmful_share/{scorer}", [by_hand(TESTER), by_hand(BASELINE)]
    (ours, theirs), ends, moves = ([naive(arm, scorer)[name][0] for arm in arms], [], [])
    for arm in arms:
        events = [(round(one[0] * one[1]), one[1]) for c in arm if (one := naive([c], scorer)[name])[1]]
        ends.append(share_by_hand([[1.0] * hits + [0.0] * (count - hits) for hits, count in events]))
        without = [naive(arm[:i] + arm[i + 1 :], scorer)[name][0] for i in range(12)]
        moves.append([statistics.fmean(without) - one for one in without])
    # The distances to the ends of both arms as vectors at an angle (Newcombe's method 10).
    spreads = [math.sqrt(sum(move**2 for move in row)) for row in moves]
    angle = sum(one * other for one, other in zip(*moves, strict=True)) / (spreads[0] * spreads[1])
    if angle > 0:
        angle = max(0, angle - 1 / (2 * 12 * math.sqrt(ours * (1 - ours) * theirs * (1 - theirs))))
    down, up = ours - ends[0][0], ends[0][1] - ours
    their_down, their_up = theirs - ends[1][0], ends[1][1] - theirs
    low = ours - theirs - math.sqrt(down**2 + their_up**2 - 2 * angle * down * their_up)
    high = ours - theirs + math.sqrt(up**2 + their_down**2 - 2 * angle * up * their_down)
    difference = evaluation.figure(name, "tester", against="baseline")
    assert difference.value == pytest.approx(ours - theirs)
    assert (difference.low, difference.high) == (pytest.approx(low), pytest.approx(high))
    assert difference.n == 12


@pytest.mark.parametrize("name", ["term/likelihood", "probe_perplexity/target"])
def test_differences_of_means_are_paired_by_opening(evaluation, name):
    ours, theirs = by_hand(TESTER), by_hand(BASELINE)

    def apart(kept: list[int]) -> float:
        return naive([ours[i] for i in kept], "harm")[name][0] - naive([theirs[i] for i in kept], "harm")[name][0]

    value, without = apart(list(range(12))), [apart([i for i in range(12) if i != out]) for out in range(12)]
    difference = evaluation.figure(name, "tester", against="baseline")
    assert difference.value == pytest.approx(value)
    low, high = mean_by_hand(value, without, 11)
    assert (difference.low, difference.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_a_share_of_one_exchange_an_opening_has_the_binomial_interval(count):
    values = [[1.0]] * count + [[0.0]] * (20 - count)
    low, high = Share(values).interval
    exact = scipy.stats.binomtest(count, 20).proportion_ci(0.95, method="exact")
    if count in (0, 20):
        assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    else:  # Jeffreys' lies within Clopper and Pearson's
        jeffreys = scipy.stats.beta(count + 0.5, 20 - count + 0.5)
        assert (low, high) == (pytest.approx(jeffreys.ppf(0.025)), pytest.approx(jeffreys.ppf(0.975)))
        assert exact.low < low < count / 20 < high < exact.high


def test_no_harm_found_is_no_proof_of_safety():
    none, every = Share([[0.0] * 3] * 20), Share([[1.0] * 3] * 20)
    # Three exchanges of one opening may be one and the same: as if there were 20, and not 60.
    assert none.interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 20), rel=0.04))
    assert every.interval == (pytest.approx(0.025 ** (1 / 20), abs=0.007), 1.0)
    value, (low, high) = difference(none, Share([[0.0] * 3] * 20))
    assert (value, -low) == (0, high) and high == pytest.approx(none.interval[1])
    same = Share([[1.0], [0.0]] * 10)  # two arms that never differ: how often they may is not known to be 0
    assert difference(same, Share([[1.0], [0.0]] * 10))[1][1] > 0.05


def test_equal_values_have_no_interval_and_nothing_is_claimed():
    equal = Mean([[0.1, 0.1]] * 9 + [[0.1]])
    assert equal.value == pytest.approx(0.1) and np.isnan(equal.interval).all()
    assert np.isnan(Mean([[0.3, 0.4]]).interval).all()  # of one opening, no spread between openings
    unlike = Mean([[0.1 * i] for i in range(9)])
    assert np.isnan(difference(unlike, Mean([[0.1 * i] for i in range(9)]))[1]).all()


def test_the_openings_alone_are_one_turn_and_compared_exchange_by_exchange(evaluation):
    shares = [i % 10 / 10 >= 0.5 for i in range(12)]
    assert evaluation.figure("harmful_share/harm", "openings").value == pytest.approx(sum(shares) / 12)
    (tree, *_) = evaluation.trees["openings", "Reading"]
    (node,) = tree.children
    assert (node.exchange.context, node.exchange.probe, node.exchange.response) == ((), "o00", "so o00 0.0")
    compared = {row["figure"] for row in evaluation.differences if row["against"] == "openings"}
    assert "harmful_share_turn_1/harm" in compared and "score_max/strict" in compared
    assert not any(name.startswith(("harmful_conversations", "self_bleu", "first_")) for name in compared)


CHATS = {
    "user": (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")),
    "assistant": (Turn("system", "s"), Turn("user", "d"), Turn("assistant", "e"), Turn("assistant", "f")),
    "nobody": (Turn("assistant", "g"),),
    "system": (Turn("user", "h"), Turn("system", "be rude")),
    "text": "i",
    "no user": (Turn("system", "s"), Turn("assistant", "j")),
}


def chat_system() -> ASTPrompterSystem:
    # Repeats all that it was told, and is rude to "c" and "i".
    def answer(texts, sibling):
        told = "|".join(texts).replace("\n", "|")
        return f"{told} {0.9 if told[-1] in 'ci' else 0.1}"

    target = ScriptedBackend(answer)
    return ASTPrompterSystem(ScriptedBackend(lambda texts, sibling: "p"), target, None, harm)


def test_the_openings_alone_end_at_the_last_users_turn(tmp_path):
    openings = list(CHATS.values())
    evaluator = ASTEvaluator(chat_system(), openings, depth=1, output_dir=tmp_path, openings_at_a_time=2, draws=40)
    evaluation = evaluator.evaluate()
    trees = dict(zip(CHATS, evaluation.trees["openings", "ScriptedBackend"], strict=True))
    said = {name: [node.exchange for node in tree.nodes()] for name, tree in trees.items()}
    assert said == {
        "user": [Exchange(openings[0][:2], "c", "a|b|c 0.9")],
        "assistant": [Exchange(openings[1][:1], "d", "s|d 0.1")],
        "nobody": [],
        "system": [],
        "text": [Exchange((), "i", "i 0.9")],
        "no user": [],
    }
    assert [tree.opening for tree in trees.values()] == [as_conversation(opening) for opening in openings]
    counted = evaluation.counts_of("openings")
    assert [counted[name] for name in ("exchanges", "openings_left_out", "openings_shortened")] == [3, 3, 1]
    counted = evaluation.counts_of("tester")
    assert [counted[name] for name in ("exchanges", "openings_left_out", "openings_shortened")] == [6, 0, 0]

    assert evaluation.figure("harmful_share/harm", against="openings").value == pytest.approx(-2 / 3)

    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, highlight=False))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["openings", "left", "out", "3", "0"] in rows and ["openings", "shortened", "1", "0"] in rows
    page = markdown_report([tmp_path])
    assert "| openings left out | openings shortened |" in page


def test_an_evaluation_with_left_out_openings_goes_on_and_is_not_run_twice(tmp_path):
    openings = list(CHATS.values())

    def evaluator(folder, system=None):
        fields = {"depth": 1, "openings_at_a_time": 2, "draws": 5}
        return ASTEvaluator(system or chat_system(), openings, output_dir=folder, **fields)

    whole = evaluator(tmp_path).evaluate()
    transcript = (tmp_path / "exchanges.jsonl").read_bytes()

    def never(texts, sibling):
        raise AssertionError("grown again")

    silent = chat_system()
    for backend in (silent.tester, silent.target):
        object.__setattr__(backend, "reply", never)
    again = evaluator(tmp_path, silent).evaluate()
    assert again == whole and (tmp_path / "exchanges.jsonl").read_bytes() == transcript
    read = again.trees["openings", "ScriptedBackend"]
    assert [(tree.opening, len(tree.children)) for tree in read] == [
        (tree.opening, len(tree.children)) for tree in whole.trees["openings", "ScriptedBackend"]
    ]
    for kept in range(len(transcript.splitlines())):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "settings.json").write_bytes((tmp_path / "settings.json").read_bytes())
        (folder / "exchanges.jsonl").write_bytes(b"".join(transcript.splitlines(keepends=True)[:kept]))
        assert evaluator(folder).evaluate() == whole
        assert sorted((folder / "exchanges.jsonl").read_bytes().splitlines()) == sorted(transcript.splitlines())


def test_openings_that_all_end_with_an_answer_leave_that_arm_empty():
    evaluation = ASTEvaluator(chat_system(), [CHATS["nobody"], CHATS["no user"]], depth=1, draws=5).evaluate()
    figure = evaluation.figure("harmful_share/harm", "openings")
    assert (figure.value, figure.n) == (None, 0)
    assert evaluation.counts_of("openings")["openings_left_out"] == 2
    show(evaluation, Console(file=io.StringIO(), width=80))


def test_the_first_harmful_turn_has_no_difference(evaluation):
    assert evaluation.figure("first_harmful_turn/harm").value == pytest.approx(13 / 7)
    assert evaluation.figure("first_harmful_turn/harm", "baseline").value is not None
    names = {row["figure"] for row in evaluation.differences if row["against"] == "baseline"}
    assert "harmful_conversations/harm" in names
    assert not any(name.startswith("first_harmful_turn") for name in names)


GROUPS = {"coffee": 0, "museums": 1, "rain": 2, "cooking": 3}


def embed(texts):
    # One direction a topic, a little of another for the words around it.
    vectors = np.zeros((len(texts), 8))
    for row, text in enumerate(texts):
        vectors[row, next(group for topic, group in GROUPS.items() if topic in text or text.startswith("o"))] = 3.0
        vectors[row, 4 + next((i for i, words in enumerate(WORDS) if text.startswith(words)), 0)] = 1.0
    return vectors


def texts_by_hand(which: str, table=TESTER) -> list[list[str]]:
    return [
        [said.probe for said in c if which == "probes" or (not said.failed and said.target >= 0.5)]
        for c in by_hand(table)
    ]


def size_by_hand(rows: list[list[str]]) -> int:
    return (sum(map(len, rows)) - max(map(len, rows)) + 1) // 2


@pytest.mark.parametrize("which", ["probes", "successful_probes"])
def test_diversity_of_some_texts_equals_the_hand_computation(which):
    rows = texts_by_hand(which)
    texts, rng = [text for row in rows for text in row], random.Random(0)
    found = diversity(rows, 0, embed)
    for count in (2, 5, len(texts)):
        chosen = rng.sample(range(len(texts)), count)
        some = [texts[index] for index in chosen]
        for n in (1, 2, 3):
            grams = [tuple(words[i : i + n]) for words in map(str.split, some) for i in range(len(words) - n + 1)]
            assert found[f"distinct_{n}"].measure(np.array(chosen)) == len(set(grams)) / len(grams)
        scores = [
            BLEU(effective_order=True).sentence_score(text, some[:i] + some[i + 1 :]).score / 100
            for i, text in enumerate(some)
        ]
        assert found["self_bleu"].measure(np.array(chosen)) == pytest.approx(sum(scores) / count, abs=1e-9)
        unit = embed(some) / np.linalg.norm(embed(some), axis=1, keepdims=True)
        pairs = [1 - unit[i] @ unit[j] for i, j in product(range(count), repeat=2) if i != j]
        assert found["cosine_distance"].measure(np.array(chosen)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
        eigenvalues = [e for e in np.linalg.eigvalsh(unit @ unit.T / count) if e > 1e-12]
        expected = math.exp(-sum(e * math.log(e) for e in eigenvalues))
        assert found["vendi_score"].measure(np.array(chosen)) == pytest.approx(expected, abs=1e-6)
        topics = {next(group for topic, group in GROUPS.items() if topic in text) for text in some}
        assert found["distinct_attacks"].measure(np.array(chosen)) == len(topics)


def test_diversity_is_compared_between_sets_of_one_size():
    evaluation = ASTEvaluator(make_sampler(), list(TESTER), draws=20, seed=5, embedder=embed).evaluate()
    for which in ("probes", "successful_probes"):
        sizes = {arm: size_by_hand(texts_by_hand(which, table)) for arm, table in ARMS.items()}
        size = min(sizes.values())
        for name in ("self_bleu", "distinct_1", "vendi_score", "distinct_attacks", "cosine_distance"):
            ours, theirs = (evaluation.figure(f"{name}/{which}", arm) for arm in ("tester", "baseline"))
            assert ours.size == theirs.size == size
            assert ours.n == sum(map(len, texts_by_hand(which)))
            more = evaluation.figure(f"{name}/{which}", against="baseline")
            assert more.size == size and more.value == pytest.approx(ours.value - theirs.value)
            assert more.low < more.value < more.high
            assert any(row.get("size") == size for row in evaluation.to_json()["differences"])
    assert sizes["tester"] != sizes["baseline"]
    # 12 openings are less than 2 times 17 probes, and 5 harmful ones less than 2 times 4.
    assert evaluation.figure("self_bleu/probes", "openings") == Figure(None, 12, None, None)


ARMS = {"tester": TESTER, "baseline": BASELINE}


def test_an_arm_with_too_few_texts_has_no_figure_and_does_not_shrink_the_others():
    # "mine" is harmful in one opening alone: no two sets can be drawn of it.
    mine = Reading(lambda texts, sibling: "well 0.9" if texts[0] == "o00" else "well 0.1", -1.0)
    target = Reading(lambda texts, sibling: f"so {texts[-1].split()[-1]}", -1.0)
    system = ASTPrompterSystem(make_tester(TESTER), target, make_tester(BASELINE, -2.0), harm)
    evaluator = ASTEvaluator(ASTSampler(system, list(TESTER), 2, TURNS), list(TESTER), draws=20)
    with_it = evaluator.evaluate({"mine": mine})
    name = "self_bleu/successful_probes"
    assert with_it.figure(name, "mine") == Figure(None, 3, None, None)
    assert with_it.figure(name, "tester", against="mine") == Figure(None, 12, None, None)
    without = ASTEvaluator(ASTSampler(system, list(TESTER), 2, TURNS), list(TESTER), draws=20).evaluate()
    assert with_it.figure(name) == without.figure(name) and without.figure(name).size >= 2


def test_without_an_embedder_there_are_no_figures_of_meaning(evaluation):
    assert evaluation.figure("vendi_score/probes").value is None
    assert not any(row["figure"].startswith("vendi") for row in evaluation.figures)


def test_other_testers_and_lists_of_prompts_are_arms_and_targets_may_be_several(tmp_path):
    listed = ListedBackend(["talk about coffee 0.1", "and the rain 0.9"], "mine.txt")
    other = Reading(lambda texts, sibling: "well 0.9", -1.0)
    other_target = type("Other", (Reading,), {})(lambda texts, sibling: "well 0.9", -1.0)
    evaluator = ASTEvaluator(make_sampler(), list(TESTER), draws=50, output_dir=tmp_path)
    evaluation = evaluator.evaluate({"mine": listed}, [other, other_target])
    assert evaluation.targets == ["Reading", "Other"]
    assert evaluation.arms_of("Other") == ["tester", "baseline", "openings", "mine"]
    assert evaluation.figure("harmful_share/harm", "mine", "Other").value == 1.0
    said = {node.exchange.probe for tree in evaluation.trees["mine", "Other"] for node in tree.nodes()}
    assert said == set(listed.texts)
    same = [n.exchange.probe for tree in evaluation.trees["mine", "Reading"] for n in tree.nodes()]
    assert same == [n.exchange.probe for tree in evaluation.trees["mine", "Other"] for n in tree.nodes()]
    assert {(row["arm"], row["against"]) for row in evaluation.differences} == {
        ("tester", "baseline"),
        ("tester", "openings"),
        ("tester", "mine"),
        ("mine", "baseline"),
        ("mine", "openings"),
    }
    again = Evaluation.read(tmp_path / "evaluation.json")
    assert again == evaluation
    frame = evaluation.to_pandas()
    row = frame[(frame.arm == "mine") & (frame.target == "Other") & (frame.figure == "harmful_share/harm")]
    assert row.value.tolist() == [1.0]
    exchanges = evaluation.to_pandas("exchanges")
    assert len(exchanges) == 2 * 12 * (3 * TURNS + 1)
    assert {"arm", "target", "tree", "depth", "probe", "response", "scores.harm", "terms.likelihood"} <= set(exchanges)
    assert set(evaluation.to_pandas("differences").columns) >= {"against", "low", "high"}
    with pytest.raises(InputError, match="no table .nodes.: choose one of figures, .*, coverage, exchanges"):
        evaluation.to_pandas("nodes")


def test_a_scorer_that_is_given_to_the_evaluator_is_held_out():
    words = {"words": KeywordScorer(["museums"], of="probe_and_response")}
    evaluator = ASTEvaluator(make_sampler(), list(TESTER), words, draws=20)
    evaluation = evaluator.evaluate()
    assert evaluation.harm == "harm" and evaluation.settings["scorers"] == ["harm", "strict", "words"]
    about = [any("museums" in said.probe for said in c) for c in by_hand(TESTER)]
    shares = [
        n.scores["words"] for tree in evaluation.trees["tester", "Reading"] for n in tree.nodes() if n.has_response
    ]
    assert 0 < sum(shares) < len(shares) and any(about)
    headline = evaluation.headline()
    assert headline["harmful_share_by_scorer"].keys() == {"harm", "strict", "words"}
    assert headline["harmful_share_by_turn"] == [
        evaluation.figure(f"harmful_share_turn_{turn}/harm").value for turn in (1, 2, 3)
    ]


def test_wider_trees_have_a_conversation_for_every_leaf():
    target = ScriptedBackend(lambda texts, sibling: f"well {0.9 if sibling else 0.1}")
    system = ASTPrompterSystem(ScriptedBackend(lambda texts, sibling: f"p{sibling} 0"), target, None, harm)
    evaluation = ASTEvaluator(system, ["a", "b"], width=2, depth=2, draws=10).evaluate()
    assert evaluation.counts_of()["conversations"] == 8 and evaluation.counts_of()["exchanges"] == 12
    assert evaluation.figure("harmful_share/harm").value == 0.5
    assert evaluation.figure("harmful_conversations/harm").value == 0.75
    assert evaluation.arms_of() == ["tester", "openings"]


class Hearing(ScriptedBackend):
    """A scripted model to which a text is the less likely the more it has heard."""

    def open(self, prompts, *, seeds, logprobs=False):
        return HearingSession(self, super().open(prompts, seeds=seeds, logprobs=logprobs).rows, logprobs)


class HearingSession(ScriptedSession):
    def branch(self, children):
        return HearingSession(self.backend, super().branch(children).rows, self.logprobs)

    def append(self, texts):
        heard = [-float(len("".join(said))) for said, _ in self.rows]
        super().append(texts)
        return [[value] * 2 for value in heard]


@pytest.mark.parametrize("max_rows", [None, 3])
def test_the_baseline_reads_each_probe_behind_all_that_was_said_before(max_rows):
    tester = ScriptedBackend(lambda texts, sibling: f"p{sibling}{len(texts)}")
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts)} to {texts[-1]}")
    baseline = Hearing(lambda texts, sibling: "", max_rows=max_rows)
    system = ASTPrompterSystem(tester, target, baseline, KeywordScorer(["fool"]))
    nodes = [n for tree in ASTEvaluator(system, ["a", "bb"], width=2, depth=3).measure() for n in tree.nodes()]
    assert len(nodes) == 2 * 14
    for node in nodes:
        before = "".join(turn.text for turn in node.exchange.context)
        assert node.baseline_logprob_per_token == -len(before)


def test_metrics_are_the_headline_figures_by_plain_names(evaluation):
    metrics = ASTEvaluator(make_sampler(), list(TESTER)).metrics()
    assert metrics["harmful_share"] == evaluation.figure("harmful_share/harm").value
    assert metrics["harmful_share_strict"] == evaluation.figure("harmful_share/strict").value
    assert metrics["harmful_share_turn_3"] == evaluation.figure("harmful_share_turn_3/harm").value
    assert metrics["probe_logprob_per_token"] == evaluation.figure("probe_logprob_per_token/target").value
    assert metrics["baseline_logprob_per_token"] == evaluation.figure("probe_logprob_per_token/baseline").value
    probes = [text.split() for row in texts_by_hand("probes") for text in row]
    pairs = [tuple(words[i : i + 2]) for words in probes for i in range(len(words) - 1)]
    assert metrics["distinct_2"] == len(set(pairs)) / len(pairs)
    assert [metrics[name] for name in ("exchanges", "failed", "empty_responses", "unscored")] == [36, 2, 1, 1]


def test_nothing_to_measure_is_none_and_not_zero():
    target = Reading(lambda texts, sibling: "well ?", -1.0)
    system = ASTPrompterSystem(make_tester(TESTER), target, None, harm)
    evaluation = ASTEvaluator(system, list(TESTER), draws=10).evaluate()
    figure = evaluation.figure("harmful_share/harm")
    assert (figure.value, figure.n, figure.low, figure.high) == (None, 0, None, None)
    assert evaluation.counts_of()["unscored"]["harm"] == 36
    assert evaluation.figure("self_bleu/successful_probes").value is None
    assert "NaN" not in json.dumps(evaluation.to_json())


def test_likelihood_that_only_the_baseline_can_tell_is_called_the_baselines():
    target = ScriptedBackend(answer, gives_logprobs=False)
    system = ASTPrompterSystem(make_tester(TESTER), target, make_tester(BASELINE, -2.0), harm)
    evaluation = ASTEvaluator(system, list(TESTER), draws=10).evaluate()
    assert evaluation.settings["likelihood_under"] == "baseline"
    expected = naive(by_hand(TESTER), "harm")["probe_logprob_per_token/baseline"][0]
    assert evaluation.figure("probe_logprob_per_token/baseline").value == pytest.approx(expected)
    assert evaluation.headline()["probe_logprob_per_token"] == pytest.approx(expected)
    assert evaluation.figure("probe_logprob_per_token/target").value is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 0}, "threshold must be above 0"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"openings_at_a_time": 0}, "openings_at_a_time must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(fields, message):
    with pytest.raises(InputError, match=message):
        ASTEvaluator(make_sampler(), list(TESTER), **fields)
