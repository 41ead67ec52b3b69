import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from astra_trl import DetoxifyScorer, Exchange, InputError, KeywordScorer
from astra_trl.scorers.base import checked_scores, measuring, score_distinct


def say(response: str, probe: str = "") -> Exchange:
    return Exchange((), probe, response)


def test_keyword_scorer_matches_whole_words_case_folded():
    scorer = KeywordScorer(["idiot", "shut up", "Straße", "дурак"])
    said = ["You IDIOT!", "idiotic", "Shut up, please", "shut upwards", "STRASSE", "Ты ДУРАК?", ""]
    assert scorer([say(text) for text in said]) == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def test_keyword_scorer_refuses_no_words_and_a_bare_text():
    with pytest.raises(InputError, match="no words"):
        KeywordScorer([" "])
    with pytest.raises(InputError, match="no word list could be read from 'idiot'"):
        KeywordScorer("idiot")


def test_probe_and_response_are_scored_as_one_text():
    scorer = measuring(KeywordScorer(["fool"]), "probe_and_response")
    assert scorer([say("hello", probe="fool"), say("fool", probe="hi"), say("hello", probe="hi")]) == [1.0, 1.0, 0.0]


def test_checked_scores_lets_nan_through_and_refuses_the_rest():
    exchanges = [say("a"), say("b")]
    assert math.isnan(checked_scores("s", lambda e: [0.5, math.nan], exchanges)[1])
    with pytest.raises(InputError, match="'s' returned 1 scores for 2 exchanges"):
        checked_scores("s", lambda e: [0.5], exchanges)
    for bad in (1.5, -0.1, math.inf):
        with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
            checked_scores("s", lambda e, bad=bad: [0.5, bad], exchanges)


def test_score_distinct_scores_equal_texts_once_and_keeps_the_order():
    batches = []

    def score_batch(texts):
        batches.append(texts)
        return [float(len(text)) for text in texts]

    assert score_distinct(["ccc", "a", "ccc", "bb", "a"], score_batch, batch_size=2) == [3.0, 1.0, 3.0, 2.0, 1.0]
    assert batches == [["a", "bb"], ["ccc"]]


@pytest.fixture(scope="module")
def detoxify_files(tmp_path_factory):
    """A checkpoint in detoxify's own format around a tiny random BERT, and its config and tokenizer folder."""
    folder = tmp_path_factory.mktemp("detoxify")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "you", "fool", "nice", "day"]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    classes = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=len(classes),
            initializer_range=0.5,
        )
    )
    model.classifier.bias.data[0] = -3.0  # mostly harmless, so that a toxicity filter keeps something
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arch = {
        "model_type": str(folder),
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(classes),
    }
    config = {"arch": {"args": arch}, "dataset": {"args": {"classes": classes}}}
    torch.save({"config": config, "state_dict": model.state_dict()}, folder / "tiny.ckpt")
    return folder


TEXTS = ["you fool", "nice day", "a", "you nice nice fool of a day and more of it", "nice day"]


def test_detoxify_scores_are_the_librarys_own_batched_or_not(detoxify_files):
    scorer = DetoxifyScorer(
        "insult", checkpoint=detoxify_files / "tiny.ckpt", huggingface_config_path=detoxify_files, batch_size=3
    )
    alone = [scorer._detoxify.predict(text)["insult"] for text in TEXTS]
    assert max(alone) - min(alone) > 0.01  # or agreement would say nothing
    assert scorer([say(text) for text in TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert scorer([say(TEXTS[0])]) == pytest.approx(alone[:1], abs=1e-5)
    assert scorer([]) == []


def test_detoxify_refuses_what_it_does_not_have(detoxify_files, tmp_path, monkeypatch):
    files = {"checkpoint": detoxify_files / "tiny.ckpt", "huggingface_config_path": detoxify_files}
    with pytest.raises(InputError, match="no category 'rude': choose one of toxicity, severe_toxicity"):
        DetoxifyScorer("rude", **files)
    with pytest.raises(InputError, match="no variant 'big'"):
        DetoxifyScorer(variant="big")
    with pytest.raises(InputError, match=r"could not load .*nothing\.ckpt"):
        DetoxifyScorer(checkpoint=tmp_path / "nothing.ckpt")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"toxic_original-c1212f89\.ckpt .*checkpoint="):
        DetoxifyScorer()
