import math

import pytest

from astra_trl import ASTPrompterSystem, ASTSampler, Exchange, InputError, KeywordScorer, Node, Tree, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.collector import collect_trees, fill_round, preference_pair, preference_records

OPENING = (Turn("opening", "hi"),)


def make_node(probe: str, reward: float | None, context=OPENING) -> Node:
    return Node(Exchange(context, probe, "ok"), [1, 2], list(probe.encode()), reward=reward)


def test_a_pair_is_best_against_worst():
    siblings = [make_node("b", 0.5), make_node("a", -1.0), make_node("d", 2.0), make_node("c", 0.0)]
    assert preference_pair(siblings) == (siblings[2], siblings[1])


@pytest.mark.parametrize(
    ("siblings", "min_margin"),
    [
        ([("a", 1.0), ("b", 1.0)], 0.0),  # equal reward
        ([("a", 1.0), ("a", 2.0)], 0.0),  # equal text
        ([("a", 1.0), ("b", 1.5)], 0.5),  # not more than the margin
        ([("a", 1.0), ("b", None)], 0.0),  # one could not be scored
        ([("a", None), ("b", None)], 0.0),
    ],
)
def test_ties_equal_texts_and_unscored_siblings_are_no_pairs(siblings, min_margin):
    assert preference_pair([make_node(*sibling) for sibling in siblings], min_margin) is None


def test_an_unscored_sibling_is_left_out_of_the_pair_of_the_others():
    siblings = [make_node("a", None), make_node("b", 1.0), make_node("c", 0.0)]
    assert preference_pair(siblings) == (siblings[1], siblings[2])


def test_records_hold_the_ids_as_sampled_and_say_where_they_are_from():
    first, second = make_node("a", 1.0), make_node("b", 0.0)
    context = first.exchange.conversation
    first.children = [make_node("c", 0.25, context), make_node("d", 0.75, context)]
    tie = Tree(OPENING, [make_node("x", 1.0), make_node("y", 1.0)])
    records = preference_records([tie, Tree(OPENING, [first, second])])
    assert [(r["tree"], r["depth"], r["chosen"], r["rejected"]) for r in records] == [
        (1, 0, "a", "b"),
        (1, 1, "d", "c"),
    ]
    assert records[1] == {
        "tree": 1,
        "depth": 1,
        "prompt": "hi\na\nok",
        "chosen": "d",
        "rejected": "c",
        "chosen_reward": 0.75,
        "rejected_reward": 0.25,
        "prompt_ids": [1, 2],
        "chosen_ids": [100],
        "rejected_ids": [99],
    }


def rude_on_b_system() -> ASTPrompterSystem:
    # Only openings with a "b" make a pair: there the second sibling meets a rude answer.
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling}")
    target = ScriptedBackend(
        lambda t, s: "fool" if t[-1] == "probe1" and "b" in t[0] else "nice", logprob_per_token=-1.0
    )
    return ASTPrompterSystem(tester, target, None, KeywordScorer(["fool"]))


def test_more_trees_are_grown_until_the_round_is_full():
    sampler = ASTSampler(rude_on_b_system(), ["a1", "a2", "a3", "b1"], tree_width=2, tree_depth=1)
    trees, _ = collect_trees(sampler, pairs=3, trees_at_a_time=2, max_trees=100, min_margin=0.0, seed=3)
    assert len(preference_records(trees)) >= 3
    assert len(trees) > 3
    assert len(preference_records(trees[:-2])) < 3  # and no more than needed


def test_collecting_stops_at_max_trees():
    sampler = ASTSampler(rude_on_b_system(), ["a1", "a2"], tree_width=2, tree_depth=1)
    trees, _ = collect_trees(sampler, pairs=3, trees_at_a_time=2, max_trees=5, min_margin=0.0, seed=0)
    assert len(trees) == 5


def test_the_same_seed_draws_the_same_openings_and_another_does_not():
    sampler = ASTSampler(rude_on_b_system(), [f"b{i}" for i in range(50)], tree_width=2, tree_depth=1)
    drawn = [
        [
            tree.opening
            for tree in collect_trees(sampler, pairs=8, trees_at_a_time=8, max_trees=8, min_margin=0, seed=s)[0]
        ]
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 8  # without repetition while the set lasts


@pytest.mark.parametrize(("found", "wanted"), [(10, 4), (4, 4), (3, 4), (3, 10), (1, 5)])
def test_a_round_is_cut_or_topped_up_to_its_size(found, wanted):
    records = [{"id": i} for i in range(found)]
    filled = fill_round(records, wanted, seed=0, trees=[])
    assert len(filled) == wanted
    counts = [sum(record["id"] == i for record in filled) for i in range(found)]
    assert max(counts) - min(counts) <= 1  # no pair stands in it twice before each stands in it once


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0.25, 0.25], "2 trees with 4 exchanges hold no pair .* all rewards tie at 0.25"),
        ([None, None], "no exchange has a reward"),
        ([1.0, None], "all rewards tie at 1"),
    ],
)
def test_a_round_without_any_pair_says_why(rewards, message):
    trees = [Tree(OPENING, [make_node("a", rewards[0]), make_node("b", rewards[1])]) for _ in range(2)]
    with pytest.raises(InputError, match=message):
        fill_round(preference_records(trees), 4, 0, trees)


def test_equal_texts_everywhere_are_told_from_equal_rewards():
    trees = [Tree(OPENING, [make_node("a", 0.0), make_node("a", 1.0)])]
    with pytest.raises(InputError, match="tie or say the same: raise the temperature"):
        fill_round([], 4, 0, trees)


def test_nan_terms_count_as_unscored():
    target = ScriptedBackend(lambda texts, sibling: "nice")
    system = ASTPrompterSystem(ScriptedBackend(lambda t, s: f"p{s}"), target, None, lambda e: [math.nan] * len(e))
    trees = ASTSampler(system, ["a"], 2, 1).grow(["a"], [0])
    with pytest.raises(InputError, match="a reward term is nan"):
        fill_round(preference_records(trees), 1, 0, trees)
