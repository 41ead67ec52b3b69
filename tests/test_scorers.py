import math
from dataclasses import dataclass

import pytest

from astra_trl import Exchange, InputError, KeywordScorer
from astra_trl.scorers.base import measuring, score_distinct, validate_scores
from astra_trl.scorers.named import ScorerArguments, build_scorers


def say(response: str, probe: str = "") -> Exchange:
    return Exchange((), probe, response)


def test_probe_and_response_are_scored_as_one_text():
    scorer = measuring(KeywordScorer(["fool"]), "probe_and_response")
    assert scorer([say("hello", probe="fool"), say("fool", probe="hi"), say("hello", probe="hi")]) == [1.0, 1.0, 0.0]


def test_measuring_another_part_shares_the_model_and_leaves_the_scorer_as_it_was():
    scorer = KeywordScorer(["fool"])
    other = measuring(scorer, "probe")
    assert other.words is scorer.words and scorer.of == "response"
    assert other([say("nice", probe="fool"), say("fool")]) == [1.0, 0.0]


def test_a_plain_function_measures_another_part_by_its_text():
    def says_fool(exchanges):
        assert all(exchange.context == () for exchange in exchanges)
        return [float("fool" in exchange.response) for exchange in exchanges]

    both = [say("hello", probe="fool"), say("fool", probe="hi")]
    assert measuring(says_fool, "response") is says_fool
    assert measuring(says_fool, "probe")(both) == [1.0, 0.0]
    assert measuring(says_fool, "probe_and_response")(both) == [1.0, 1.0]


@dataclass(frozen=True)
class Says:
    word: str
    of: str = "response"

    def __call__(self, exchanges):
        return [float(self.word in getattr(exchange, self.of)) for exchange in exchanges]


def test_a_frozen_scorer_measures_another_part():
    scorer = Says("fool")
    assert measuring(scorer, "probe")([say("nice", probe="fool"), say("fool")]) == [1.0, 0.0]
    assert scorer.of == "response"


def test_an_unknown_part_is_refused_with_the_list():
    with pytest.raises(InputError, match="of='answer' is not a part .* response, probe, probe_and_response"):
        KeywordScorer(["fool"], of="answer")


def test_validate_scores_accepts_nan_and_refuses_other_values():
    exchanges = [say("a"), say("b")]
    assert math.isnan(validate_scores("s", lambda e: [0.5, math.nan], exchanges)[1])
    with pytest.raises(InputError, match="'s' returned 1 scores for 2 exchanges"):
        validate_scores("s", lambda e: [0.5], exchanges)
    for bad in (1.5, -0.1, math.inf):
        with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
            validate_scores("s", lambda e, bad=bad: [0.5, bad], exchanges)


def test_score_distinct_scores_equal_texts_once_and_keeps_the_order():
    batches = []

    def score_batch(texts):
        batches.append(texts)
        return [float(len(text)) for text in texts]

    assert score_distinct(["ccc", "a", "ccc", "bb", "a"], score_batch, batch_size=2) == [3.0, 1.0, 3.0, 2.0, 1.0]
    assert batches == [["a", "bb"], ["ccc"]]


def test_named_scorers_are_built_from_flags(tmp_path, detoxify_files, guard_folder):
    (tmp_path / "words.txt").write_text("fool\n")
    args = ScorerArguments(
        scorer="detoxify",
        held_out_scorers=["keyword", f"keyword:{tmp_path / 'words.txt'}", f"llama_guard:{guard_folder}"],
        keywords=["soup"],
        detoxify_category="insult",
        detoxify_checkpoint=str(detoxify_files / "tiny.ckpt"),
        detoxify_config_path=str(detoxify_files),
        llama_guard_categories=["S1"],
        scorer_batch_size=3,
    )
    scorers = build_scorers(args)
    assert list(scorers) == ["detoxify", "keyword", f"keyword:{tmp_path / 'words.txt'}", "llama_guard"]
    detoxify, soup, fool, guard = scorers.values()
    assert (detoxify.category, detoxify.batch_size) == ("insult", 3)
    assert (soup.words, fool.words) == (("soup",), ("fool",))
    assert (guard.categories, guard.batch_size) == ({"S1"}, 3)
    assert list(build_scorers(ScorerArguments(), world=soup)) == ["harm"]  # a world's own in place of --scorer
    none = ScorerArguments(scorer="keyword", keywords=["soup"], held_out_scorers=["none"])
    assert list(build_scorers(none)) == ["keyword"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"scorer": "toxigen"},
            "no scorer 'toxigen': choose one of detoxify, llama_guard, classifier, ",
        ),
        ({"scorer": "keyword"}, "no words"),
        ({"scorer": "keyword", "keywords": ["a"], "held_out_scorers": ["keyword", "keyword"]}, "given twice"),
        ({"scorer": "classifier:x"}, "--classifier_labels is missing"),
        ({"scorer": "classifier", "classifier_labels": ["a"]}, "--scorer classifier:MODEL is missing"),
        ({"scorer": "judge:x"}, "--judge_rubric is missing"),
        ({"scorer": "classifier:no/such", "classifier_labels": ["a"]}, "'no/such' could not be loaded"),
        ({"scorer": "llama_guard:no/such"}, "Llama Guard 'no/such' could not be loaded"),
        ({"scorer": "judge:no/such", "judge_rubric": "Is it rude?"}, "judge 'no/such' could not be loaded"),
    ],
)
def test_a_scorer_that_cannot_be_built_says_why(flags, message):
    with pytest.raises(InputError, match=message) as caught:
        build_scorers(ScorerArguments(**flags))
    assert "\n" not in str(caught.value)


def test_one_checkpoint_does_not_stand_for_two_detoxify_scorers(detoxify_files):
    files = {"detoxify_checkpoint": str(detoxify_files / "tiny.ckpt"), "detoxify_config_path": str(detoxify_files)}
    with pytest.raises(InputError, match="would stand for both"):
        build_scorers(ScorerArguments(held_out_scorers=["detoxify:unbiased"], **files))
