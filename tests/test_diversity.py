"""How diverse texts are, where the answer is plain; `test_evaluation.py` compares with a computation by hand."""

import math
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from stand_ins import bert_tokenizer
from transformers import BertConfig, BertModel

from astra_trl import ASTEvaluator, ASTPrompterSystem, InputError, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.embedding import load_embedder
from astra_trl.evaluation.diversity import clusters, distinct_share, diversity, self_bleu, vendi_score


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
    evaluation = ASTEvaluator(system, ["a", "b"], depth=1, bootstrap=20, embedder=str(embedder_folder)).evaluate()
    assert evaluation.settings["embedder"] == str(embedder_folder)
    assert 1 <= evaluation.figure("vendi_score/successful_probes").value <= 2
    assert evaluation.figure("distinct_attacks/probes").value in (1, 2)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'astra-trl\[diversity\]', or leave out the embedder"):
        load_embedder("any", extra="diversity")


def test_figures_of_equal_and_of_unlike_texts():
    equal, unlike = np.ones((3, 2)) / math.sqrt(2), np.eye(3)
    every = np.ones(3, dtype=int)
    assert vendi_score(equal, every) == pytest.approx(1) and vendi_score(unlike, every) == pytest.approx(3)
    assert vendi_score(unlike, np.array([5, 5, 0])) == pytest.approx(2)
    assert clusters(equal).tolist() == [0, 0, 0] and clusters(unlike).tolist() == [0, 1, 2]
    assert clusters(np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]])).tolist() == [0, 1, 0]  # near both: the first leads
    assert min(self_bleu(["one two three four"] * 3).values()) == pytest.approx(1)
    assert max(self_bleu(["one two", "three four", "five six"]).values()) < 0.2
    assert distinct_share(["one one two"], 1) == pytest.approx(2 / 3)
    assert math.isnan(distinct_share(["one"], 2)) and self_bleu(["one"]) == {}


def test_of_many_texts_a_sample_is_compared():
    texts = [f"text number {number}" for number in range(40)]
    some = self_bleu(texts, seed=1, most=10)
    assert len(some) == 10 and some == self_bleu(texts, seed=1, most=10)
    assert set(some) != set(self_bleu(texts, seed=2, most=10))


def test_blank_texts_say_nothing_about_diversity():
    found = diversity([["a b", ""], ["  "], ["a c"]], seed=0)
    assert found["distinct_1"].n == found["self_bleu"].n == 2
    assert found["distinct_1"].value == 3 / 4
