"""How diverse texts are, where the answer is plain; `test_evaluation.py` compares with a computation by hand."""

import math
import random
import re
import sys

import numpy as np
import pytest
import scipy.stats
from sacrebleu.metrics import BLEU
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from stand_ins import bert_tokenizer
from transformers import BertConfig, BertModel

from astra_trl import ASTEvaluator, ASTPrompterSystem, InputError, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.embedding import load_embedder
from astra_trl.evaluation.diversity import (
    SelfBLEU,
    clusters,
    cosine_distance,
    distinct_share,
    diversity,
    vendi_score,
    words_of,
)
from astra_trl.evaluation.resampling import difference


@pytest.fixture(scope="module")
def embedder_folder(tmp_path_factory):
    """A tiny random BERT as sentence-transformers saves its models."""
    folder = tmp_path_factory.mktemp("embedder")
    tokenizer = bert_tokenizer(folder / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[words, Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_a_model_of_sentence_transformers_embeds(embedder_folder):
    vectors = load_embedder(str(embedder_folder))(["you fool", "nice day", "you fool"])
    assert vectors.shape == (3, 16)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_an_evaluation_takes_it_by_name(embedder_folder):
    tester = ScriptedBackend(lambda texts, sibling: f"probe {texts[0]}")
    system = ASTPrompterSystem(tester, ScriptedBackend(lambda texts, sibling: "fool"), None, KeywordScorer(["fool"]))
    evaluation = ASTEvaluator(
        system, ["a", "b", "c", "d"], depth=1, draws=20, embedder=str(embedder_folder)
    ).evaluate()
    assert evaluation.settings["embedder"] == str(embedder_folder)
    assert 1 <= evaluation.figure("vendi_score/successful_probes").value <= 2
    assert evaluation.figure("distinct_attacks/probes").value in (1, 2)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'astra-trl\[diversity\]', or leave out the embedder"):
        load_embedder("any", extra="diversity")


def test_figures_of_equal_and_of_unlike_texts():
    equal, unlike = np.ones((3, 2)) / math.sqrt(2), np.eye(3)
    assert vendi_score(equal) == pytest.approx(1) and vendi_score(unlike) == pytest.approx(3)
    assert vendi_score(np.array([[1, 0], [0, 1], [1, 0], [0, 1]])) == pytest.approx(2)
    assert cosine_distance(equal) == pytest.approx(0) and cosine_distance(unlike) == pytest.approx(1)
    assert clusters(equal).tolist() == [0, 0, 0] and clusters(unlike).tolist() == [0, 1, 2]
    assert clusters(np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]])).tolist() == [0, 1, 0]  # near both: the first leads
    same, other = diversity([["one two three four"]] * 4), diversity([["one two"], ["three four"], ["five six"]] * 2)
    assert same["self_bleu"].value == pytest.approx(1) and np.isnan(same["self_bleu"].interval).all()
    assert other["self_bleu"].of_size(2).value < 0.4
    assert distinct_share(["one one two"], 1) == pytest.approx(2 / 3)
    assert math.isnan(distinct_share(["one"], 2)) and math.isnan(distinct_share([], 1))


@pytest.mark.parametrize("texts", [[], [[]], [["one"]], [["one"], ["two"]], [["one", "two", "three"]]])
def test_of_less_than_two_sets_of_two_there_is_no_figure(texts):
    for figure in diversity(texts, 0, lambda said: np.ones((len(said), 2))).values():
        assert figure.n == sum(map(len, texts)) and math.isnan(figure.value)
        assert np.isnan(figure.interval).all() and np.isnan(difference(figure, figure)[1]).all()


def test_blank_texts_say_nothing_about_diversity():
    found = diversity([["a b", ""], ["  "], ["a c"], ["a b"], ["a c"]])
    assert found["distinct_1"].n == found["self_bleu"].n == 4
    assert found["distinct_1"].value == pytest.approx((2 * 3 / 4 + 1 / 2) / 3, abs=0.1)


TOPICS, FRAMES = 12, ["could we talk about {}", "tell me more about {} please", "what of {}", "I do like {}"]


def talk(rng: np.random.Generator, per_opening) -> list[list[str]]:
    """Texts by opening, about topics of which some are frequent; one opening's are often about one topic."""
    weights = 1 / np.arange(1, TOPICS + 1)
    rows = []
    for count in per_opening:
        topics = rng.choice(TOPICS, size=count, p=weights / weights.sum())
        topics[rng.random(count) < 0.4] = topics[:1]
        rows.append([rng.choice(FRAMES).format(f"t{topic}") for topic in topics])
    return rows


def one_hot(texts):
    return np.eye(TOPICS)[
        [int(re.search(r"t(\d+)", text.replace("talk", "").replace("tell", ""))[1]) for text in texts]
    ]


def test_sets_of_different_size_are_as_diverse_if_what_they_are_drawn_from_is():
    rng = np.random.default_rng(0)
    few, many = diversity(talk(rng, [2] * 12), 0, one_hot), diversity(talk(rng, [2] * 150), 0, one_hot)
    size = min(few["self_bleu"].largest, many["self_bleu"].largest)
    assert size == 11
    for name in ("self_bleu", "distinct_1", "distinct_2", "vendi_score", "distinct_attacks"):
        value, (low, high) = difference(few[name].of_size(size), many[name].of_size(size))
        assert low < 0 < high, name
        assert abs(value) < 0.5 * abs(few[name].of_size(size).value - many[name].of_size(149).value), name


def test_a_figure_of_sets_is_the_mean_over_random_orders_of_openings():
    rows = talk(np.random.default_rng(1), [1, 2, 3, 0, 2, 1, 3, 3])
    found = diversity(rows, 3, one_hot, draws=4000)
    size, rng = found["self_bleu"].largest, random.Random(5)
    assert size == (15 - 3 + 1) // 2
    values, halves = [], []
    for _ in range(2000):  # an independent loop: openings one after the other until a set is full, then the next set
        order = rng.sample([row for row in rows if row], 7)
        sets: list[list[str]] = [[]]
        for row in order:
            if len(sets[-1]) >= size:
                sets.append([])
            sets[-1] += rng.sample(row, len(row))[: size - len(sets[-1])]
        topics = [len({int(np.argmax(one_hot([text]))) for text in some}) for some in sets if len(some) == size]
        assert len(topics) == 2
        values += topics
        halves.append(topics)
    figure = found["distinct_attacks"]
    assert figure.n == 15 and figure.value == pytest.approx(np.mean(values), abs=0.06)
    within = np.mean([np.var(pair, ddof=1) / 2 for pair in halves])
    between = np.var([np.mean(pair) for pair in halves], ddof=1)
    half = scipy.stats.t.ppf(0.975, 1 / (1 / 6 + 1 / 2000)) * math.sqrt(within - between / 2)
    assert (figure.interval[1] - figure.value) == pytest.approx(half, rel=0.1)


def test_the_interval_of_a_mean_over_pairs_is_the_jackknife_s():
    rows = talk(np.random.default_rng(2), [3] * 40)
    vectors, opening = one_hot([text for row in rows for text in row]), np.repeat(np.arange(40), 3)

    def over_pairs(kept):  # of different openings
        apart = 1 - vectors[kept] @ vectors[kept].T
        return apart[opening[kept][:, None] != opening[kept]].mean()

    without = np.array([over_pairs(opening != out) for out in range(40)])
    error = math.sqrt(39 / 40 * np.sum((without - without.mean()) ** 2))
    figure = diversity(rows, 0, one_hot, draws=600)["cosine_distance"]
    low, high = figure.interval
    # The spread of plain means of each text's distance to the others is half of it.
    assert (high - low) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 39) * error, rel=0.15)


@pytest.fixture(scope="module")
def many_talks():
    """Figures of 250 talks with their intervals, and of 800 further ones."""
    rng = np.random.default_rng(3)
    figures = [diversity(talk(rng, [3] * 20), seed, one_hot, draws=40) for seed in range(250)]
    return figures, [diversity(talk(rng, [3] * 20), seed, one_hot, draws=2) for seed in range(800)]


@pytest.mark.parametrize("name", ["cosine_distance", "vendi_score", "distinct_attacks", "self_bleu"])
def test_intervals_of_diversity_contain_the_true_value_about_as_often_as_they_claim(name, many_talks):
    figures, further = many_talks
    true = np.mean([found[name].value for found in further])
    inside = [low <= true <= high for low, high in (found[name].interval for found in figures)]
    assert 0.9 <= np.mean(inside) <= 0.99


def test_self_bleu_is_sacrebleu_s():
    rng = random.Random(0)
    words = ["a", "b", "c", "d", "it's", "good.", "x,y", "Zz"]
    texts = [" ".join(rng.choices(words, k=rng.choice([1, 2, 3, 5, 8, 13]))) for _ in range(60)]
    self_bleu, bleu = SelfBLEU([words_of(text) for text in texts]), BLEU(effective_order=True)
    for count in (2, 3, 7, 30, 60):
        some = rng.sample(range(60), count)
        expected = [bleu.sentence_score(texts[i], [texts[j] for j in some if j != i]).score / 100 for i in some]
        assert self_bleu.of_each(np.array(some)) == pytest.approx(expected, abs=1e-12)


def test_of_very_many_texts_sets_stay_small():
    rng = random.Random(0)
    texts = [[f"text {rng.randrange(50)} of {rng.randrange(9)} by {rng.randrange(30)}"] for _ in range(3000)]
    figure = diversity(texts, 0)["self_bleu"]
    assert figure.largest == 250 and sum(len(sets) for sets in figure._orders(250)) == 204
    assert 0 < figure.interval[0] < figure.value < figure.interval[1] < 1
