import math

import pytest

from astra_trl import Exchange, InputError, Node, Reward
from astra_trl.rewards.entropy import Entropy


def node(*logprobs: float) -> Node:
    return Node(Exchange((), "a probe", "a response"), [0], [1, 2], -7.0, sampling_logprobs=list(logprobs))


def test_entropy_is_minus_the_mean_log_probability_per_token_as_sampled():
    assert Entropy()([node(-1.0, -2.0, -6.0), node(-0.5), node(0.0, 0.0)]) == pytest.approx([3.0, 0.5, 0.0])
    assert Entropy()([]) == []


def test_over_samples_it_is_the_testers_entropy():
    probabilities = [0.5, 0.25, 0.125, 0.125]
    drawn = [node(math.log(p)) for p in probabilities for _ in range(round(8 * p))]
    assert sum(Entropy()(drawn)) / 8 == pytest.approx(1.75 * math.log(2))


def test_without_sampled_log_probabilities_there_is_no_reward():
    known, unknown = node(-2.0, -4.0), node()
    assert math.isnan(Entropy()([unknown])[0])
    Reward({"entropy": (0.1, Entropy())})([known, unknown])
    assert (known.reward, unknown.reward) == (pytest.approx(0.3), None)


def test_it_says_what_it_needs_and_that_it_leaves_the_unit_interval():
    assert Entropy.needs_sampling_logprobs is True
    with pytest.raises(InputError, match=r"'entropy' leaves \[0, 1\]"):
        Reward({"entropy": (1.0, Entropy())}, "product")
