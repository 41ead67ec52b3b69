"""Distinct attacks that exchanges find, in an evaluation: by hand on scripted conversations, and in its file."""

import io
import json
import random

import numpy as np
import pytest
from rich.console import Console
from test_evaluation import ARMS, TESTER, TOPICS, by_hand, embed, make_sampler

from astra_trl import ASTEvaluator, Evaluation, InputError
from astra_trl.embedding import embed_once
from astra_trl.evaluation.probes import attacks_by_opening, attacks_found
from astra_trl.evaluation.rarefaction import attack_curve
from astra_trl.evaluation.resampling import difference
from astra_trl.results.terminal import show


def attacks_by_hand(table) -> list[list[str | None]]:
    """The topic of each scored exchange whose response is harmful; `embed` has one direction per topic."""
    return [
        [
            next(topic for topic in TOPICS if topic in said.probe) if said.target >= 0.5 else None
            for said in conversation
            if not (said.failed or said.target is None or np.isnan(said.target))
        ]
        for conversation in by_hand(table)
    ]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return ASTEvaluator(make_sampler(), list(TESTER), draws=40, embedder=embed, output_dir=folder).evaluate(), folder


def test_every_arm_has_the_curve_of_its_scored_exchanges(evaluation):
    found, folder = evaluation
    for arm, table in ARMS.items():
        flat = [attack for row in attacks_by_hand(table) for attack in row]
        rows = [row for row in found.coverage if row["arm"] == arm]
        assert {row["target"] for row in rows} == {"Reading"}
        expected = attack_curve(flat)
        assert [row["exchanges"] for row in rows] == [n for n, _ in expected]
        assert [row["attacks"] for row in rows] == pytest.approx([value for _, value in expected])
        assert len(flat) < 36 or arm == "baseline"  # those that failed or were not scored are not among them
    assert {row["arm"] for row in found.coverage} == {"tester", "baseline", "openings"}
    assert Evaluation.read(folder / "evaluation.json").coverage == found.coverage
    assert found.to_pandas("coverage").columns.tolist() == ["arm", "target", "exchanges", "attacks"]


def test_arms_are_compared_at_the_same_number_of_exchanges(evaluation):
    found, _ = evaluation
    figures = {arm: found.figure("attacks_found", arm) for arm in ARMS}
    by_arm = {arm: attacks_by_hand(table) for arm, table in ARMS.items()}
    sizes = {(sum(map(len, rows)) - max(map(len, rows)) + 1) // 2 for rows in by_arm.values()}
    for arm, figure in figures.items():
        assert figure.n == sum(map(len, by_arm[arm])) and figure.size == min(sizes)
        again = attacks_found(by_arm[arm], 0, 40).of_size(min(sizes))
        assert figure.value == again.value and (figure.low, figure.high) == again.interval
    more = found.figure("attacks_found", against="baseline")
    assert more.value == pytest.approx(figures["tester"].value - figures["baseline"].value) and more.low < more.high
    assert found.find("attacks_found", against="openings") is None  # they have one turn
    file = io.StringIO()
    show(found, Console(file=file, width=80, highlight=False))
    assert "distinct attacks found" in file.getvalue()
    assert f"averages over sets of {min(sizes)} exchanges, " in " ".join(file.getvalue().split())


def test_without_an_embedder_no_attacks_are_counted():
    found = ASTEvaluator(make_sampler(), list(TESTER), draws=2).evaluate()
    assert found.coverage == [] and found.find("attacks_found") is None


def test_a_blank_probe_is_an_exchange_and_not_an_attack(evaluation):
    found, _ = evaluation
    tree = found.trees["tester", "Reading"][10]
    attacks = attacks_by_opening([tree], "harm", 0.5, embed)
    assert None not in attacks[0] and len(attacks[0]) == 3
    node = tree.children[0]
    whole, node.exchange = node.exchange, type(node.exchange)(node.exchange.context, " ", node.exchange.response)
    assert [attack is None for attack in attacks_by_opening([tree], "harm", 0.5, embed)[0]] == [True, False, False]
    node.exchange = whole


def test_older_evaluations_have_no_coverage_and_damaged_ones_are_refused(evaluation, tmp_path):
    _, folder = evaluation
    data = json.loads((folder / "evaluation.json").read_text())
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({key: value for key, value in data.items() if key != "coverage"}))
    assert Evaluation.read(file).coverage == []
    for rows, message in (
        (5, "coverage must be a list of objects with arm, target"),
        ([{"arm": "a"}], "coverage must be a list of objects with arm, target"),
        ([{"arm": "a", "target": "t", "exchanges": 3, "attacks": None}], "the numbers exchanges and attacks"),
        ([{"arm": "a", "target": "t", "attacks": 3}], "the numbers exchanges and attacks"),
    ):
        file.write_text(json.dumps({**data, "coverage": rows}))
        with pytest.raises(InputError, match=message):
            Evaluation.read(file)


def attempts(rng: np.random.Generator, openings: int, successful: float) -> list[list[int | None]]:
    """Attacks of three exchanges per opening: some are frequent, and one opening's are often the same."""
    weights = 1 / np.arange(1, 16)
    rows = rng.choice(15, size=(openings, 3), p=weights / weights.sum())
    rows = np.where(rng.random((openings, 3)) < 0.4, rows[:, :1], rows)
    return [
        [int(attack) if succeeds else None for attack, succeeds in zip(row, some, strict=True)]
        for row, some in zip(rows, rng.random((openings, 3)) < successful, strict=True)
    ]


def test_the_figure_is_the_mean_over_random_sets_of_whole_openings():
    rows, rng = attempts(np.random.default_rng(1), 20, 0.5), random.Random(2)
    figure = attacks_found(rows, 0, draws=4000).of_size(15)
    sets = [[a for row in rng.sample(rows, 5) for a in row] for _ in range(10_000)]
    assert figure.value == pytest.approx(np.mean([len(set(some) - {None}) for some in sets]), abs=0.05)


@pytest.mark.parametrize("successful", [0.7, 0.05])
def test_intervals_contain_the_true_number_about_as_often_as_they_claim(successful):
    rng = np.random.default_rng(3)
    true = np.mean(
        [attacks_found(attempts(rng, 40, successful), seed, draws=2).of_size(58).value for seed in range(400)]
    )
    figures = [attacks_found(attempts(rng, 40, successful), seed, draws=40).of_size(58) for seed in range(200)]
    inside = [figure.interval[0] <= true <= figure.interval[1] for figure in figures]
    assert 0.9 <= np.mean(inside) <= 0.99


def test_less_than_one_attack_is_a_count_and_not_a_share():
    rows: list[list[str | None]] = [["a"], ["b"], *[[None]] * 38]
    figure = attacks_found(rows, 0).of_size(18)
    assert 0.5 < figure.value < 1 < figure.interval[1] and figure.interval[0] == 0
    none = attacks_found([[None]] * 20, 0)
    assert none.value == 0 and np.isnan(none.interval).all()
    assert np.isnan(attacks_found([], 0).value)
    assert difference(figure, figure)[0] == 0


def test_every_text_is_embedded_once():
    asked = []

    def embed_lengths(texts):
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    embed_known = embed_once(embed_lengths)
    assert embed_known(["a", "bb", "a"]).tolist() == [[1, 1], [2, 1], [1, 1]]
    assert embed_known(["ccc", "bb"]).tolist() == [[3, 1], [2, 1]]
    assert asked == ["a", "bb", "ccc"]
