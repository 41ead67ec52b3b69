import math
import pickle

import pytest
from stand_ins import save_classifier

from astra_trl import ClassifierScorer, Exchange, InputError, KeywordScorer, Node, Reward
from astra_trl.rewards.fluency import Gibberish
from astra_trl.scorers import measuring

LABELS = ["clean", "mild gibberish", "noise", "word salad"]


def node(probe: str, response: str = "") -> Node:
    return Node(Exchange((), probe, response), [0], [1])


@pytest.mark.parametrize("of", ["response", "probe", "probe_and_response"])
def test_the_probe_alone_is_scored_whatever_the_scorer_was_set_to_read(of):
    scorer = KeywordScorer(["qsq"], of=of)
    nodes = [node("qsq dfd", "fine"), node("fine", "qsq dfd")]
    assert Gibberish(scorer)(nodes) == [1.0, 0.0]
    assert scorer.of == of and nodes[0].scores == {}


def test_a_scorer_without_parts_reads_the_probe_and_nothing_else():
    def longest(exchanges):
        return [min(1.0, len(exchange.probe + exchange.response) / 10) for exchange in exchanges]

    assert Gibberish(longest)([node("abcde", "a response"), node("")]) == [0.5, 0.0]


def test_of_a_classifier_it_is_one_minus_the_probability_of_clean_text(tmp_path):
    save_classifier(tmp_path, LABELS, "single_label_classification")
    nodes = [node("you fool", "nice day"), node("nice day", "you fool"), node("a", "a")]
    clean = measuring(ClassifierScorer(str(tmp_path), "clean"), "probe")([node.exchange for node in nodes])
    assert max(clean) - min(clean) > 0.01
    found = Gibberish(ClassifierScorer(str(tmp_path), LABELS[1:]))(nodes)
    assert found == pytest.approx([1 - value for value in clean], abs=1e-5)


def test_a_negative_weight_makes_it_a_penalty_in_sums_and_products():
    def half(exchanges):
        return [0.5 if exchange.response == "odd" else 0.0 for exchange in exchanges]

    for combine, expected in (("sum", [-1.0, 0.0]), ("product", [0.25, 1.0])):
        nodes = [node("odd", "fine"), node("fine", "odd")]
        Reward({"gibberish": (-2.0, Gibberish(half))}, combine)(nodes)
        assert [n.reward for n in nodes] == expected


def test_what_the_scorer_cannot_tell_is_nan_and_what_is_no_score_is_refused():
    assert math.isnan(Gibberish(lambda exchanges: [math.nan])([node("a")])[0])
    for scores, message in (([2.0], r"scores must lie in \[0, 1\]"), ([0.1, 0.2], "2 values for 1 exchanges")):
        with pytest.raises(InputError, match=f"scorer 'gibberish' returned .*{message}"):
            Gibberish(lambda exchanges, scores=scores: scores)([node("a")])


def test_it_is_picklable_with_its_scorer():
    assert pickle.loads(pickle.dumps(Gibberish(KeywordScorer(["qsq"]))))([node("qsq")]) == [1.0]
