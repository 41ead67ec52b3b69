import pytest

from astra_trl import ASTPrompterSystem, ASTSampler, InputError, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.rollout.collector import Draws, collect_trees, fill_round
from astra_trl.rollout.records import preference_records
from astra_trl.trainers.ppo.contexts import collect_contexts


def rude_on_b_system() -> ASTPrompterSystem:
    # Only openings with a "b" make a pair: there the second sibling meets a rude answer.
    tester = ScriptedBackend(lambda texts, sibling: f"probe{sibling}")
    target = ScriptedBackend(
        lambda t, s: "fool" if t[-1] == "probe1" and "b" in t[0] else "nice", logprob_per_token=-1.0
    )
    return ASTPrompterSystem(tester, target, None, KeywordScorer(["fool"]))


def test_more_trees_are_grown_until_the_round_is_full():
    sampler = ASTSampler(rude_on_b_system(), ["a1", "a2", "a3", "b1"], tree_width=2, tree_depth=1)
    trees, _ = collect_trees(sampler, Draws(3, trees_at_a_time=2, max_trees=100), 3, preference_records)
    assert len(preference_records(trees)) >= 3
    assert len(trees) > 3
    assert len(preference_records(trees[:-2])) < 3  # and no more than needed


def test_collecting_stops_at_max_trees():
    sampler = ASTSampler(rude_on_b_system(), ["a1", "a2"], tree_width=2, tree_depth=1)
    trees, _ = collect_trees(sampler, Draws(0, trees_at_a_time=2, max_trees=5), 3, preference_records)
    assert len(trees) == 5


def test_the_same_seed_draws_the_same_openings_and_another_does_not():
    sampler = ASTSampler(rude_on_b_system(), [f"b{i}" for i in range(50)], tree_width=2, tree_depth=1)
    drawn = [
        [tree.opening for tree in collect_trees(sampler, Draws(s, 8, 8), 8, preference_records)[0]] for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 8  # without repetition while the set lasts


@pytest.mark.parametrize(("found", "wanted"), [(10, 4), (4, 4), (3, 4), (3, 10), (1, 5)])
def test_a_round_is_cut_or_topped_up_to_its_size(found, wanted):
    records = [{"id": i} for i in range(found)]
    filled = fill_round(records, wanted, seed=0, reason="")
    assert len(filled) == wanted
    counts = [sum(record["id"] == i for record in filled) for i in range(found)]
    assert max(counts) - min(counts) <= 1  # no pair stands in it twice before each stands in it once


def test_a_round_without_any_record_says_why():
    with pytest.raises(InputError, match="because"):
        fill_round([], 4, 0, "because")


def test_contexts_are_the_openings_and_what_follows_all_but_the_last_turn():
    sampler = ASTSampler(rude_on_b_system(), ["b1", "b2", "b3"], tree_width=2, tree_depth=3)
    contexts = collect_contexts(sampler, Draws(0, trees_at_a_time=1, max_trees=9), size=8)
    assert len(contexts) == 14  # two trees of 1 + 2 + 4
    assert [context.path for context in contexts[:7]] == [(), (0,), (0, 0), (0, 1), (1,), (1, 0), (1, 1)]
    assert [context.tree for context in contexts] == [0] * 7 + [1] * 7
    last = contexts[6]
    assert [turn.text for turn in last.conversation][1:] == ["probe1", "fool", "probe1", "fool"]
    assert bytes(last.tester.prompt_ids).decode() == "\n".join(turn.text for turn in last.conversation)
