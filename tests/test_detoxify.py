import pytest
import torch

from astra_trl import DetoxifyScorer, Exchange, InputError

TEXTS = ["you fool", "nice day", "a", "you nice nice fool of a day and more of it", "nice day", "", "fool " * 700]


def exchanges(texts=TEXTS):
    return [Exchange((), f"probe {text}", text) for text in texts]


def make_scorer(files, category="insult", **kwargs):
    return DetoxifyScorer(category, checkpoint=files / "tiny.ckpt", huggingface_config_path=files, **kwargs)


def test_scores_are_the_librarys_own_batched_or_not(detoxify_files):
    scorer = make_scorer(detoxify_files, batch_size=3)
    alone = [scorer._detoxify.predict(text)["insult"] for text in TEXTS]
    assert max(alone) - min(alone) > 0.01  # or agreement would say nothing
    assert scorer(exchanges()) == pytest.approx(alone, abs=1e-5)
    assert [scorer([exchange])[0] for exchange in exchanges()] == pytest.approx(alone, abs=1e-5)
    assert scorer([]) == []


@pytest.mark.parametrize("category", ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"])
def test_every_category_may_be_named(detoxify_files, category):
    scorer = make_scorer(detoxify_files, category)
    assert scorer(exchanges()[:1]) == pytest.approx([scorer._detoxify.predict(TEXTS[0])[category]], abs=1e-5)


def test_the_part_that_is_read_is_the_users_choice(detoxify_files):
    scorer = make_scorer(detoxify_files, of="probe_and_response")
    assert scorer(exchanges()[:1]) == pytest.approx(
        [scorer._detoxify.predict("probe you fool\nyou fool")["insult"]], abs=1e-5
    )


def test_equal_texts_pass_once_and_batches_are_sorted_by_length(detoxify_files, monkeypatch):
    scorer = make_scorer(detoxify_files, batch_size=2)
    seen = []
    predict = scorer._detoxify.predict
    monkeypatch.setattr(scorer._detoxify, "predict", lambda texts: seen.append(texts) or predict(texts))
    scorer(exchanges(["you fool", "a", "a", "nice day", "you nice fool", "a"]))
    assert seen == [["a", "nice day"], ["you fool", "you nice fool"]]


def test_each_of_several_processes_on_a_cpu_can_load_it(detoxify_files):
    scorer = make_scorer(detoxify_files, device="cpu:0")  # accelerate's name for it, unknown to torch.load
    assert scorer(exchanges()) == make_scorer(detoxify_files)(exchanges())


def test_what_it_does_not_have_is_refused(detoxify_files, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no category 'rude': choose one of toxicity, severe_toxicity"):
        make_scorer(detoxify_files, "rude")
    with pytest.raises(InputError, match="no variant 'big': choose one of original, unbiased"):
        DetoxifyScorer(variant="big")
    with pytest.raises(InputError, match=r"could not load .*nothing\.ckpt"):
        DetoxifyScorer(checkpoint=tmp_path / "nothing.ckpt")

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"toxic_original-c1212f89\.ckpt .*checkpoint="):
        DetoxifyScorer()
