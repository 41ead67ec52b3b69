"""What the terminal shows of an evaluation."""

import io
import math

import pytest
from rich.console import Console
from test_evaluation import TESTER, embed, harm, make_sampler, make_tester

from astra_trl import ASTEvaluator, ASTPrompterSystem, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.static import ListedBackend
from astra_trl.results.terminal import further, show, summary, transcript, transfer, weaknesses


def printed(*parts, width=80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    for part in parts:
        console.print(part)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def evaluation():
    return ASTEvaluator(make_sampler(), list(TESTER), draws=200, embedder=embed).evaluate()


def test_the_summary_puts_every_figure_beside_its_baseline(evaluation):
    lines = printed(summary(evaluation))
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["12", "held-out", "openings", "alone", "untrained", "tester", "difference"]
    share = evaluation.figure("harmful_share/harm")
    untrained = evaluation.figure("harmful_share/harm", "baseline").value
    difference = evaluation.figure("harmful_share/harm", against="baseline")
    assert lines[1].split() == [
        *("harmful", "responses", "%", "41.7", f"{100 * untrained:.1f}", "43.8"),
        f"[{100 * share.low:.1f},{100 * share.high:.1f}]",
        f"{100 * difference.value:+.1f}",
        f"[{100 * difference.low:.1f},{100 * difference.high:.1f}]",
    ]
    labels = [line[:23].strip() for line in lines]
    for label in (
        "turn 3 %",
        "by strict %",
        "before the tester %",
        "mean reward",
        "under the baseline",
        "Vendi score",
    ):
        assert label in labels
    assert lines[labels.index("failed")].split() == ["failed", "0", "0", "2"]
    assert lines[labels.index("not scored by strict")].split()[-1] == "1"
    assert lines[labels.index("empty responses")].split() == ["empty", "responses", "0", "0", "1"]


def test_a_heading_stands_only_above_figures(evaluation):
    assert "successful probes'" in [line.strip() for line in printed(summary(evaluation))]
    kind = ScriptedBackend(lambda texts, sibling: "0.1")
    system = ASTPrompterSystem(make_tester(TESTER), kind, None, harm)
    lines = printed(summary(ASTEvaluator(system, list(TESTER), draws=20).evaluate()))
    assert "successful probes'" not in [line.strip() for line in lines] and "mean reward" in "\n".join(lines)


def test_show_says_what_is_what(evaluation):
    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, highlight=False))
    text = " ".join(out.getvalue().split())
    assert "95% intervals" in text and "under the target" in text
    assert "Trained on harm; other scorers are held out." in text
    assert "\x1b" not in text


def test_without_a_baseline_the_openings_alone_are_what_it_is_compared_with():
    target = ScriptedBackend(lambda texts, sibling: "0.9" if len(texts) > 1 else "0.1")
    system = ASTPrompterSystem(make_tester(TESTER), target, None, harm)
    evaluation = ASTEvaluator(system, list(TESTER), draws=20).evaluate()
    lines = printed(summary(evaluation))
    assert lines[0].split()[-3:] == ["alone", "tester", "difference"]
    assert lines[1].split()[-4:] == ["100.0", "[72.3,100.0]", "+100.0", "[61.7,100.0]"]
    assert "untrained" not in lines[0]


def test_several_targets_make_a_table_of_transfer():
    others = [type(name, (ScriptedBackend,), {})(lambda texts, sibling, n=name: f"0.{n[-1]}") for name in ("T1", "T9")]
    evaluator = ASTEvaluator(make_sampler(), list(TESTER), draws=20)
    evaluation = evaluator.evaluate(targets=others)
    lines = printed(transfer(evaluation))
    assert lines[0].split()[-3:] == ["tester", "untrained", "alone"]
    assert lines[1].split()[0] == "T1" and lines[1].split()[1] == "0.0"
    assert lines[2].split()[0] == "T9" and lines[2].split()[1] == "100.0"


def test_further_testers_have_a_line_each():
    listed = ListedBackend(["talk about coffee 0.1"], "mine.txt")
    evaluation = ASTEvaluator(make_sampler(), list(TESTER), draws=20).evaluate({"mine": listed})
    share, more = (evaluation.figure("harmful_share/harm", *which) for which in (("mine",), ("tester", None, "mine")))
    line = printed(further(evaluation))[1].split()
    assert line[0] == "mine" and line[1] == f"{100 * share.value:.1f}" and line[3] == f"{100 * more.value:+.1f}"
    assert "mine" not in printed(summary(evaluation))[0]
    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, highlight=False))
    assert "compared with" in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 80


def test_hostile_names_and_texts_stay_text():
    scorer = {"harm": harm, "[b]e\u202e": KeywordScorer(["fool"])}
    hostile = "\x1b]0;title\x07[red]x[/red]\u202e 0.9"
    system = ASTPrompterSystem(make_tester(TESTER), ScriptedBackend(lambda texts, sibling: hostile), None, scorer)
    evaluation = ASTEvaluator(system, ["o00", "o01"], draws=5).evaluate()
    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, force_terminal=False))
    told = out.getvalue() + transcript(evaluation.trees["tester", evaluation.targets[0]][0])
    assert not set("\x1b\x07\u202e") & set(told)
    assert "[red]x[/red]" in told and "[b]e⟨U" in told


def test_a_transcript_names_what_could_not_be_measured(evaluation):
    trees = evaluation.trees["tester", "Reading"]
    assert "[failed: no answer]" in transcript(trees[4])
    assert "[failed: an earlier exchange of this conversation failed]" in " ".join(transcript(trees[4]).split())
    assert "[empty]" in transcript(trees[8])
    assert "[harm nan]" in transcript(trees[3]) and math.isnan(trees[3].children[0].scores["harm"])


@pytest.mark.parametrize(
    ("hits", "planted", "text"),
    [
        (
            {"museums": 30, "coffee": 60, "dancing": 30},
            4,
            "weak topics found: 3 of 4 in 120 hits: coffee 50%, dancing 25%, museums 25%;\n"
            "evenness 0.75 (1: all equal)",
        ),
        ({"coffee": 3}, 4, "weak topics found: 1 of 4 in 3 hits: coffee 100%; evenness 0.00 (1: all equal)"),
        ({"coffee": 3}, 1, "weak topics found: 1 of 1 in 3 hits: coffee 100%"),
        ({}, 4, "weak topics found: none"),
    ],
)
def test_weak_topics_are_shown_by_their_share_of_the_hits(hits, planted, text):
    assert weaknesses(hits, planted) == text
