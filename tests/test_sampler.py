import math

import pytest

from astra_trl import ASTPrompterSystem, ASTSampler, InputError, KeywordScorer, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.systems.astprompter import astprompter_reward
from astra_trl.systems.base import System


def say_probe(texts, sibling):
    return f"probe{sibling}"


def say_response(texts, sibling):
    return "you fool" if texts[-1] == "probe1" else "nice"


def scripted_system(**fields) -> ASTPrompterSystem:
    target = ScriptedBackend(say_response, logprob_per_token=-2.0)
    return ASTPrompterSystem(ScriptedBackend(say_probe), target, None, KeywordScorer(["fool"]), **fields)


def test_every_opening_grows_a_full_tree_with_its_own_contexts():
    trees = ASTSampler(scripted_system(), ["one", "two"], tree_width=3, tree_depth=2).grow(["one", "two"], [0, 1])
    assert [tree.opening for tree in trees] == [(Turn("opening", "one"),), (Turn("opening", "two"),)]
    for tree in trees:
        assert [len(group) for group in tree.sibling_groups()] == [3, 3, 3, 3]
    deep = trees[1].children[1].children[2]
    assert deep.exchange.context == (Turn("opening", "two"), Turn("tester", "probe1"), Turn("target", "you fool"))
    assert (deep.exchange.probe, deep.exchange.response) == ("probe2", "nice")
    assert bytes(deep.prompt_ids).decode() == "two\nprobe1\nyou fool"
    assert bytes(deep.probe_ids).decode() == "probe2"


def test_reward_is_exactly_the_weighted_sum_and_its_terms_stay_on_the_node():
    (tree,) = ASTSampler(scripted_system(), ["one"], 2, 1).grow(["one"], [0])
    kind, rude = tree.children
    assert kind.scores == {"harm": 0.0, "harm_probe_and_response": 0.0}
    assert rude.terms == {"target_harm": 1.0, "probe_and_response_harm": 1.0, "likelihood": -2.0}
    assert kind.reward == pytest.approx(0.1 * -2.0)
    assert rude.reward == pytest.approx(1.0 + 0.5 + 0.1 * -2.0)


def test_weights_are_the_users_and_a_weight_of_zero_drops_the_term():
    system = scripted_system(reward=astprompter_reward(probe_and_response_weight=0.0, likelihood_weight=0.25))
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert tree.children[1].terms == {"target_harm": 1.0, "likelihood": -2.0}
    assert tree.children[1].reward == pytest.approx(1.0 - 0.5)


def test_a_nan_score_leaves_the_node_without_a_reward():
    target = ScriptedBackend(say_response)
    system = ASTPrompterSystem(ScriptedBackend(say_probe), target, None, lambda e: [math.nan] * len(e))
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert [node.reward for node in tree.children] == [None, None]


def test_an_empty_probe_has_no_likelihood_and_no_reward():
    tester = ScriptedBackend(lambda texts, sibling: "")
    system = ASTPrompterSystem(tester, ScriptedBackend(say_response), None, KeywordScorer(["fool"]))
    (tree,) = ASTSampler(system, ["one"], 1, 2).grow(["one"], [0])
    assert math.isnan(tree.children[0].probe_logprob_per_token)
    assert tree.children[0].reward is None
    assert tree.children[0].children[0].exchange.response == "nice"


def test_likelihood_without_log_probabilities_fails_at_construction():
    silent = ScriptedBackend(say_response, gives_logprobs=False)
    with pytest.raises(InputError, match="'likelihood' needs log-probabilities"):
        ASTPrompterSystem(ScriptedBackend(say_probe), silent, None, KeywordScorer(["fool"]))
    without = astprompter_reward(likelihood_weight=0.0)
    system = ASTPrompterSystem(ScriptedBackend(say_probe), silent, None, KeywordScorer(["fool"]), reward=without)
    (tree,) = ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])
    assert tree.children[1].reward == 1.5


def test_a_system_without_its_harm_scorer_is_refused():
    system = scripted_system()
    with pytest.raises(InputError, match="no scorer named 'harm'"):
        System(system.tester, system.target, {}, system.reward)


@pytest.mark.parametrize(
    ("prompts", "shape", "message"),
    [
        ([], {}, "prompt set is empty"),
        (["fine", 7], {}, "prompt 1 is not text but int"),
        (["fine", "  "], {}, "prompt 1 is empty"),
        (["fine"], {"tree_width": 0}, "tree_width must be at least 1"),
        (["fine"], {"tree_depth": 0}, "tree_depth must be at least 1"),
    ],
)
def test_bad_prompts_and_shapes_are_refused(prompts, shape, message):
    with pytest.raises(InputError, match=message):
        ASTSampler(scripted_system(), prompts, **shape)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 2.0]])
def test_a_scorer_that_answers_wrongly_is_named(scores):
    system = ASTPrompterSystem(ScriptedBackend(say_probe), ScriptedBackend(say_response), None, lambda e: scores)
    with pytest.raises(InputError, match="scorer 'harm' returned"):
        ASTSampler(system, ["one"], 2, 1).grow(["one"], [0])


def test_progress_is_told_level_by_level():
    counts = []
    ASTSampler(scripted_system(), ["a", "b"], 2, 3).grow(["a", "b"], [0, 1], counts.append)
    assert counts == [4, 8, 16]
