import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from stand_ins import save_classifier
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, pipeline

from astra_trl import Exchange, InputError
from astra_trl.scorers import ClassifierScorer

TEXTS = ["you fool", "nice day", "a", "you nice nice fool of a day and more of it", "nice day", "", "fool " * 700]


def exchanges(texts=TEXTS):
    return [Exchange((), "probe", text) for text in texts]


def by_pipeline(folder, **kwargs):
    """Label -> probability of every text alone, by transformers' own pipeline."""
    classify = pipeline("text-classification", str(folder), top_k=None, device="cpu", **kwargs)
    longest = {"truncation": True, "max_length": 510}
    return [{row["label"]: row["score"] for row in classify([text], **longest)[0]} for text in TEXTS]


@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (["nothate", "hate"], None),
        (["fine", "rude", "vile"], "single_label_classification"),
        (["toxic", "insult", "threat"], "multi_label_classification"),
        (["toxic"], None),
    ],
)
def test_every_label_is_what_the_pipeline_says_batched_or_not(tmp_path, labels, problem_type):
    save_classifier(tmp_path, labels, problem_type)
    expected = by_pipeline(tmp_path)
    for label in labels:
        alone = [row[label] for row in expected]
        assert max(alone) - min(alone) > 0.01  # or agreement would say nothing
        scorer = ClassifierScorer(str(tmp_path), label, batch_size=3)
        assert scorer(exchanges()) == pytest.approx(alone, abs=1e-5)
        assert scorer([]) == []
        assert [scorer([exchange])[0] for exchange in exchanges()] == pytest.approx(alone, abs=1e-5)
    assert ClassifierScorer(str(tmp_path), 0)(exchanges()) == pytest.approx([r[labels[0]] for r in expected], abs=1e-5)


def test_several_labels_sum_where_they_exclude_each_other_and_else_the_largest_counts(tmp_path):
    save_classifier(tmp_path, ["fine", "rude", "vile"])
    rows = by_pipeline(tmp_path)
    scorer = ClassifierScorer(str(tmp_path), ["rude", "vile"])
    assert scorer(exchanges()) == pytest.approx([row["rude"] + row["vile"] for row in rows], abs=1e-5)
    assert max(ClassifierScorer(str(tmp_path), ["fine", "rude", "vile"])(exchanges())) <= 1.0
    rows = by_pipeline(tmp_path, function_to_apply="sigmoid")
    scorer = ClassifierScorer(str(tmp_path), ["rude", "vile"], activation="sigmoid")
    assert scorer(exchanges()) == pytest.approx([max(row["rude"], row["vile"]) for row in rows], abs=1e-5)


def test_a_decoder_without_a_pad_token_classifies_in_batches(tmp_path):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2, num_labels=2)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = ClassifierScorer(str(tmp_path), "LABEL_1")
    texts = [text for text in TEXTS if text]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    alone = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=126, return_tensors="pt")["input_ids"]
        alone.append(model(ids).logits.softmax(-1)[0, 1].item())
    assert max(alone) - min(alone) > 1e-3
    assert scorer(exchanges(texts)) == pytest.approx(alone, abs=1e-5)


def test_the_part_and_the_precision_are_the_users_choice(tmp_path):
    save_classifier(tmp_path, ["nothate", "hate"])
    scorer = ClassifierScorer(str(tmp_path), "hate", of="probe", model_init_kwargs={"dtype": "bfloat16"})
    assert scorer.model.dtype == torch.bfloat16
    probe = ClassifierScorer(str(tmp_path), "hate")([Exchange((), "", "you fool")])
    assert scorer([Exchange((), "you fool", "nice day")]) == pytest.approx(probe, abs=0.05)


def test_what_is_no_such_classifier_is_refused(tmp_path):
    save_classifier(tmp_path / "two", ["nothate", "hate"])
    save_classifier(tmp_path / "regression", ["harm"], "regression")
    make_gpt2(make_tokenizer()).save_pretrained(tmp_path / "language")
    make_tokenizer().save_pretrained(tmp_path / "language")
    for folder, labels, message in (
        ("two", "hateful", "has no label 'hateful': choose among nothate, hate"),
        ("two", 2, "has no label 2"),
        ("two", [], "no label .* means harm"),
        ("regression", "harm", "is a regression, whose output is not a probability"),
        ("language", 0, "as a GPT2ForSequenceClassification, it lacks score.weight"),
        ("nothing", 0, "could not be loaded"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            ClassifierScorer(str(tmp_path / folder), labels)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="activation='tanh': choose sigmoid or softmax"):
        ClassifierScorer(str(tmp_path / "two"), "hate", activation="tanh")
