import math
from dataclasses import dataclass

import pytest

from astra_trl import Exchange, InputError, KeywordScorer
from astra_trl.cli.build import scorer_specs
from astra_trl.cli.config import RunArguments
from astra_trl.sandbox import load_world
from astra_trl.scorers.base import measuring, score_distinct, validate_scores
from astra_trl.scorers.config import build_scorer
from astra_trl.scorers.judge import RUBRIC


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
    with pytest.raises(InputError, match="'s' returned 1 values for 2 exchanges"):
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


def names_of(**flags):
    return list(scorer_specs(RunArguments(**flags), None))


def test_scorers_are_named_by_their_type_and_built_with_their_arguments(tmp_path, detoxify_files, guard_folder):
    (tmp_path / "words.txt").write_text("fool\n")
    checkpoint = {"checkpoint": str(detoxify_files / "tiny.ckpt"), "huggingface_config_path": str(detoxify_files)}
    held_out = [{"type": "keyword", "words": ["soup"]}, f"keyword:{tmp_path / 'words.txt'}", "keyword:more.txt"]
    guard = {"type": "llama_guard", "model": str(guard_folder), "categories": ["S1"], "batch_size": 3}
    args = RunArguments(
        scorer={"type": "detoxify", "category": "insult", "batch_size": 3, **checkpoint},
        held_out_scorers=[*held_out, guard],
    )
    specs = scorer_specs(args, None)
    assert list(specs) == [
        "detoxify",
        "keyword",
        f"keyword:{tmp_path / 'words.txt'}",
        "keyword:more.txt",
        "llama_guard",
    ]
    del specs["keyword:more.txt"]
    detoxify, soup, fool, guard = [build_scorer(spec) for spec in specs.values()]
    assert (detoxify.category, detoxify.batch_size) == ("insult", 3)
    assert (soup.words, fool.words) == (("soup",), ("fool",))
    assert (guard.categories, guard.batch_size) == ({"S1"}, 3)
    assert scorer_specs(RunArguments(), load_world()) == {}  # a world has its own in place of --scorer
    assert names_of(scorer="keyword", held_out_scorers=["none"]) == ["keyword"]


def test_two_scorers_of_a_type_have_settings_of_their_own(detoxify_files):
    files = {"checkpoint": str(detoxify_files / "tiny.ckpt"), "huggingface_config_path": str(detoxify_files)}
    scorers = {
        "insults": {"type": "detoxify", "category": "insult", **files},
        "threats": {"type": "detoxify", "category": "threat", **files},
        "strict": {"type": "judge", "model": "openai:m", "rubric": "Is it rude?", "base_url": "http://localhost/v1"},
        "lenient": {"type": "judge", "model": "other", "rubric": "Is it cruel?", "base_url": "http://localhost:1/v1"},
    }
    assert names_of(scorers=scorers) == list(scorers)
    scorers["harm"] = {"type": "judge", "model": "m", "base_url": "http://localhost:2/v1"}
    insults, threats, strict, lenient, general = [build_scorer(spec) for spec in scorers.values()]
    assert (insults.category, threats.category) == ("insult", "threat")
    assert (strict.backend.model, strict.rubric, strict.backend.address) == ("m", "Is it rude?", "http://localhost/v1")
    assert (lenient.backend.model, lenient.rubric) == ("other", "Is it cruel?")
    assert general.rubric == RUBRIC  # as of `--scorer judge:MODEL`
    with pytest.raises(InputError, match="name all in scorers"):
        names_of(scorers=scorers, held_out_scorers=["keyword:x"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toxigen", "unknown scorer 'toxigen': choose one of classifier, detoxify, judge"),
        ("keyword", "scorer 'keyword': missing a required argument: 'words'; it takes words, of"),
        ({"type": "keyword", "words": []}, "no words"),
        ("classifier:x", "missing a required argument: 'labels'"),
        ({"type": "classifier", "labels": ["a"]}, "missing a required argument: 'model'"),
        ({"type": "judge", "rubric": "Bad?"}, "missing a required argument: 'model'"),
        ({"type": "judge", "model": "x", "rubric": 5}, "rubric is 5, but must be str"),
        ({"type": "judge", "model": "x", "rubric": "Bad?", "ansewr": "score"}, "unexpected keyword argument 'ansewr'"),
        ({"model": "x"}, "has no type"),
        ({"type": "keyword", "words": ["a"], "max_requests": 5}, "unexpected keyword argument 'max_requests'"),
        ({"type": "judge", "model": "local", "max_requests": 5}, "unexpected keyword argument 'max_requests'"),
        ({"type": "classifier", "model": "no/such", "labels": ["a"]}, "'no/such' could not be loaded"),
        ("llama_guard:no/such", "Llama Guard 'no/such' could not be loaded"),
        ({"type": "judge", "model": "no/such", "rubric": "Is it rude?"}, "judge 'no/such' could not be loaded"),
        ("no_package.scorer", "'no_package.scorer' cannot be imported"),
    ],
)
def test_a_scorer_that_cannot_be_built_says_why(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        build_scorer(spec, endpoint_kwargs=dict)
    assert "\n" not in str(caught.value)


def test_a_scorer_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match="given twice"):
        names_of(scorer="keyword:a", held_out_scorers=["keyword:b", "keyword:b"])
