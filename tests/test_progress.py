"""Progress bars: counted to their total, one at a time, and shown on a terminal or if they are asked for."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_trainer_evaluation import make_trainer
from tqdm.auto import tqdm

from astra_trl import ASTEvaluator, ASTPrompterSystem, ASTSampler, InputError, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.function import FunctionBackend
from astra_trl.embedding import SentenceEmbedder
from astra_trl.progress import ProgressBar, bars_within
from astra_trl.rollout.collector import Draws, collect_trees
from astra_trl.rollout.records import preference_records
from astra_trl.rollout.teaching import Teaching
from astra_trl.scorers.base import score_distinct
from astra_trl.trainers.ppo.contexts import collect_contexts


class Terminal(io.StringIO):
    def isatty(self):
        return True


OPENINGS = [f"opening {number}" for number in range(5)]


@pytest.fixture
def bars(monkeypatch):
    """What each bar had counted when it was closed: description, count, total."""
    counted, close = [], ProgressBar.close

    def record(bar):
        if not bar.disable:
            counted.append((bar.desc, bar.n, bar.total))
        close(bar)

    monkeypatch.setattr(ProgressBar, "close", record)
    return counted


@pytest.fixture
def on_terminal(monkeypatch):
    """Makes stderr a terminal, within the test as pytest sets its own after the fixtures."""

    def start():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return start


def make_system(scorer=None):
    tester = ScriptedBackend(lambda texts, sibling: f"probe {sibling} {texts[0]}")
    target = ScriptedBackend(lambda texts, sibling: "fool" if "probe 1" in texts[-1] else "nice")
    baseline = ScriptedBackend(lambda texts, sibling: "")
    return ASTPrompterSystem(tester, target, baseline, scorer or KeywordScorer(["fool"]))


def collect(disable):
    ASTSampler(make_system(), OPENINGS, 2, 3).collect(4, disable_tqdm=disable)


def evaluate(disable):
    ASTEvaluator(make_system(), OPENINGS, depth=2, openings_at_a_time=2, disable_tqdm=disable).evaluate()


EVALUATED = [("evaluating: tester", 10, 10), ("evaluating: baseline", 10, 10), ("evaluating: openings", 5, 5)]
LONG = pytest.mark.parametrize(
    ("run", "expected"), [(collect, [("collecting", 56, 56)]), (evaluate, EVALUATED)], ids=["collect", "evaluate"]
)


@LONG
def test_bars_count_to_their_total_on_a_terminal(bars, on_terminal, run, expected):
    terminal = on_terminal()
    run(None)
    assert [bar for bar in bars if bar[0] not in ("reading probes", "computing")] == expected
    assert {count == total for _, count, total in bars} == {True}
    assert "\n" not in terminal.getvalue()  # one line, which is empty at the end
    assert terminal.getvalue().split("\r")[-2].strip() == ""
    assert f"| 0/{expected[0][2]} exchanges [00:00<?]" in terminal.getvalue()


@LONG
def test_bars_are_hidden_without_a_terminal_and_shown_if_asked_for(capsys, run, expected):
    run(None)
    run(True)
    assert capsys.readouterr() == ("", "")
    run(False)
    assert f"{expected[0][0]}:   0%" in capsys.readouterr().err


@LONG
def test_bars_are_hidden_on_a_terminal_if_disabled(on_terminal, run, expected):
    terminal = on_terminal()
    run(True)
    assert terminal.getvalue() == ""


def test_only_the_main_process_shows_a_bar(monkeypatch, on_terminal):
    terminal = on_terminal()
    monkeypatch.setattr("accelerate.PartialState", lambda: SimpleNamespace(is_main_process=False))
    with ProgressBar("counting", 3, disable=False) as bar:
        bar.update(3)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("outer", [lambda: tqdm(desc="outer", total=2), lambda: ProgressBar("outer", 2)])
def test_a_bar_covers_the_bar_around_it(on_terminal, outer):
    terminal = on_terminal()
    with outer() as around:
        around.update()
        before = len(terminal.getvalue())
        with ProgressBar("inner", 3) as bar:
            bar.update(3)
            around.refresh()  # e.g. by a thread
            during = terminal.getvalue()[before:]
        assert "inner" in during and "outer" not in during and not {"\n", "\x1b"} & set(during)
        assert terminal.getvalue()[before:].split("\r")[-1].startswith("outer:  50%")
        around.update()
        assert around.n == 2


def test_a_delayed_bar_leaves_the_bar_around_it_alone_until_it_appears(on_terminal):
    terminal = on_terminal()
    with ProgressBar("outer", 2):
        before = terminal.getvalue()
        with ProgressBar("short", 3, delay=60) as bar:
            bar.update(3)
        assert terminal.getvalue() == before


def test_disable_holds_for_the_bars_within(on_terminal):
    terminal = on_terminal()
    with bars_within(True):
        ProgressBar("a", 1).close()
        with ProgressBar("b", 1, disable=False), ProgressBar("c", 1):
            pass
    with ProgressBar("d", 1, disable=True), ProgressBar("e", 1):
        pass
    shown = {part.partition(":")[0] for part in terminal.getvalue().split("\r") if part.strip()}
    assert shown == {"b", "c"}
    with ProgressBar("f", 1):
        assert "f:" in terminal.getvalue()  # the default again


def test_a_bar_is_closed_by_an_error(on_terminal):
    terminal = on_terminal()

    def broken(exchanges):
        raise InputError("the scorer is broken")

    with pytest.raises(InputError, match="broken"):
        ASTSampler(make_system(broken), OPENINGS).collect(2)
    assert terminal.getvalue().split("\r")[-2].strip() == ""
    assert not [bar for bar in tqdm._instances if not bar.disable]


def test_scoring_embedding_and_calls_have_bars(monkeypatch, bars, on_terminal):
    on_terminal()
    for module in ("scorers.base", "embedding", "backends.api.calls"):
        monkeypatch.setattr(f"astra_trl.{module}.DELAY", 0)
    assert score_distinct(["a", "b", "c", "a"], lambda texts: [0.5] * len(texts), 2) == [0.5] * 4
    model = SimpleNamespace(encode=lambda texts, **kwargs: np.array([[float(text)] for text in texts]))
    assert SentenceEmbedder(model)([str(n) for n in range(1000)]).tolist() == [[float(n)] for n in range(1000)]
    session = FunctionBackend(lambda messages: "fine", name="product").open(["a", "b"], seeds=[0, 1])
    assert [sample.text for sample in session.sample()] == ["fine", "fine"]
    assert bars == [("scoring", 3, 3), ("embedding", 1000, 1000), ("calling product", 2, 2)]


def test_a_round_counts_at_least_what_it_needs(bars, on_terminal):
    terminal = on_terminal()
    sampler = ASTSampler(make_system(), OPENINGS, 2, 2)  # 3 groups and 6 exchanges per tree; each group is a pair
    collect_trees(sampler, Draws(0, 2, 20), 12, preference_records)
    assert bars == [("collecting", 24, 24)]
    assert "0/24 exchanges" in terminal.getvalue()  # known from the beginning
    # Without any pair, up to all trees.
    sampler = ASTSampler(make_system(KeywordScorer(["nothing"])), OPENINGS, 2, 2)
    collect_trees(sampler, Draws(0, 2, 7, description="round 4: collecting"), 12, lambda trees: [])
    assert bars[1:] == [("round 4: collecting", 42, 42)]
    collect_contexts(sampler, Draws(0, 2, 20), 10)  # 3 contexts per tree, and a last turn that is not grown
    assert bars[2:] == [("collecting", 8, 8)]


def test_a_round_with_teaching_counts_its_trees(bars, on_terminal, monkeypatch):
    on_terminal()
    monkeypatch.setattr(
        "astra_trl.rollout.collector.teaching_records", lambda tester, pairs, seeds: [{"tree": None} for _ in pairs]
    )
    sampler = ASTSampler(make_system(), OPENINGS, 2, 1)
    trees, lessons = collect_trees(sampler, Draws(0, 4, 12), 12, preference_records, Teaching([("a", "b")], 0.5))
    assert lessons and trees and bars == [("collecting", 2 * len(trees), 2 * len(trees))]


def test_a_trainer_has_bars_of_training_collecting_and_evaluating(bars, tmp_path, capsys):
    trainer = make_trainer(tmp_path, "dpo", num_train_epochs=2, eval_strategy="epoch", disable_tqdm=False)
    trainer.train()
    trainer.evaluate()
    counted = [bar for bar in bars if bar[0] != "reading probes"]
    evaluated = ("evaluating: tester", 6, 6)
    rounds = [(f"round {number}: collecting", *[total] * 2) for (number, total) in ((1, 12), (2, 12))]
    reference = ("reference", 4, 4)
    assert counted == [
        *(rounds[0], reference, evaluated),
        *(rounds[1], reference, evaluated),
        *(("training", 2, 2), evaluated),
    ]
    assert "training:" in capsys.readouterr().err


@pytest.mark.parametrize("disable", [None, True])
def test_a_trainer_without_a_terminal_prints_its_table_alone(tmp_path, capsys, disable):
    trainer = make_trainer(tmp_path, "dpo", num_train_epochs=1, disable_tqdm=disable)
    assert trainer.args.disable_tqdm is disable  # also in `config.yaml`, by which a run is started again
    trainer.train()
    trainer.evaluate()
    shown = capsys.readouterr()
    assert "exchanges [" not in shown.err and "steps [" not in shown.err
    assert ("   round   harmful" in shown.out) == (disable is None)


def test_a_trainer_that_hides_bars_hides_those_of_its_scorer(tmp_path, on_terminal, monkeypatch):
    terminal = on_terminal()
    monkeypatch.setattr("astra_trl.scorers.base.DELAY", 0)

    def scorer(exchanges):
        return score_distinct([exchange.response for exchange in exchanges], lambda texts: [0.5] * len(texts), 1)

    trainer = make_trainer(tmp_path, "dpo", scorer, num_train_epochs=1, disable_tqdm=True)
    trainer.train()
    trainer.evaluate()
    assert "texts [" not in terminal.getvalue()
