"""`astra-trl evaluate` on what a run left: roles, arms, targets, and what it prints and writes."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import keyword_flags
from endpoints import completion, endpoint
from test_run import FLAGS, changed
from transformers import AutoModelForCausalLM

from astra_trl import Evaluation, HFBackend, InputError
from astra_trl.cli.evaluate import evaluate
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.recipe import main as train
from astra_trl.report import markdown_report

LORA = ["--use_peft", "true", "--lora_target_modules", "c_attn", "c_proj", "--lora_r", "4", "--learning_rate", "0.1"]


@pytest.fixture(scope="module")
def runs(gpt2_folder, tmp_path_factory):
    """A run of all weights and one of an adapter, on the same openings."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"Good morning {i}, what did you cook last night?" for i in range(30)))
    common = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", str(prompts)]
    (folder / "words.txt").write_text("the\na\ne\nsecretword\n")
    common += ["--scorer", f"keyword:{folder / 'words.txt'}", *FLAGS]
    train({}, [*common, "--output_dir", str(folder / "full")])
    train({}, [*common, *LORA, "--output_dir", str(folder / "adapter")])
    return folder


def advice(*argv) -> list[str]:
    """The flags that an evaluation without them says to repeat."""
    with pytest.raises(InputError, match="asks for files, addresses or code outside of its folder") as refused:
        parse_evaluate(list(map(str, argv)))
    return shlex.split(str(refused.value).partition("repeat them: ")[2])


def run(*argv) -> Evaluation:
    argv = list(map(str, argv))
    repeated = advice(*argv) if (Path(argv[0]) / "config.yaml").exists() else []
    return evaluate(*parse_evaluate(["--draws", "20", *argv, *repeated]))


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_runs_folder_gives_the_figures_that_the_run_found(runs, kind, tmp_path, capsys):
    found = Evaluation.read(runs / kind / "evaluation" / "evaluation.json")
    # With as many sets of texts as the run drew.
    again = run(runs / kind, "--eval_openings", "4", "--output_dir", tmp_path / "out", "--draws", "200")
    assert again.arms_of() == ["tester", "baseline", "openings"]
    for arm in again.arms_of():
        for row in again.figures:
            if row["arm"] == arm and row["figure"] in {r["figure"] for r in found.figures if r["arm"] == arm}:
                assert row["value"] == pytest.approx(found.figure(row["figure"], arm).value, abs=1e-5), row
    assert again.settings["depth"] == 2
    out = capsys.readouterr().out
    assert "4 held-out openings" in out and "untrained" in out
    assert f"every figure and every exchange are in {tmp_path / 'out'}" in out
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["schema_version"] == 2
    said = (tmp_path / "out" / "exchanges.jsonl").read_text()
    run(runs / kind, "--eval_openings", "4", "--output_dir", tmp_path / "out", "--draws", "200")
    assert (tmp_path / "out" / "exchanges.jsonl").read_text() == said


def test_an_adapter_shares_one_copy_of_the_weights_with_target_and_baseline(runs, tmp_path, monkeypatch):
    loaded = []
    load = HFBackend.from_pretrained.__func__

    def counted(cls, model_id, **kwargs):
        loaded.append(str(model_id))
        return load(cls, model_id, **kwargs)

    monkeypatch.setattr(HFBackend, "from_pretrained", classmethod(counted))
    evaluation = run(runs / "adapter", "--eval_openings", "2", "--output_dir", tmp_path)
    assert len(loaded) == 1
    tester, baseline = (
        next(row["description"]["tester"] for row in evaluation.arms if row["arm"] == arm)
        for arm in ("tester", "baseline")
    )
    assert tester["weights"] != baseline["weights"]


def test_targets_arms_and_prompts_of_ones_own(runs, gpt2_folder, tmp_path, capsys):
    other = shutil.copytree(gpt2_folder, tmp_path / "other-gpt2")
    mine = tmp_path / "mine.txt"
    mine.write_text("shut up\nwhat a day\n")
    openings = tmp_path / "openings.jsonl"
    openings.write_text('{"opening": "It rained"}\n{"opening": "Thanks"}\n')
    evaluation = run(
        *(runs / "full", "--target", gpt2_folder, "--target", other, "--also", f"lora={runs / 'adapter'}"),
        *("--also", f"mine={mine}", "--prompts", openings, "--width", 2, "--depth", 1, "--output_dir", tmp_path / "o"),
    )
    first, second = ("/".join(folder.parts[-2:]) for folder in (gpt2_folder, other))
    assert evaluation.targets == [first, second]
    assert evaluation.arms_of(second) == ["tester", "baseline", "lora", "mine", "openings"]
    trees = evaluation.trees["mine", second]
    assert [tree.opening[0].text for tree in trees] == ["It rained", "Thanks"]
    assert {node.exchange.probe for tree in trees for node in tree.nodes()} <= {"shut up", "what a day"}
    assert all(len(tree.children) == 2 for tree in trees)
    out = capsys.readouterr().out
    assert "compared with" in out and "harmful responses %" in out
    # The same model under two names, so the same conversations.
    same = [[n.exchange for n in tree.nodes()] for tree in evaluation.trees["tester", first]]
    assert same == [[n.exchange for n in tree.nodes()] for tree in evaluation.trees["tester", second]]


def test_an_untrained_model_is_measured_beside_the_openings_alone(gpt2_folder, tmp_path, capsys):
    flags = [*keyword_flags("the"), "--prompts", "sandbox", "--eval_openings", "2"]
    evaluation = run(gpt2_folder, "--target", gpt2_folder, *flags, "--output_dir", tmp_path, "--max_new_tokens", 8)
    assert evaluation.arms_of() == ["tester", "openings"]
    assert "untrained" not in capsys.readouterr().out.splitlines()[0]


def test_the_default_folder_is_not_the_runs_own(runs):
    shutil.copytree(runs / "full", runs / "copy")
    own = (runs / "copy" / "evaluation" / "evaluation.json").read_bytes()
    run(runs / "copy", "--eval_openings", "2")
    assert (runs / "copy" / "evaluation" / "evaluation.json").read_bytes() == own
    assert len(list((runs / "copy").glob("evaluation-*/evaluation.json"))) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target": "no/such-target"}, "target 'no/such-target' could not be loaded"),
        ({"also": "x=no/such-tester"}, "tester 'no/such-tester' could not be loaded"),
        ({"eval_openings": "0"}, "eval_openings must be at least 1"),
        ({"threshold": "0"}, "threshold must be above 0"),
        ({"prompts": "missing.txt"}, "missing.txt"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(runs, tmp_path, flags, message, capsys):
    others = ["--target", flags["target"]] if "target" in flags else []
    argv = ["evaluate", str(runs / "full"), *advice(runs / "full", *others), "--output_dir", str(tmp_path / "out")]
    assert main(changed(argv, **flags)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_two_targets_of_one_name_are_not_mixed(runs, gpt2_folder, tmp_path):
    for place in ("one", "two"):
        shutil.copytree(gpt2_folder, tmp_path / place / "models" / "target")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "models" / "target")
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path / "two" / "models" / "target")
    flags = [part for place in ("one", "two") for part in ("--target", tmp_path / place / "models" / "target")]
    with pytest.raises(InputError, match="two targets are called 'models/target': give one of the folders another"):
        run(runs / "full", *flags, "--eval_openings", "2", "--output_dir", tmp_path / "out")


def test_another_tester_in_the_same_folder_is_refused(runs, tmp_path):
    run(runs / "full", "--eval_openings", "2", "--output_dir", tmp_path)
    with pytest.raises(InputError, match="holds figures of another tester"):
        run(runs / "adapter", "--eval_openings", "2", "--output_dir", tmp_path)


# -- what the folder of a run does not choose


def lines_of(folder):
    return [json.loads(line) for line in (folder / "exchanges.jsonl").read_text().splitlines()]


def openings_of(folder):
    return {line["probe"] for line in lines_of(folder) if line["arm"] == "openings"}


def test_the_advice_gives_the_openings_that_the_run_held_out_and_no_others(runs, gpt2_folder, tmp_path, capsys):
    folder = runs / "full"
    assert advice(folder) == [
        *("--scorer", f"keyword:{runs / 'words.txt'}", "--target", str(gpt2_folder), "--baseline", str(gpt2_folder)),
        *("--prompts", str(runs / "prompts.txt")),
    ]
    evaluation = run(folder, "--output_dir", tmp_path / "all")
    assert openings_of(tmp_path / "all") == openings_of(folder / "evaluation")
    own = Evaluation.read(folder / "evaluation" / "evaluation.json")
    assert evaluation.settings["openings_digest"] == own.settings["openings_digest"]
    run(folder, "--eval_openings", "2", "--output_dir", tmp_path / "few")
    assert openings_of(tmp_path / "few") < openings_of(folder / "evaluation")
    assert main(["evaluate", str(folder), *advice(folder), "--eval_openings", "5"]) == 1
    assert "at most the 4 that the run held out of its prompts" in capsys.readouterr().err


def test_the_words_of_a_file_are_in_nothing_that_a_run_leaves(runs):
    files = [file for file in (runs / "full").rglob("*") if file.is_file()]
    assert [file for file in files if b"secretword" in file.read_bytes()] == []
    assert "secretword" not in markdown_report([runs / "full"])
    settings = Evaluation.read(runs / "full" / "evaluation" / "evaluation.json").settings
    assert settings["scorer_settings"]["keyword"] == {
        **{"kind": "KeywordScorer", "of": "response"},
        **{"word_count": 4, "digest": "32cd9d3e545cbef7"},
    }


def test_no_line_of_a_file_reaches_an_address_because_a_folder_names_it(runs, tmp_path, gpt2_folder, capsys):
    theirs = shutil.copytree(runs / "full", tmp_path / "theirs")
    secret = tmp_path / "my secret.txt"
    secret.write_text("".join(f"The password of machine {number} is soup.\n" for number in range(30)))
    with endpoint(lambda request: completion("Fine.")) as (url, requests):
        config = yaml.safe_load((theirs / "config.yaml").read_text())
        config |= {"eval_prompts": str(secret), "target": {"model": "openai:m", "base_url": url}}
        (theirs / "config.yaml").write_text(yaml.safe_dump(config))
        argv = ["evaluate", str(theirs), *keyword_flags("e"), "--baseline", str(gpt2_folder), "--draws", "20"]
        argv += ["--eval_openings", "2", "--depth", "1"]
        assert main(argv) == 1 and requests == []
        assert capsys.readouterr().err.endswith(f"repeat them: --prompts '{secret}'\n")
        assert main([*argv, "--prompts", str(secret)]) == 0
        assert any("The password of" in json.dumps(request["messages"]) for request in requests)  # it would have
