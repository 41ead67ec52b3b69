"""Intervals where openings are very unequal, and figures that have ends; `test_evaluation.py` compares with a
computation by hand, `benchmarks.coverage` measures the coverage of every figure."""

import math

import numpy as np
import pytest

from astra_trl.evaluation.diversity import diversity
from astra_trl.evaluation.resampling import Mean, Quantile, Share, Statistic, difference


def exp_of_minus(value):
    return np.exp(-value)


def test_one_opening_with_most_exchanges_is_not_taken_for_many():
    rng, sizes, inside = np.random.default_rng(0), [40] + [1] * 19, 0
    for _ in range(400):
        harmful = rng.beta(0.5, 0.5, size=len(sizes))  # how often an opening ends in harm: 50% on average
        low, high = Share([rng.random(n) < p for n, p in zip(sizes, harmful, strict=True)]).interval
        inside += low <= 0.5 <= high
    assert inside / 400 > 0.93


@pytest.mark.parametrize("q", [0.25, 0.5, 0.75])
def test_a_quantile_of_one_openings_values_has_no_interval(q):
    one = list(np.linspace(0, 1, 40))
    assert np.isnan(Quantile([one, [0.3], [0.4]], q=q).interval).all()
    assert not np.isnan(Quantile([one, one, [0.4]], q=q).interval).any()


@pytest.mark.parametrize(
    ("figure", "low", "high"),
    [
        (Mean([[-0.001], [-0.002], [-9.0]], bounds=(-math.inf, 0)), -math.inf, 0),
        (Mean([[-0.001], [-0.002], [-9.0]], transform=exp_of_minus, bounds=(1, math.inf)), 1, math.inf),
        (Mean([[-9.0], [-8.0], [-0.1]], transform=exp_of_minus, bounds=(1, math.inf)), 1, math.inf),
        (Mean([[1.0], [1.0], [3.0]], bounds=(1, 3)), 1, 3),
    ],
)
def test_an_interval_stays_where_the_figure_can_lie(figure: Statistic, low: float, high: float):
    assert low <= figure.interval[0] < figure.value < figure.interval[1] <= high


def test_the_interval_of_a_perplexity_is_that_of_its_logarithm():
    logprobs = [[-1.0, -3.0], [-2.5], [-0.5], [-4.0, -4.5]]
    low, high = Mean(logprobs).interval
    assert Mean(logprobs, transform=exp_of_minus).interval == pytest.approx((math.exp(-high), math.exp(-low)))


PAIRS = {
    "share against mean": (Share([[1.0], [0.0], [0.0], [1.0]]), Mean([[0.9], [0.4], [0.3], [0.2]], bounds=(0, 1))),
    "shares at both ends": (Share([[1.0]] * 3), Share([[0.0]] * 3)),
    "means near both ends": (Mean([[1.0], [1.0], [0.2]], bounds=(0, 1)), Mean([[0.0], [0.1], [0.9]], bounds=(0, 1))),
    "quantiles": (Quantile([[0.1], [0.5], [0.9]]), Quantile([[0.2], [0.1], [0.6]])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_difference_turned_round_is_its_negative_and_stays_where_it_can_lie(name):
    one, other = PAIRS[name]
    value, (low, high) = difference(one, other)
    assert -1 <= low < value < high <= 1 or (name == "shares at both ends" and (value, high) == (1, 1) and low < 1)
    turned, (turned_low, turned_high) = difference(other, one)
    assert (turned, turned_low, turned_high) == pytest.approx((-value, -high, -low))


def test_openings_without_exchanges_tell_nothing_about_a_difference():
    one, other = [[1.0], [0.0], [1.0], [1.0], [0.0], [1.0]], [[1.0], [0.0], [1.0], [0.0], [0.0], [0.0]]
    empty: list[list[float]] = [[]] * 30
    alone = difference(Share(one), Share(other))
    assert difference(Share(one + empty), Share(other + empty)) == (alone[0], pytest.approx(alone[1]))


def test_texts_too_short_for_an_n_gram_are_left_out_of_its_mean():
    # Sets of two texts of different openings: of words "a", "b", "c" none has a pair, and "d e", "d e" one of two.
    figure = diversity([["a"], ["b"], ["d e"], ["d e"]], 0)["distinct_2"]
    assert 0.5 <= figure.value <= 1 and np.isnan(figure.interval).all()
    none = diversity([["a"], ["b"], ["c"], ["d"]], 0)["distinct_2"]
    assert np.isnan(none.value) and np.isnan(none.interval).all()


def test_no_more_attacks_than_texts_are_claimed():
    vectors = {f"text {i}": np.eye(8)[min(i, 6)] for i in range(8)}
    figures = diversity([[text] for text in vectors], 0, lambda texts: np.array([vectors[text] for text in texts]))
    for name in ("vendi_score", "distinct_attacks"):
        figure = figures[name]
        assert figure.largest == 4 and figure.interval[1] <= 4 and figure.value > 3.5, name
