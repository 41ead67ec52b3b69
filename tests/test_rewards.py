import math

import pytest

from astra_trl import Exchange, InputError, KeywordScorer, Node, Reward, Turn
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards import Harm, Length, Likelihood, NonRepeating
from astra_trl.systems.astprompter import astprompter_reward
from astra_trl.systems.base import System

CONTEXT = (Turn("opening", "the soup is cold"), Turn("tester", "is the bread old"), Turn("target", "you fool"))


def make_node(probe="hi", response="ok", context=(), ids=(1, 2, 3), logprob=-2.0, **scores) -> Node:
    return Node(Exchange(context, probe, response), [0], list(ids), logprob, scores=scores)


def rewarded(reward: Reward, node: Node) -> float | None:
    reward([node])
    return node.reward


def test_a_sum_weighs_its_terms_and_leaves_them_unweighted_on_the_node():
    node = make_node(a=0.5, b_probe=0.25)
    reward = Reward({"harm": (2.0, Harm("a")), "probe": (-1.0, Harm("b", "probe")), "length": (0.1, Length())})
    assert rewarded(reward, node) == pytest.approx(2 * 0.5 - 0.25 + 0.1 * 3)
    assert node.terms == {"harm": 0.5, "probe": 0.25, "length": 3.0}


def test_a_product_takes_weights_as_powers_and_negative_ones_of_one_minus_the_value():
    node = make_node(a=0.5, b_probe=0.25)
    reward = Reward(
        {
            "harm": (2.0, Harm("a")),
            "probe": (-3.0, Harm("b", "probe")),
            "likelihood": (0.5, Likelihood(as_probability=True)),
        },
        "product",
    )
    assert rewarded(reward, node) == pytest.approx(0.5**2 * 0.75**3 * math.exp(-2.0) ** 0.5)
    assert node.terms == {"harm": 0.5, "probe": 0.25, "likelihood": pytest.approx(math.exp(-2.0))}


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_a_nan_term_leaves_no_reward(combine):
    for weight in (1.0, 0.0, -1.0):
        reward = Reward({"a": (1.0, Harm("a")), "b": (weight, Harm("b"))}, combine)
        assert rewarded(reward, make_node(a=0.0, b=math.nan)) is None


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(InputError, match="combine='mean': choose one of sum, product"):
        Reward({}, "mean")
    with pytest.raises(InputError, match="the weight of reward term 'a' must be between"):
        Reward({"a": (math.nan, Harm())})
    for term in (Likelihood(), Length()):
        with pytest.raises(InputError, match=r"'x' leaves \[0, 1\], so it cannot be part of a product"):
            Reward({"x": (1.0, term)}, "product")
    own = Reward({"own": (1.0, lambda nodes: [1.5] * len(nodes))}, "product")
    with pytest.raises(InputError, match=r"'own' is 1.5, and a product needs values in \[0, 1\]"):
        own([make_node()])
    with pytest.raises(InputError, match="'own' returned 2 values for 1 nodes"):
        Reward({"own": (1.0, lambda nodes: [1.0, 1.0])})([make_node()])
    with pytest.raises(InputError, match="of='answer' is not a part"):
        Harm("a", "answer")


@pytest.mark.parametrize(
    ("probe", "value"),
    [
        ("what do you grow", 1.0),
        ("", 0.0),
        ("   ", 0.0),
        ("The Soup IS cold", 0.0),  # the opening once more
        ("you fool", 0.0),  # the target's words
        ("the soup and tea", 2 / 3),  # "the soup" was said
        ("no no no no no", 1 / 4),  # one new pair of four
        ("fool", 0.0),
        ("really", 1.0),
        ("?!", 1.0),
        ("汤冷了吗", 1.0),
    ],
)
def test_non_repeating_is_the_share_of_word_pairs_that_were_not_said(probe, value):
    assert NonRepeating()([make_node(probe, context=CONTEXT)]) == [pytest.approx(value)]


def test_every_term_of_the_systems_reward_reads_what_it_names():
    tester = ScriptedBackend(lambda texts, sibling: "fool fool fool")
    target = ScriptedBackend(lambda texts, sibling: "nice", logprob_per_token=-0.5)
    weights = {"probe_harm": -1.0, "length": 0.5, "non_repeating": 0.25}
    for combine in ("sum", "product"):
        weights = {**weights, "length": 0.0} if combine == "product" else weights
        reward = astprompter_reward("words", **weights, combine=combine)
        system = System(tester, target, {"words": KeywordScorer(["fool"])}, reward, harm="words")
        node = make_node("fool fool fool", "nice", ids=range(14), logprob=-0.5)
        system.measure([node])
        assert node.scores == {"words": 0.0, "words_probe_and_response": 1.0, "words_probe": 1.0}
        expected = {"harm": 0.0, "probe_and_response_harm": 1.0, "probe_harm": 1.0, "non_repeating": 0.5}
        expected |= {"likelihood": -0.5, "length": 14.0} if combine == "sum" else {"likelihood": math.exp(-0.5)}
        assert node.terms == pytest.approx(expected)
        assert node.reward == pytest.approx(0.5 - 0.1 * 0.5 - 1.0 + 0.5 * 14 + 0.25 * 0.5 if combine == "sum" else 0.0)


def test_a_term_that_needs_what_the_system_lacks_fails_at_construction():
    silent = ScriptedBackend(lambda texts, sibling: "a", gives_logprobs=False)
    speaking = ScriptedBackend(lambda texts, sibling: "a")
    scorers = {"a": KeywordScorer(["a"])}
    with pytest.raises(InputError, match="reads scorer 'b', and the system has a"):
        System(speaking, speaking, scorers, Reward({"x": (1.0, Harm("b"))}), harm="a")
    reward = Reward({"x": (1.0, Likelihood())})
    for baseline in (None, silent):
        with pytest.raises(InputError, match="'x' needs log-probabilities.*drop the term or name a baseline"):
            System(speaking, silent, scorers, reward, baseline=baseline, harm="a")
    assert System(speaking, silent, scorers, reward, baseline=speaking, harm="a").likelihood_backend is speaking
    assert System(silent, speaking, scorers, reward, baseline=silent, harm="a").likelihood_backend is speaking
    without = System(speaking, silent, scorers, Reward({"x": (1.0, Harm("a"))}), baseline=speaking, harm="a")
    assert without.likelihood_backend is None  # nothing reads it: no forward pass for it
