"""Coverage of attacks: expected numbers by hand, by exact binomials and by drawing every subset; evenness."""

import itertools
import math
import random
from collections import Counter

import pytest

from astra_trl.evaluation.rarefaction import attack_curve, cumulative_curve, evenness, rarefied


def test_expected_numbers_by_hand():
    # Of 5 exchanges 3 are one attack, 1 is another and 1 is none. Two of them miss the first in 1 of 10 draws, and the
    # second in 6 of 10.
    assert rarefied([3, 1], 5, 1) == pytest.approx(4 / 5)
    assert rarefied([3, 1], 5, 2) == pytest.approx(9 / 10 + 4 / 10)
    assert rarefied([3, 1], 5, 3) == pytest.approx(1 + 6 / 10)
    assert rarefied([3, 1], 5, 5) == 2
    assert rarefied([], 5, 3) == 0


def test_it_is_the_mean_over_all_subsets():
    attacks = ["coffee", None, 3, "coffee", None, "coffee", 3, "tea", None]
    for drawn in range(1, 10):
        subsets = list(itertools.combinations(attacks, drawn))
        mean = sum(len({a for a in subset if a is not None}) for subset in subsets) / len(subsets)
        assert rarefied([3, 2, 1], 9, drawn) == pytest.approx(mean, abs=1e-12)
    curve = attack_curve(attacks)
    assert [n for n, _ in curve] == [1, 2, 4, 8, 9]
    assert curve[2][1] == pytest.approx(rarefied([3, 2, 1], 9, 4)) and curve[-1] == (9, 3.0)


def test_many_exchanges_lose_no_digits():
    sizes = [1500, 40, 3, 3, 1, 1]
    for drawn in (1, 100, 2500, 2999, 3000):
        exact = sum(1 - math.comb(3000 - size, drawn) / math.comb(3000, drawn) for size in sizes)
        assert rarefied(sizes, 3000, drawn) == pytest.approx(exact, rel=1e-12)
    assert rarefied([1], 10**7, 10) == pytest.approx(1e-6, rel=1e-12)


def test_random_draws_have_that_mean():
    rng, attacks = random.Random(0), [*"aaaabbc", *[None] * 13]
    draws = [len(set(rng.sample(attacks, 6)) - {None}) for _ in range(20_000)]
    assert rarefied([4, 2, 1], 20, 6) == pytest.approx(sum(draws) / len(draws), abs=0.02)


@pytest.mark.parametrize(
    ("attacks", "curve"),
    [([], []), ([None], [(1, 0.0)]), (["a"], [(1, 1.0)]), (["a", "a"], [(1, 1.0), (2, 1.0)])],
)
def test_curves_of_few_exchanges(attacks, curve):
    assert attack_curve(attacks) == curve


def test_training_counts_every_attack_once():
    attacks = [None, "a", "b", "a", None, "c"]
    assert cumulative_curve(attacks) == [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3)]
    assert cumulative_curve(attacks, points=3) == [(2, 1), (4, 2), (6, 3)]
    assert cumulative_curve([]) == []


def test_evenness_by_hand():
    assert evenness({"a": 5, "b": 5, "c": 5, "d": 5}, 4) == pytest.approx(1)
    assert evenness({"a": 5, "b": 5}, 4) == pytest.approx(1 / 2)
    # The entropy of 1/4 and 3/4 is 2 log(2) - 3/4 log(3), and log(4) is 2 log(2).
    assert evenness(Counter(a=1, b=3, c=0), 4) == pytest.approx(1 - 3 * math.log(3) / (8 * math.log(2)))
    assert str(evenness({"a": 5}, 4)) == "0.0"
    for counts, kinds in (({}, 4), ({"a": 0}, 4), ({"a": 3}, 1)):
        assert math.isnan(evenness(counts, kinds))
