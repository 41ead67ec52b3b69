"""Settings in a YAML file and as flags: each is read as the type of its field, or refused in one line."""

import os
import threading
from pathlib import Path

import pytest

from astra_trl import InputError
from astra_trl.cli import launching, train
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse

QUIET = {"report_to": "none", "output_dir": "out"}


def parsed(content: str | bytes, tmp_path, *flags: str) -> dict:
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    parts = parse(QUIET, ["--config", str(file), *flags])
    return {key: value for part in parts[::-1] for key, value in vars(part).items()}


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("tree-width: 3", "tree_width", 3),
        ("save_strategy: no", "save_strategy", "no"),
        ("save_strategy: off", "save_strategy", "no"),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("prompts: yes", "prompts", "yes"),
        ("goal: [no, yes]", "goal", ["no", "yes"]),
        ("goal: on", "goal", ["on"]),
        ("output_dir: 2024-01-01", "output_dir", "2024-01-01"),
        ("tester: 0123456", "tester", "0123456"),
        ("tester: 12:30", "tester", "12:30"),
        ("tester: a\nmodel_revision: 12e5", "model_revision", "12e5"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", "true"),
        ("report_to: none", "report_to", []),
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: '1e-5'", "learning_rate", 1e-5),
        ("max_grad_norm: 1", "max_grad_norm", 1),
        ("target_sampling: {temperature: 1e-1}", "target_sampling", {"temperature": 0.1}),
        ("use_peft: yes", "use_peft", True),
        ("use_peft: 'false'", "use_peft", False),
        ("bf16: off", "bf16", False),
        ("loss_type: ipo", "loss_type", ["ipo"]),
        ("include_num_input_tokens_seen: no", "include_num_input_tokens_seen", "no"),
        ('{"tree_width": 3}', "tree_width", 3),
        ('{\n\t"tree_width": 3,\n\t"temperature": 1e-1}', "temperature", 0.1),
        ("\ufefftree_width: 3", "tree_width", 3),
        ("tree_width: 3".encode("utf-16"), "tree_width", 3),
        ("tree_depth: &depth 3\ntree_width: *depth", "tree_width", 3),
    ],
)
def test_a_value_in_a_file_is_read_as_the_type_of_its_field(content, name, value, tmp_path):
    found = parsed(content, tmp_path)[name]
    assert found == value and type(getattr(found, "value", found)) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tree_width: 1\ntree_width: 2", "cannot be read: line 2: key 'tree_width' is given twice, first in line 1"),
        ("tree-width: 1\ntree_width: 2", "tree_width is given twice, with a hyphen and without: give it once"),
        ("tree_widht: 3", "unknown setting 'tree_widht': did you mean tree_width?"),
        ("groups_per_round: 3", "groups_per_round is a setting of --algorithm gfn, and this run trains by dpo"),
        ("nothing_like_it: 3", "unknown setting 'nothing_like_it': astra-trl train --help lists them"),
        ("1: 3", "unknown setting '1'"),
        ("learning_rate: abc", "learning_rate is 'abc': give a number"),
        ("learning_rate:", "learning_rate has no value: give a number"),
        ("tree_width: 2.5", "tree_width is 2.5: give a whole number"),
        ("seed: yes", "seed is yes: give a whole number"),
        ("use_peft: perhaps", "use_peft is 'perhaps': give true or false"),
        ("save_strategy: perhaps", "save_strategy is 'perhaps': choose one of no, steps, epoch, best"),
        ("optim: adamm_torch", "optim is 'adamm_torch': did you mean adamw_torch"),
        ("chat: no", "chat is no: choose one of none, tester, target, both"),
        ("reward: [harm]", "reward is a list: give a mapping"),
        ("tree_width: {a: 1}", "tree_width is a mapping: give a whole number"),
        ("prompts: [a]", "prompts is a list: give text"),
        ("lr_scheduler_kwargs: a", "lr_scheduler_kwargs is 'a': give a mapping"),
        ("", "holds no settings, it is empty: give lines of `flag: value`"),
        ("- a", "holds no settings, it is a list"),
        ("tree_width:3", "holds no settings, it is text: give lines of `flag: value`, with a space between"),
        ("a:\n\tb: 1", "cannot be read: line 2: a tab: indent with spaces"),
        (b"tester: a\nprompts: caf\xe9", "cannot be read: line 2 is not UTF-8: save it as UTF-8 text"),
        ("env: [A]", "env is not a mapping of environment variables"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_line_with_its_name(content, message, tmp_path):
    with pytest.raises(InputError) as stopped:
        parsed(content, tmp_path)
    assert str(stopped.value).startswith(f"config '{tmp_path / 'run.yaml'}'") and message in str(stopped.value)


def test_a_folder_or_a_missing_file_is_refused_with_what_to_give(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    assert main(["train", "--config", str(run)]) == 1
    assert "Is a directory: give a YAML file" in capsys.readouterr().err
    (run / "config.yaml").touch()
    assert main(["train", "--config", str(run)]) == 1
    assert f"Is a directory: give '{run / 'config.yaml'}'" in capsys.readouterr().err
    assert main(["evaluate", "a", "--config", str(tmp_path / "missing.yaml")]) == 1
    assert "No such file or directory: give a YAML file" in capsys.readouterr().err


def pipe(path, content: str) -> None:
    os.mkfifo(path)
    threading.Thread(target=path.write_text, args=(content,), daemon=True).start()


def test_a_pipe_is_read_once(tmp_path, monkeypatch):
    runs: list = []
    monkeypatch.setattr(train, "run", lambda *parts: runs.append(parts))
    pipe(tmp_path / "pipe", "algorithm: grpo\ntree_width: 3\n")
    assert main(["train", "--config", str(tmp_path / "pipe"), "--report_to", "none"]) == 0
    assert (runs[0][0].algorithm, runs[0][0].tree_width) == ("grpo", 3)
    pipe(tmp_path / "other", "width: 3\n")
    args, _ = parse_evaluate(["a", "--target", "b", "--prompts", "sandbox", "--config", str(tmp_path / "other")])
    assert args.width == 3


def test_each_of_several_processes_gets_what_a_pipe_held(tmp_path, monkeypatch):
    read: list = []

    def launch(args) -> None:
        path = args.training_script_args[args.training_script_args.index("--config", 3) + 1]
        read.append((args.training_script_args[:3], Path(path).read_text()))

    monkeypatch.setattr(launching, "launch_command", launch)
    pipe(tmp_path / "pipe", "tree_width: 3\n")
    assert main(["train", "--config", str(tmp_path / "pipe"), "--num_processes", "1"]) == 0
    assert read == [(["train", "--config", str(tmp_path / "pipe")], "tree_width: 3\n")]


def test_the_last_of_repeated_flags_holds_and_numbers_may_be_negative():
    argv = ["--tree_width", "3", "--tree-width=4", "--algorithm", "grpo", "--algorithm=rloo"]
    args, training_args, _ = parse(QUIET, [*argv, "--reward_clip_range", "-5e-1", "5"])
    assert (args.tree_width, args.algorithm) == (4, "rloo")
    assert [*training_args.reward_clip_range] == [-0.5, 5.0]
