"""Curves of distinct successful probes in the report: of training and of arms, by wording or by meaning."""

import json
import random

import numpy as np
import pytest
from test_report import data_of, exchange, row, write_evaluation, write_lines, write_run

from astra_trl.evaluation.rarefaction import attack_curve
from astra_trl.report.figures import tables
from astra_trl.report.wording import group_by_wording, words_of
from astra_trl.results.reading import read_folders


def cosines(texts: list[str], corpus: list[str]) -> np.ndarray:
    """The cosine of every pair, from its definition."""
    words = sorted({word for text in corpus for word in words_of(text)})
    occurs = [sum(word in words_of(text) for text in corpus) for word in words]
    weights = np.log(1 + len(corpus) / np.array(occurs))
    vectors = np.array([[words_of(text).count(word) for word in words] for text in texts]) * weights
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def test_a_group_has_the_words_of_its_first_text():
    texts = ["red fish", "Red fish!", "blue bird", "fish, red", "red fish", " ", "?!", "?!"]
    assert group_by_wording(texts, texts) == [0, 0, 1, 0, 0, None, 2, 2]
    assert group_by_wording([], []) == []
    # "with milk" is frequent here, so that the other word decides; where it is not, it is most of the text.
    frequent = ["coffee with milk", "tea with milk", *(f"{n} with milk" for n in range(40))]
    assert cosines(frequent[:2], frequent)[0, 1] < 0.7 and group_by_wording(frequent[:2], frequent) == [0, 1]
    rare = ["coffee with milk", "tea with milk", *["coffee or tea"] * 40]
    assert cosines(rare[:2], rare)[0, 1] >= 0.7 and group_by_wording(rare[:2], rare) == [0, 0]


@pytest.mark.parametrize("min_cosine", [0.3, 0.5, 0.7, 0.9])
def test_groups_are_those_of_comparing_every_text_with_every_first_one(min_cosine):
    rng = random.Random(0)
    words = [f"w{n}" for n in range(30) for _ in range(30 // (n + 1))]
    texts = [" ".join(rng.choices(words, k=rng.choice([1, 2, 4, 9]))) for _ in range(150)]
    firsts: list[int] = []
    of_pairs = cosines(texts, texts)
    for place, group in enumerate(group_by_wording(texts, texts, min_cosine)):
        near = [n for n, first in enumerate(firsts) if of_pairs[place, first] >= min_cosine - 1e-12]
        assert group == (near[0] if near else len(firsts))
        if not near:
            firsts.append(place)
    assert 5 < len(firsts) < 150


def probes(texts, harms, **more):
    return [exchange([i], text, "r", harm, **more) for i, (text, harm) in enumerate(zip(texts, harms, strict=True))]


def curve_of(data):
    (curve,) = [curve for curve in data["curves"] if curve["title"].startswith("Distinct successful probes")]
    return curve


def test_training_counts_its_distinct_successful_probes(tmp_path):
    lines = probes(["red fish", "red fish!", "a bird"], [0.9, 0.5, 0.1], round=1)
    lines += probes(["a bird", "blue whales swim", "stone"], [0.7, None, 0.6], round=2)
    lines.append(exchange([9], "cloud", "", error="no answer", round=2))
    curve = curve_of(data_of(write_run(tmp_path / "run", lines)))
    # Neither what failed nor what was not scored counts as successful; both are exchanges.
    assert curve["series"] == [{"folder": 0, "points": [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)]}]
    assert (curve["x"], curve["unit"]) == ("exchanges", "by wording, of all rounds")


def test_a_page_without_rounds_or_evaluation_has_no_curves_of_attacks(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    data = data_of(tmp_path)
    assert data["coverage"] is None and data["curves"] == []


def evaluated(folder, embedder=None, coverage=(), arms=("baseline", "tester")):
    write_evaluation(folder, arms=arms)
    data = json.loads((folder / "evaluation.json").read_text())
    data["settings"]["embedder"] = embedder
    (folder / "evaluation.json").write_text(json.dumps({**data, "coverage": list(coverage)}))
    texts, harms = ["red fish", "a bird", "red fish", "stone", "cloud"], [0.9, 0.8, 0.7, 0.1, None]
    lines = probes(texts, harms, arm="tester", target="T")
    lines += probes(texts, [0.1, 0.2, 0.3, 0.4, 0.6], arm="baseline", target="T")
    write_lines(folder / "exchanges.jsonl", lines)
    return folder


def test_arms_by_wording_leave_out_what_was_not_scored(tmp_path):
    chart = data_of(evaluated(tmp_path / "e"))["coverage"]
    assert chart["unit"] == "by wording, expected among random exchanges"
    tester, baseline = chart["series"]
    assert (tester["arm"], tester["name"], baseline["name"]) == ("tester", "tester", "untrained")
    assert tester["points"] == attack_curve(["fish", "bird", "fish", None])
    assert baseline["points"] == attack_curve([None, None, None, None, "cloud"])


def points(arm, *values):
    return [{"arm": arm, "target": "T", "exchanges": 2**i, "attacks": value} for i, value in enumerate(values)]


def test_arms_go_by_meaning_if_one_embedder_measured_all_of_them(tmp_path):
    coverage = [*points("tester", 0.5, 0.75), *points("baseline", 0.25)]
    first = evaluated(tmp_path / "a", "mini", coverage)
    chart = data_of(first)["coverage"]
    assert chart["unit"] == "by meaning (mini), expected among random exchanges"
    assert [series["points"] for series in chart["series"]] == [[(1, 0.5), (2, 0.75)], [(1, 0.25)]]
    same, other = evaluated(tmp_path / "b", "mini", coverage), evaluated(tmp_path / "c", "large", coverage)
    without = evaluated(tmp_path / "d")
    assert len(data_of(first, same)["coverage"]["series"]) == 4
    assert data_of(first, same)["coverage"]["unit"].startswith("by meaning")
    local = data_of(evaluated(tmp_path / "e", "/home/alice/models/mini", coverage))["coverage"]
    assert local["unit"].startswith("by meaning (models/mini),")  # not whose machine it was
    for beside in (other, without):
        assert data_of(first, beside)["coverage"]["unit"].startswith("by wording")


def test_no_curve_without_an_arm_to_compare_with(tmp_path):
    assert data_of(evaluated(tmp_path / "e", arms=("tester",)))["coverage"] is None


def test_very_long_trainings_are_counted_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("astra_trl.report.coverage.MAX_EXCHANGES", 3)
    data = data_of(write_run(tmp_path / "run", probes(["a", "b", "c", "d"], [1.0] * 4, round=1)))
    assert curve_of(data)["series"][0]["points"] == [(1, 1), (2, 2), (3, 3)]


def test_the_figure_has_its_place_in_the_first_table(tmp_path):
    figures = [row(arm, name, value, size=size) for arm in ("tester", "baseline") for name, value, size in
               (("harmful_share/harm", 0.5, None), ("attacks_found", 12.5, 149))]  # fmt: skip
    folders = read_folders(write_evaluation(tmp_path / "e", figures=figures))
    labels = [label for label, _ in tables(folders)["figures"].rows]
    assert labels == ["Harmful responses", "Distinct attacks found in exchanges, 149 at a time"]
