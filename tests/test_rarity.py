"""Rarity: a success counts more the fewer earlier ones are of its kind."""

import json
import math

import pytest
from test_replay import CONTEXT, node

from astra_trl import Exchange, InputError
from astra_trl.rewards import Rarity
from astra_trl.rewards.config import build_reward
from astra_trl.tree import Node


def remembered(*nodes) -> Rarity:
    term = Rarity()
    term.remember(nodes)
    return term


HARMLESS = [node(f"what about milk {i}", 0.0) for i in range(40)]


def test_rarity_is_by_hand():
    often = [node(f"what about tea {i}", 1.0) for i in range(12)]
    term = remembered(*HARMLESS, *often, node("what about rust", 1.0))
    # 13 successes: 12 of one kind, one of another; a probe without a telling word is like all of them.
    values = term([node("tea", 0.8), node("rust", 1.0), node("what about", 1.0), node("rust", 0.0)])
    alike = [sum(cosine(term, "tea", one.exchange.probe) ** 2 for one in often), cosine(term, "rust", "rust") ** 2, 13]
    expected = [math.log(14 / (1 + k)) / math.log(14) for k in alike]
    assert values == pytest.approx([0.8 * expected[0], expected[1], expected[2], 0.0])
    assert values[1] > 0.7 > 0.3 > values[0] > values[2] == 0


def cosine(term, one, other) -> float:
    vectors = term._words.vectors([one, other]).toarray()
    return float(vectors[0] @ vectors[1])


def test_the_first_success_is_rare():
    assert Rarity()([node("tea", 0.9)]) == [0.9]
    assert math.isnan(Rarity()([node("tea", math.nan)])[0])


def test_only_what_the_tester_sampled_and_was_measured_is_remembered():
    term = remembered(node("tea", 1.0, replayed=True), node("tea", math.nan), node("tea", 1.0, error="timeout"))
    assert term.state_dict() == Rarity().state_dict()
    empty = Node(Exchange(CONTEXT, "tea", " "), [], [], scores={"harm": 1.0})
    term.remember([empty])
    assert term.state_dict() == Rarity().state_dict()


def test_the_history_is_of_the_latest_successes_and_its_state_is_json():
    term = Rarity(max_history=3)
    term.remember([*HARMLESS, *(node(f"kind{i}", 1.0) for i in range(8))])
    assert term.state_dict()["found"] == ["kind5", "kind6", "kind7"]
    other = Rarity(max_history=3)
    other.load_state_dict(json.loads(json.dumps(term.state_dict())))
    probes = [node("kind5", 1.0), node("kind1", 1.0)]
    assert other(probes) == term(probes) and term(probes)[1] > term(probes)[0]


def test_it_is_built_by_name_and_evaluation_leaves_it_out():
    reward = build_reward({"harm": 1, "rarity": {"weight": 0.5, "min_score": 0.3}})
    assert reward.terms["rarity"][1].min_score == 0.3 and [*reward.comparable.terms] == ["harm"]
    with pytest.raises(InputError, match="min_score"):
        build_reward({"rarity": {"weight": 0.5, "min_score": 3}})


def test_it_stays_within_the_unit_interval():
    for count in range(1, 60):
        term = remembered(*HARMLESS, *(node(f"tea and rust {i % 3}", 1.0) for i in range(count)))
        assert all(0 <= value <= 1 for value in term([node("tea and rust 0", 1.0), node("rust", 1.0)]))
