"""An evaluation in a folder: written while it runs, resumed after a crash, never run twice."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_evaluation import TESTER, make_sampler, strict

from astra_trl import ASTEvaluator, ASTPrompterSystem, Evaluation, InputError, KeywordScorer
from astra_trl.backends import ScriptedBackend
from astra_trl.evaluation.arms import BASELINE
from astra_trl.evaluation.arms import TESTER as TESTER_ARM
from astra_trl.evaluation.folder import EvaluationFolder
from astra_trl.lines import as_line, read_lines

FIELDS = {"draws": 30, "openings_at_a_time": 5}


def evaluate(folder, sampler=None, **fields) -> Evaluation:
    return ASTEvaluator(sampler or make_sampler(), list(TESTER), output_dir=folder, **{**FIELDS, **fields}).evaluate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    evaluate(folder)
    return folder


def test_killed_at_any_byte_a_second_evaluation_ends_the_same(whole, tmp_path):
    transcript = (whole / "exchanges.jsonl").read_bytes()
    cuts = [0, 1, len(transcript) - 1, *random.Random(0).sample(range(len(transcript)), 60)]
    for number, cut in enumerate(cuts):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(whole / "settings.json", folder)
        (folder / "exchanges.jsonl").write_bytes(transcript[:cut])
        evaluate(folder)
        assert (folder / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes(), cut
        assert sorted((folder / "exchanges.jsonl").read_bytes().splitlines()) == sorted(transcript.splitlines())
        assert not list(folder.glob("*.tmp"))


def contents(folder):
    """Everything but the lock's note, which tells the minute it was taken."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock.json"}


def test_a_whole_one_is_not_run_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "again")
    before = contents(folder)
    file = (folder / "exchanges.jsonl").stat().st_ino

    def never(texts, sibling):
        raise AssertionError("grown again")

    sampler = make_sampler()
    for backend in (sampler.system.tester, sampler.system.target, sampler.system.baseline):
        object.__setattr__(backend, "reply", never)
    evaluation = evaluate(folder, sampler)
    assert contents(folder) == before
    assert len(evaluation.trees["tester", "Reading"]) == 12
    assert (folder / "exchanges.jsonl").stat().st_ino == file  # nor written again


def test_what_was_read_back_equals_what_was_grown(whole):
    grown = ASTEvaluator(make_sampler(), list(TESTER), **FIELDS).evaluate()
    read = evaluate(whole)
    assert read == grown
    for key, trees in grown.trees.items():
        for tree, again in zip(trees, read.trees[key], strict=True):
            without_ids = [(p, {**n.to_json(), "prompt_ids": [], "probe_ids": []}) for p, n in tree.walk()]
            assert [(path, node.to_json()) for path, node in again.walk()] == without_ids
            assert again.opening == tree.opening


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"threshold": 0.7}, "threshold"),
        ({"depth": 2}, "depth"),
        ({"width": 2}, "width"),
        ({"openings_at_a_time": 4}, "openings_at_a_time"),
        ({"scorers": {"more": strict}}, "scorers"),
        ({"scorers": {"strict": KeywordScorer(["fool"])}}, "scorer_settings"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(whole, tmp_path, fields, named):
    folder = shutil.copytree(whole, tmp_path / "other")
    before = contents(folder)
    with pytest.raises(InputError, match=rf"holds an evaluation with different settings: .*\b{named} \("):
        evaluate(folder, **fields)
    assert contents(folder) == before


def test_other_openings_are_other_settings(whole):
    with pytest.raises(InputError, match="openings_digest"):
        ASTEvaluator(make_sampler(), [*list(TESTER)[1:], "o12"], output_dir=whole, **FIELDS)


def test_another_tester_under_the_same_name_is_refused_or_replaced(tmp_path):
    def sampler(word):
        tester = ScriptedBackend(lambda texts, sibling: word)
        object.__setattr__(tester, "description", {"backend": "ScriptedBackend", "model": word})
        target = ScriptedBackend(lambda texts, sibling: f"you {texts[-1]}")
        return ASTPrompterSystem(tester, target, None, KeywordScorer(["fool"]))

    def evaluator(word):
        return ASTEvaluator(sampler(word), ["a", "b"], depth=1, output_dir=tmp_path, draws=5)

    first = evaluator("fool")
    first.measure(BASELINE)
    first.measure(TESTER_ARM)
    assert first.evaluation().figure("harmful_share/harm").value == 1.0
    with pytest.raises(InputError, match="holds figures of another tester against 'ScriptedBackend'"):
        evaluator("friend").measure(TESTER_ARM)
    second = evaluator("friend")
    second.measure(TESTER_ARM, replace=True)
    assert second.evaluation().figure("harmful_share/harm").value == 0.0
    lines = [json.loads(line) for line in (tmp_path / "exchanges.jsonl").read_text().splitlines()]
    assert [(line["arm"], line["probe"]) for line in lines] == [("baseline", "fool")] * 2 + [("tester", "friend")] * 2


def test_a_process_that_does_not_write_reads_only(whole, tmp_path):
    folder = EvaluationFolder(tmp_path / "none", {}, writes=False)
    folder.begin({"arm": "tester", "target": "a", "description": {}})
    folder.add("tester", "a", [0], ASTEvaluator(make_sampler(), list(TESTER), **FIELDS).measure()[:1])
    folder.finish({})
    assert not (tmp_path / "none").exists()


def test_texts_that_json_and_utf8_dislike_come_back(tmp_path):
    text = 'new\nline \u2028 "quoted" \x00 \x1b[31m 日本'
    tester = ScriptedBackend(lambda texts, sibling: "probe")
    system = ASTPrompterSystem(tester, ScriptedBackend(lambda texts, sibling: text), None, KeywordScorer(["日本"]))
    for _ in range(2):
        trees = ASTEvaluator(system, ["a", "b"], depth=1, output_dir=tmp_path).measure()
        assert [tree.children[0].exchange.response for tree in trees] == [text, text]
    assert len((tmp_path / "exchanges.jsonl").read_bytes().splitlines()) == 2


def test_half_a_surrogate_pair_is_written_as_json_can(tmp_path):
    line = as_line({"response": "日本 \ud83d"})
    (tmp_path / "lines.jsonl").write_text(line + as_line({"response": "日本"}), encoding="utf-8")
    assert [row["response"] for row in read_lines(tmp_path / "lines.jsonl")] == ["日本 \ud83d", "日本"]


def test_damaged_or_foreign_results_are_refused(tmp_path):
    for text, message in (
        ("{", "is damaged"),
        ("{}", "has schema_version None, and this version of astra_trl reads 2"),
        ('{"schema_version": 99}', "has schema_version 99, and this version of astra_trl reads 2"),
    ):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Evaluation.read(tmp_path / "evaluation.json")
    with pytest.raises(InputError, match="cannot be read .No such file.*evaluate the tester first"):
        Evaluation.read(tmp_path / "missing.json")


SCRIPT = """
import sys
from astra_trl import ASTEvaluator, HFASTSystem, KeywordScorer
from astra_trl.sandbox import load_world
world = load_world()
system = HFASTSystem(world.tester, world.target, world.tester, KeywordScorer(world.rude_words))
openings = world.openings("test")[:40]
ASTEvaluator(system, openings, output_dir=sys.argv[1], openings_at_a_time=8, draws=50).evaluate()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_with_real_models_ends_with_the_same_file(tmp_path):
    def run(folder, kill_after=None):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stderr=subprocess.DEVNULL)
        while kill_after is not None and process.poll() is None:
            time.sleep(0.01)
            file = folder / "exchanges.jsonl"
            if file.exists() and file.stat().st_size > kill_after:
                process.send_signal(signal.SIGKILL)
        return process.wait()

    assert run(tmp_path / "whole") == 0
    size = (tmp_path / "whole" / "exchanges.jsonl").stat().st_size
    killed = tmp_path / "killed"
    for share in (0.1, 0.6):
        assert run(killed, share * size) == -signal.SIGKILL
        assert not (killed / "evaluation.json").exists()
    assert run(killed) == 0
    for name in ("evaluation.json", "settings.json", "exchanges.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
