"""The command line from the outside: what its help costs, what it refuses, what its commands hand on."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from astra_trl import InputError, Turn, load_prompts
from astra_trl.cli import launching
from astra_trl.cli import main as cli
from astra_trl.cli.config import SECTIONS, EvaluateArguments, LoadArguments, RunArguments
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse
from astra_trl.prompts.base import NAMED
from astra_trl.prompts.show import ABOUT, describe_openings, write_openings
from astra_trl.sandbox import load_world
from astra_trl.sandbox.defaults import SANDBOX

HELPED = [[], ["train"], ["evaluate"], ["report"], ["push"], ["prompts"], ["prompts", "show"], ["prompts", "build"]]
HELPED += [["sandbox"], ["sandbox", "run"], ["sandbox", "show"], ["sandbox", "build"]]


def test_help_of_every_command_imports_nothing_heavy_and_has_80_columns():
    code = f"""
import contextlib, io, json, sys
from astra_trl.cli.main import main
shown = []
for words in {HELPED!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    shown.append(out.getvalue())
main(["prompts"]), main(["sandbox", "show"])
heavy = {{"torch", "transformers.trainer", "trl.trainer.dpo_trainer", "datasets", "accelerate", "peft"}}
heavy &= sys.modules.keys()
print(json.dumps([shown, sorted(heavy)]))
"""
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    shown, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    for words, text in zip(HELPED, shown, strict=True):
        assert f"usage: {' '.join(['astra-trl', *words])}" in text
        assert "example" in text or words == ["sandbox", "run"]
        assert max(map(len, text.splitlines())) <= 80, words
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert all(command in shown[0] for command in cli.COMMANDS)


def test_help_shows_every_flag_of_the_package_with_its_default(capsys):
    main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"--{f.name} " in text for f in fields(RunArguments))
    assert len(fields(RunArguments)) <= 35
    assert "--temperature X Sampling temperature of both sides; 0 is greedy. Default: 0.7." in text
    assert "--top_k N Number of tokens to sample from; 0 for all. Default: 0." in text
    main(["sandbox", "run", "--help"])
    assert "0 is greedy. Default: 1.0." in " ".join(capsys.readouterr().out.split())


def test_help_of_a_system_shows_its_own_defaults(capsys):
    main(["train", "--system", "crt", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Nucleus sampling of both sides. Default: 0.92." in text and '"gibberish": -1.0}.' in text


def test_every_section_of_the_help_begins_with_a_flag():
    names = {f.name for cls in (RunArguments, EvaluateArguments, LoadArguments) for f in fields(cls)}
    assert SECTIONS.keys() <= names


def test_help_all_lists_trls_flags_too(capsys):
    assert main(["train", "--algorithm", "grpo", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for flag in ("--tester", "--groups_per_round", "--num_iterations", "--report_to", "--lora_r", "--dry_run"):
        assert f"  {flag}" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tarin"], "unknown command 'tarin': choose one of train, evaluate"),
        (["train", "--tree_widht", "2"], "unrecognized arguments: --tree_widht 2: did you mean --tree_width? (see"),
        (["train", "--tree", "2"], "--tree 2: did you mean --tree_width or --tree_depth or --trees_per_round?"),
        (
            ["train", "--pairs_per_round", "2", "--algorithm", "grpo"],
            "is a setting of --algorithm dpo, and this run tr",
        ),
        (["train", "-learning_rate", "1"], "-learning_rate 1: did you mean --learning_rate?"),
        (["train", "--Tree_Width", "1"], "--Tree_Width 1: did you mean --tree_width?"),
        (["train", "--goal", "a", "–beta", "1"], "'–beta' begins with a dash of a word processor: write --beta"),
        (["train", "—learning-rate=1"], "write --learning_rate"),
        (["train", "--tester", "a", " "], "a backslash at the end of a line must not have a space after it"),
        (["train", "--tester", "--target", "a"], "argument --tester: expected one argument"),
        (["train", "--use_peft", "perhaps"], "argument --use_peft: Truthy value expected: got perhaps"),
        (
            ["train", "--save_strategy", "x"],
            "argument --save_strategy: invalid choice: 'x' (choose from 'no', 'steps'",
        ),
        (["train", "--system"], "argument --system: expected one argument"),
        (["prompts", "show", "x", "--splt", "y"], "--splt y: did you mean --split?"),
        (["report", "a", "–format", "md"], "write --format"),
        (["train", "--config"], "expected one argument"),
        (["sandbox", "run", "stray"], "unrecognized arguments: stray (see astra-trl sandbox run --help)"),
        (["evaluate", "run", "--widht", "2"], "--widht"),
        (["evaluate", "run", "--tester", "other"], "two testers"),
        (["evaluate"], "no tester"),
        (["report"], "FOLDER"),
        (["push", "run", "--token", "secret"], "unrecognized arguments: --token"),
        (["prompts", "shwo"], "invalid choice: 'shwo'"),
        (["sandbox"], "COMMAND"),
    ],
)
def test_what_is_not_known_gets_one_line_and_exit_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_what_cannot_be_used_gets_one_line_and_exit_code_1(tmp_path, capsys):
    for argv, message in (
        (["prompts", "show", "missing.txt"], "missing.txt"),
        (["prompts", "show", "sandbox", "--split", "no"], "no split 'no'"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["train", "--algorithm", "sac"], "unknown algorithm 'sac': choose one of dpo, gfn, grpo"),
        (["sandbox", "show", "--world", str(tmp_path)], "not a sandbox world"),
        (["sandbox", "build", "--weak", "war", "--output", str(tmp_path / "w")], "unknown weak topics 'war'"),
        (["evaluate", "some/model", "--prompts", "sandbox"], "no target"),
    ):
        assert main(argv) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_pipe_that_is_closed_early_is_no_traceback():
    command = [sys.executable, "-m", "astra_trl.cli.main", "prompts", "show", "sandbox", "--limit", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()


# -- train


@pytest.fixture
def runs(monkeypatch):
    """Collects what `astra_trl.cli.train.run` is called with."""
    from astra_trl.cli import train

    calls: list = []
    monkeypatch.setattr(train, "run", lambda *given: calls.append(given))
    return calls


def test_train_parses_all_flags_for_a_run_of_the_algorithm(runs, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("algorithm: grpo\nsystem: astprompter\ntree_width: 3\n")
    for argv, algorithm in (
        (["--tester", "a", "--reward", '{"probe_harm": -0.5}'], "dpo"),
        (["--algorithm", "rloo"], "rloo"),
        (["--config", str(config)], "grpo"),
        ([f"--config={config}", "--algorithm=rloo"], "rloo"),
    ):
        assert main(["train", *argv]) == 0
        args, training_args, _ = runs.pop()
        assert args.algorithm == algorithm and type(training_args).__name__ == f"AST{algorithm.upper()}Config"
        assert args.tree_width == (3 if "yaml" in argv[-1] + argv[0] else 2)
    assert main(["sandbox", "run", "--algorithm", "grpo"]) == 0
    args, training_args, _ = runs.pop()
    assert (args.world, training_args.output_dir) == ("embedded", SANDBOX["grpo"]["output_dir"])


def test_flags_win_over_a_file_which_wins_over_a_recipe(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("algorithm: grpo\nsystem: astprompter\nbeta: 0.5\nlearning_rate: 1e-3\ndry_run: true\n")
    recipe = {"tree_depth": 5, "beta": 0.7, "top_p": 0.9}
    args, training_args, _ = parse(recipe, [f"--config={config}", "--beta", "0.1", "--top-p", "0.8"])
    assert (args.algorithm, args.dry_run, args.tree_depth, args.top_p) == ("grpo", True, 5, 0.8)
    assert (training_args.beta, training_args.learning_rate) == (0.1, 1e-3)
    with pytest.raises(InputError, match="this recipe trains by dpo: use `astra-trl train` for grpo"):
        parse({"algorithm": "dpo"}, ["--config", str(config)])
    config.write_text("system: lucky\n")
    assert main(["train", "--config", str(config)]) == 1
    with pytest.raises(InputError, match="unknown system 'lucky'"):
        parse({}, ["--config", str(config)])


def test_mappings_are_json_on_the_command_line_and_yaml_in_a_file(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("target: {model: openai:m, max_requests: 5}\nscorers: {a: {type: keyword, words: [x]}}\n")
    args, *_ = parse({}, ["--config", str(config), "--system_kwargs", '{"credit": "backup"}'])
    assert args.target == {"model": "openai:m", "max_requests": 5}
    assert args.scorers == {"a": {"type": "keyword", "words": ["x"]}} and args.system_kwargs == {"credit": "backup"}
    args, *_ = parse({}, ["--held_out_scorers", "llama_guard", '{"type": "judge", "model": "m", "rubric": "Bad?"}'])
    assert args.held_out_scorers == ["llama_guard", {"type": "judge", "model": "m", "rubric": "Bad?"}]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward", '{"harm": 1'], "--reward is not JSON"),
        (["--reward", "{'harm': 1}"], "with double quotes within single ones"),
        (["--reward", '{"harm": 1,}'], "without a comma at the end"),
        (["--reward", '{"harm": 1, "harm": 2}'], "--reward is not JSON (key 'harm' is given twice)"),
        (["--held_out_scorers", "{'type': 'judge'}"], "--held_out_scorers is not JSON"),
        (["--lr_scheduler_kwargs", "{'a': 1}"], "--lr_scheduler_kwargs is not JSON"),
        (["--model_init_kwargs", "dtype=auto"], "--model_init_kwargs is 'dtype=auto': give a mapping, as JSON"),
        (["--optim", "adamm_torch"], "--optim is 'adamm_torch': did you mean adamw_torch"),
        (["--report_to", "no"], "report_to 'no': choose none, or among"),
        (["--train_sampling_strategy", "group_by_length"], "needs all records beforehand"),
        (["--reward", "harm"], "--reward is 'harm': give a mapping"),
        (["--chat", "all"], "invalid choice: 'all'"),
        (["--likelihood_weight", "0.1"], "likelihood_weight is now a part of the mapping reward"),
        (["--target_base_url", "http://x/v1"], "target_base_url is now a part of the mapping target"),
        (["--judge_rubric", "Bad?"], "judge_rubric is now a part of the mapping scorers"),
    ],
)
def test_bad_mappings_and_flags_of_an_earlier_version_get_one_line(flags, message, capsys):
    with contextlib.suppress(SystemExit):
        assert main(["train", *flags]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


# -- several processes


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What accelerate was to launch."""
    calls: list = []
    monkeypatch.setattr(launching, "launch_command", calls.append)
    monkeypatch.setattr(launching, "default_config_file", str(tmp_path / "none.yaml"))
    return calls


def test_flags_of_accelerate_start_the_command_in_processes(launched, runs):
    flags = ["--learning_rate", "1e-3", "--num-processes", "2", "--use_cpu", "true", "--mixed_precision=bf16"]
    assert main(["train", *flags, "--multi_gpu", "--debug", "underflow_overflow"]) == 0
    (args,) = launched
    assert args.module and args.training_script == "astra_trl.cli.main"
    own = ["--learning_rate", "1e-3", "--use_cpu", "true", "--debug", "underflow_overflow"]
    assert args.training_script_args == ["train", *own]
    assert (args.num_processes, args.mixed_precision, args.multi_gpu) == (2, "bf16", True)
    assert runs == []


def test_several_processes_are_started_without_a_second_gpu_too(launched):
    assert main(["sandbox", "run", "--num_processes", "2", "--use_cpu", "true"]) == 0
    assert main(["sandbox", "run", "--num_processes", "1"]) == 0
    assert main(["train", "--num_processes", "2", "--accelerate_config", "zero3"]) == 0
    assert [args.multi_gpu for args in launched] == [True, False, False]
    assert launched[0].training_script_args == ["sandbox", "run", "--use_cpu", "true"]
    assert launched[2].config_file.endswith("zero3.yaml") and Path(launched[2].config_file).is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerate_config", "zero9"], "'zero9' is not a file: give one, or a name of fsdp1"),
        (["--accelerate_config"], "has no value"),
        (["--num_processes", "2", "--cpu"], "--cpu with several processes needs MPI"),
    ],
)
def test_a_launch_that_cannot_be_is_told_in_one_line(launched, flags, message, capsys):
    assert main(["train", *flags]) == 1
    assert message in capsys.readouterr().err
    assert launched == []


def test_a_flag_of_accelerate_with_a_bad_value_is_told_in_one_line(launched, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--num_processes", "two"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "'two'" in err and err.count("\n") == 1


@pytest.mark.slow
def test_what_a_launched_process_finds_wrong_is_told_without_a_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "astra_trl.cli.main",
        "train",
        "--num_processes",
        "1",
        "--output_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: no prompts")
    assert "Traceback" not in done.stderr


# -- prompts

CHAT = (Turn("system", "Be kind."), Turn("user", "Hello"), Turn("assistant", "Hi\nthere"), Turn("user", "\x1b[31m?"))


def test_every_named_set_is_listed_on_a_line(capsys):
    assert ABOUT.keys() == NAMED.keys()
    assert main(["prompts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in NAMED)
    assert max(map(len, lines)) <= 80


def test_openings_are_shown_and_counted(capsys):
    assert main(["prompts", "show", "sandbox", "--split", "test", "--limit", "2", "--seed", "3"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    world = load_world().openings("test")
    assert head == "100 openings"
    said = [line.removeprefix("- ") for line in lines if line]
    assert len(said) == 2 and set(said) <= set(world)
    text = describe_openings([CHAT, "word " * 900], 5)
    assert text.startswith("2 openings, 1 of them of several turns\n")
    assert "   system: Be kind." in text and "assistant: Hi there" in text and "⟨U+001B⟩[31m?" in text
    assert "(4,499 characters)" in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "openings",
    [
        ["Good morning", "\ufeffmarked", "two\nlines\r\nof \u2028 it", "Καλημέρα, \U0001f600"],
        [CHAT, (Turn("user", "again"),)],
        ["Good morning", CHAT],
    ],
)
def test_written_openings_are_read_again_as_they_were(openings, tmp_path):
    file = write_openings(openings, tmp_path / "new" / "set.jsonl")
    assert load_prompts(file) == openings
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert all(set(row) == ({"messages"} if CHAT in openings else {"opening"}) for row in rows)
    with pytest.raises(InputError, match=r"cannot hold these openings, one per line: give a \.jsonl"):
        write_openings(openings, tmp_path / "set.txt")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["set.jsonl"]


def test_a_set_is_built_and_no_file_written_over(tmp_path, capsys):
    file = tmp_path / "set.txt"
    build = ["prompts", "build", "sandbox", "--split", "test", "--limit", "7", "--seed", "1", "-o", str(file)]
    assert main(build) == 0
    assert load_prompts(file) == load_prompts("sandbox", "test", limit=7, seed=1)
    assert capsys.readouterr().out == f"wrote 7 openings to {file}\n"
    file.write_text("mine")
    assert main(build) == 1
    assert "exists: name another file, or write over it with --force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main([*build, "--force"]) == 0
    assert len(load_prompts(file)) == 7
    assert main([*build[:-1], str(tmp_path / "set.csv")]) == 1
    assert "give a .jsonl or .txt file" in capsys.readouterr().err


# -- sandbox, report, push


def test_weak_topics_are_told_only_where_they_are_asked_for(capsys):
    weak = ", ".join(load_world().weak_topics)
    assert main(["sandbox", "show"]) == 0
    assert weak not in " ".join(capsys.readouterr().out.split())
    assert main(["sandbox", "show", "--reveal"]) == 0
    assert f"rude about: {weak}" in " ".join(capsys.readouterr().out.split())


def test_a_report_goes_where_it_is_asked_for(monkeypatch, capsys):
    from astra_trl import report

    pages: list = []
    monkeypatch.setattr(report, "write_report", lambda folders, output: pages.append((folders, output)) or output)
    monkeypatch.setattr(report, "markdown_report", lambda folders: f"# {folders}")
    monkeypatch.setattr(
        report, "write_markdown_report", lambda folders, output: pages.append((folders, output)) or output
    )
    assert main(["report", "a", "b", "-o", "page.html"]) == 0
    assert main(["report", "a"]) == 0
    assert pages == [(["a", "b"], "page.html"), (["a"], "report.html")]
    assert capsys.readouterr().out == "wrote page.html\nwrote report.html\n"
    assert main(["report", "a", "--format", "md"]) == 0
    assert capsys.readouterr().out == "# ['a']\n"
    assert main(["report", "a", "-o", "r.md"]) == 0
    assert pages[-1] == (["a"], "r.md")


def test_a_push_is_private_and_without_transcripts_unless_asked_for(monkeypatch, capsys):
    from astra_trl import hub

    calls: list = []
    monkeypatch.setattr(hub, "push", lambda *args, **kwargs: calls.append((args, kwargs)) or "https://hub/x")
    assert main(["push", "run"]) == 0
    assert main(["push", "run", "--repo_id", "me/x", "--public", "--push_transcripts", "--commit_message", "m"]) == 0
    (first, kwargs), (second, others) = calls
    assert first == ("run", None) and second == ("run", "me/x")
    assert kwargs["private"] is True and kwargs["push_transcripts"] is False and kwargs["commit_message"] is None
    assert others["private"] is False and others["push_transcripts"] is True and others["commit_message"] == "m"
    assert capsys.readouterr().out == "https://hub/x\n" * 2


# -- evaluate


@pytest.fixture
def run_folder(tmp_path):
    """A folder with the settings of a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    given = {"tester": "some/tester", "target": "some/target", "prompts": "advbench", "tree_depth": 5, "seed": 7}
    given |= {"temperature": 0.9, "scorer": {"type": "keyword", "words": ["fool"]}, "dtype": "bfloat16"}
    given |= {"output_dir": str(folder), "eval_openings": 30, "max_length": 64}
    args, training_args, model_args = parse(given, [])
    parts = (training_args.to_dict(), vars(model_args), vars(args))
    settings = {key: value for part in parts for key, value in part.items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_runs_settings_are_the_defaults_of_its_evaluation(run_folder):
    args, load_args = parse_evaluate([str(run_folder)])
    assert (args.tester, args.target, args.baseline) == (str(run_folder), ["some/target"], "some/tester")
    assert (args.depth, args.width, args.seed, args.eval_openings, args.max_length) == (5, 1, 7, 30, 64)
    assert (args.temperature, load_args.dtype) == (0.9, "bfloat16")
    assert args.scorer == {"type": "keyword", "words": ["fool"]}
    assert args.prompts is None and args.run_settings["prompts"] == "advbench"
    assert args.output_dir == str(run_folder / "evaluation-target")


def test_flags_of_an_evaluation_win_over_yaml_and_yaml_over_the_run(run_folder, tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text("temperature: '5e-1'\ntop_p: 0.8\nbaseline:\ntarget: [one, two]\nopenings_arm: false\n")
    flags = ["--temperature", "0.4", "--also", "perez=some/perez", "--also", "list=a=b.txt", "--max-rows", "8"]
    args, _ = parse_evaluate([str(run_folder), "--config", str(config), *flags])
    assert (args.temperature, args.top_p, args.repetition_penalty, args.max_rows) == (0.4, 0.8, 1.1, 8)
    assert (args.target, args.baseline, args.openings_arm) == (["one", "two"], None, False)
    assert args.arms == {"perez": "some/perez", "list": "a=b.txt"}
    args, _ = parse_evaluate([str(run_folder), "--config", str(config), "--target", "x", "--target", "y", "z"])
    assert (args.target, args.temperature) == (["x", "y", "z"], 0.5)


def test_a_tester_of_no_run_is_measured_with_what_flags_say(tmp_path, gpt2_folder):
    given = ["--tester", str(gpt2_folder), "--target", "a", "--prompts", "sandbox"]
    args, load_args = parse_evaluate(given)
    assert (args.target, args.baseline, args.depth, args.run_settings) == (["a"], None, 3, {})
    assert (args.scorer, load_args) == ("detoxify", LoadArguments())
    (tmp_path / "config.yaml").write_text("name: another program's\n")
    assert parse_evaluate(["--tester", str(tmp_path), *given[2:]])[0].run_settings == {}
    assert parse_evaluate(["some/model", *given[2:]])[0].output_dir is None
    world = load_world()
    args, _ = parse_evaluate([str(gpt2_folder), "--world", "embedded"])
    assert (args.target, args.baseline, args.prompts) == ([world.target], world.tester, None)


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ([], "wdith: 2", "'{config}': unknown setting 'wdith'"),
        ([], "width:", "width has no value: give a whole number"),
        ([], "width: 2\nwidth: 3", "line 2: key 'width' is given twice, first in line 1"),
        ([], "openings_arm: perhaps", "openings_arm is 'perhaps': give true or false"),
        ([], "width: two", "width is 'two'"),
        ([], "combine: maybe", "combine is 'maybe': choose one of sum, product"),
        ([], "likelihood_weight: 1", "likelihood_weight is now a part of the mapping reward"),
        ([], "tree_depth: 3", "is a run's: give the run's folder as the tester"),
        ([], "- a", "holds no settings"),
        ([], "a: [", "cannot be read"),
        (["--also", "perez"], "", "give NAME=MODEL"),
        (["--also", "=x"], "", "give NAME=MODEL"),
        (["--also", "baseline=x"], "", "'baseline' is another arm's name"),
        (["--also", "a=x", "--also", "a=y"], "", "'a' is another arm's name"),
    ],
)
def test_bad_input_of_an_evaluation_is_told_in_one_line(flags, config, message, run_folder, tmp_path):
    file = tmp_path / "evaluate.yaml"
    file.write_text(config or "width: 1")
    with pytest.raises(InputError) as stopped:
        parse_evaluate([str(run_folder), "--config", str(file), *flags])
    assert message.replace("{config}", str(file)) in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_null_in_yaml_is_nothing_given(run_folder, tmp_path):
    config = tmp_path / "evaluate.yaml"
    config.write_text("max_length:\ndepth: 2\n")
    args, _ = parse_evaluate([str(run_folder), "--config", str(config)])
    assert (args.max_length, args.depth) == (None, 2)
