"""A run that was interrupted anywhere: killed, out of disk or budget, settings changed, checkpoints broken."""

import json
import logging
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import HAS_PPO, keyword_flags, make_gpt2, make_tokenizer
from test_dpo import SAMPLING, lines, make_trainer, weights
from test_groups import make_trainer as make_groups_trainer
from transformers import TrainerCallback

from astra_trl import HFASTSystem, HFBackend, InputError, KeywordScorer
from astra_trl.cli.recipe import main
from astra_trl.errors import RunStopped
from astra_trl.trainers import TRAINERS, checkpoints, trainer_classes
from astra_trl.trainers.checkpoints import RESUMABLE, SEAL, last_whole, refuse_changes

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run that saved at every step, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    trainer = make_trainer(folder, **EVERY_STEP)
    trainer.train()
    return folder, weights(trainer.model)


@pytest.mark.slow
def test_a_run_killed_at_twelve_points_of_all_phases_ends_as_one_that_was_not(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "12", "--seed", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *kills, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, [kill for kill in kills if kill["differs"]]
    assert summary["differing"] == 0 and len(kills) == 12
    assert {"evaluating", "collecting", "between", "training", "saving"} <= set(summary["phases"])
    assert all(kill["ends"][0] != 0 and kill["ends"][-1] == 0 for kill in kills)  # each was really killed


def test_the_kills_would_tell_of_a_log_that_starts_anew(tmp_path, monkeypatch):
    """What is compared notices what transformers alone would lose."""
    whole = make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=2, logging_steps=3)
    whole.train()
    restore = checkpoints.restore_counters
    for folder, restored in ((tmp_path / "restored", True), (tmp_path / "lost", False)):
        shutil.copytree(tmp_path / "whole", folder)
        shutil.rmtree(folder / "checkpoint-6")
        shutil.rmtree(folder / "checkpoint-4")
        resumed = make_trainer(folder, save_strategy="steps", save_steps=2, logging_steps=3)
        monkeypatch.setattr(checkpoints, "restore_counters", restore if restored else lambda *given: None)
        resumed.train(resume_from_checkpoint=True)
        logs = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (resumed, whole)]
        assert (logs[0] == logs[1]) is restored
        losses = [t.state.log_history[-1]["train_loss"] for t in (resumed, whole)]
        assert (losses[0] == losses[1]) is restored


def test_a_checkpoint_brings_in_no_file_from_outside_of_its_folder(saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "run")
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(saved[0] / "checkpoint-2")
    (folder / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state))
    sealed = checkpoints.read_seal(saved[0] / "checkpoint-6")
    (folder / "checkpoint-6" / SEAL).unlink()
    checkpoints.seal(folder / "checkpoint-6", {name: value for name, value in sealed.items() if name != "files"})
    trainer = make_trainer(folder, **EVERY_STEP)
    trainer.args.load_best_model_at_end = True
    with pytest.raises(InputError, match="checkpoint-6' names a best checkpoint of another folder, '.*/saved.*2'"):
        checkpoints.load_checkpoint(trainer, True)
    (folder / "checkpoint-6" / "rng_state.pth").unlink()
    (folder / "checkpoint-6" / "rng_state.pth").symlink_to(saved[0] / "checkpoint-6" / "rng_state.pth")
    with pytest.raises(InputError, match="rng_state.pth' is a link out of its folder"):
        checkpoints.load_checkpoint(trainer, str(folder / "checkpoint-6"))


@pytest.mark.parametrize("damage", ["no seal", "broken seal", "cut", "missing"])
def test_a_checkpoint_that_is_not_whole_is_skipped_and_says_so(damage, saved, tmp_path, caplog):
    folder, ends_with = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    last = tmp_path / "checkpoint-6"
    if damage == "no seal":
        (last / SEAL).unlink()
    elif damage == "broken seal":
        (last / SEAL).write_text('{"files": ["model.safet')
    elif damage == "cut":
        file = last / "optimizer.pt"
        file.write_bytes(file.read_bytes()[:-10])
    else:
        (last / "scheduler.pt").unlink()
    with caplog.at_level(logging.WARNING, "astra_trl"):
        assert last_whole(tmp_path) == tmp_path / "checkpoint-5"
    assert "checkpoint-6 was not written to its end" in caplog.text
    with pytest.raises(InputError, match="checkpoint-6' is not a whole checkpoint: give 'true'"):
        make_trainer(tmp_path, **EVERY_STEP).train(resume_from_checkpoint=str(last))
    resumed = make_trainer(tmp_path, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    torch.testing.assert_close(weights(resumed.model), ends_with, rtol=0, atol=0)
    assert last_whole(tmp_path) == last  # written again, and whole


def test_without_a_whole_checkpoint_the_run_begins_again_in_its_folder(tmp_path, caplog):
    whole = make_trainer(tmp_path)
    whole.train()
    again = make_trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "astra_trl"):
        again.train(resume_from_checkpoint=True)
    assert "holds no whole checkpoint: the run begins from its start" in caplog.text
    torch.testing.assert_close(weights(again.model), weights(whole.model), rtol=0, atol=0)
    assert [line["round"] for line in lines(tmp_path / "rounds.jsonl")] == [1, 2, 3]


def test_checkpoints_behind_the_one_that_is_resumed_are_not_taken_up_later(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    stopped = make_trainer(tmp_path, save_strategy="no", callbacks=[_StopAt(3)])
    stopped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert last_whole(tmp_path) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-6").is_dir()  # it is still there to look at


@pytest.mark.parametrize("limit", [None, 9])
def test_a_checkpoint_whose_deletion_was_interrupted_is_deleted_on_resume(limit, saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    resumed = make_trainer(tmp_path, save_total_limit=limit, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-2").exists() is (limit is None)  # without a limit, nothing is ever deleted
    assert (tmp_path / "checkpoint-1").is_dir() and last_whole(tmp_path) == tmp_path / "checkpoint-6"


def test_only_the_last_whole_checkpoints_are_kept_and_none_before_the_next_is_whole(tmp_path):
    trainer = make_trainer(tmp_path, save_total_limit=1, **EVERY_STEP)
    there = []

    class Watched(type(trainer)):
        def save_model(self, output_dir=None, _internal_call=False):
            super().save_model(output_dir, _internal_call)
            there.append(sorted(path.parent.name for path in tmp_path.glob(f"checkpoint-*/{SEAL}")))

    trainer.__class__ = Watched
    trainer.train()
    assert there == [[], *([f"checkpoint-{step}"] for step in range(1, 6))]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert trainer.args.save_total_limit == 1


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "exchanges.jsonl"])
def test_a_full_disk_stops_with_one_line_and_the_last_checkpoint_stays(file, saved, tmp_path):
    whole, ends_with = saved
    folder = tmp_path / "run"
    sizes = {path.name: path.stat().st_size for path in (whole / "checkpoint-3").iterdir()}
    sizes["exchanges.jsonl"] = (whole / "exchanges.jsonl").stat().st_size

    class Fill(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 3:  # stands for a full disk: no file may grow beyond
                limit = sizes[file] - (sizes[file] // 6 if file == "exchanges.jsonl" else 50)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    save = EVERY_STEP if file != "exchanges.jsonl" else {"save_strategy": "steps", "save_steps": 3}
    try:
        with pytest.raises(InputError) as stopped:
            make_trainer(folder, callbacks=[Fill()], **save).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    message = str(stopped.value)
    assert "is full" in message and "continues from checkpoint-3" in message and "\n" not in message
    assert sorted(path.name for path in folder.glob("checkpoint-*"))[-1] == "checkpoint-3"  # half a one is removed
    resumed = make_trainer(folder, **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), ends_with, rtol=0, atol=0)
    assert lines(folder / "exchanges.jsonl") == lines(whole / "exchanges.jsonl")


def test_changed_settings_are_refused_by_name_and_harmless_ones_taken(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    for changed, message in (
        ({"learning_rate": 1e-2}, r"learning_rate \(0.001, now 0.01\)"),
        ({"depth": 1, "pairs_per_round": 4}, r"pairs_per_round \(8, now 4\), tree_depth \(2, now 1\)"),
        ({"width": 3}, r"tree_width \(2, now 3\)"),
        (
            {"per_device_train_batch_size": 2, "seed": 5},
            r"per_device_train_batch_size \(4, now 2\), seed \(42, now 5\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(tmp_path, **{**EVERY_STEP, **changed}).train(resume_from_checkpoint=True)
    harmless = {"logging_steps": 2, "save_steps": 2, "num_train_epochs": 4, "run_name": "other", "save_total_limit": 9}
    resumed = make_trainer(tmp_path, **{**EVERY_STEP, **harmless})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.epoch == 4.0
    with pytest.raises(InputError, match=r"processes \(1, now 2\)"):
        refuse_changes({"processes": 1}, {"processes": 2}, tmp_path)


def test_settings_of_logging_saving_and_the_hub_may_change_in_every_supported_trl():
    algorithms = [name for name in TRAINERS if name != "ppo" or HAS_PPO]
    names = {
        setting.name: config
        for name in algorithms
        for config in trainer_classes(name)[:1]
        for setting in fields(config)
    }
    free = re.compile(
        r"(log|save|hub|push|trackio|ddp)(_|ging).*|(do|eval)_(train|eval|predict|strategy|steps|delay).*"
    )
    assert not [n for n, config in names.items() if free.fullmatch(n) and n not in RESUMABLE | config.resumable]


def test_a_checkpoint_without_an_optimizer_is_no_place_to_go_on_from(tmp_path):
    make_trainer(tmp_path, save_only_model=True, **EVERY_STEP).train()
    with pytest.raises(InputError, match="save_only_model"):
        make_trainer(tmp_path, **EVERY_STEP).train(resume_from_checkpoint=True)


@pytest.fixture
def arguments(gpt2_folder, tmp_path):
    from test_run import FLAGS

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Good morning {i}, what did you cook?" for i in range(30)))
    roles = ["--tester", str(gpt2_folder), "--target", str(gpt2_folder), "--prompts", str(prompts)]
    scorer = [*keyword_flags("the", "a", "e")]
    return [*roles, *scorer, "--output_dir", str(tmp_path / "run"), *FLAGS, "--save_strategy", "epoch"]


def test_a_recipe_on_an_unfinished_run_says_how_to_resume_and_touches_nothing(
    arguments, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    with patch("astra_trl.trainers.rounds.RoundsMixin.end_round", killed), pytest.raises(Killed):
        main({}, arguments)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="an unfinished run: resume it with --resume_from_checkpoint"):
        main({}, arguments)
    for flags, message in (
        (["--tree_width", "3"], r"settings were different: tree_width \(2, now 3\)"),
        (["--prompts", str(tmp_path / "other.txt")], r"prompts \('.*prompts.txt', now '.*other.txt'\)"),
    ):
        (tmp_path / "other.txt").write_text((tmp_path / "prompts.txt").read_text())
        with pytest.raises(SystemExit, match=message):
            main({}, [*arguments, *flags, "--resume_from_checkpoint", "true"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    main({}, [*arguments, "--resume_from_checkpoint", "true", "--logging_steps", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"] == 2
    with pytest.raises(SystemExit, match="holds another run"):
        main({}, arguments)


@dataclass
class Metered:
    """A target that counts what it is asked, and stops the run where that is too much."""

    backend: HFBackend
    most: float = float("inf")
    usage: dict = field(default_factory=lambda: {"requests": 0})
    gives_logprobs: bool = True

    def open(self, *args, **kwargs):
        return _MeteredSession(self, self.backend.open(*args, **kwargs))

    def reopen(self, *args, **kwargs):
        return _MeteredSession(self, self.backend.reopen(*args, **kwargs))


class _MeteredSession:
    def __init__(self, owner, session):
        self.owner, self.session = owner, session

    def branch(self, children):
        return _MeteredSession(self.owner, self.session.branch(children))

    def sample(self):
        samples = self.session.sample()
        self.owner.usage["requests"] += len(samples)
        if self.owner.usage["requests"] > self.owner.most:
            raise RunStopped("the budget of requests is spent")
        return samples

    def __getattr__(self, name):
        return getattr(self.session, name)


def metered_system(most):
    tokenizer = make_tokenizer()
    tester, target = (HFBackend(make_gpt2(tokenizer, seed), tokenizer, SAMPLING) for seed in (0, 1))
    return HFASTSystem(tester, Metered(target, most), None, KeywordScorer(["soup", "the", "a", "e"]))


def metered_trainer(algorithm, folder, most):
    system = metered_system(most)
    if algorithm == "dpo":
        return make_trainer(folder, system)
    if algorithm == "grpo":
        return make_groups_trainer(folder, algorithm, system=system)
    from test_ppo import make_trainer as make_ppo_trainer

    return make_ppo_trainer(folder, system, num_train_epochs=3)


@pytest.mark.parametrize(
    "algorithm",
    [
        "dpo",
        "grpo",
        pytest.param("ppo", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_PPO, reason="no PPOTrainer")]),
    ],
)
def test_a_spent_budget_stops_at_a_checkpoint_and_more_of_it_goes_on(algorithm, tmp_path):
    whole = metered_trainer(algorithm, tmp_path / "whole", float("inf"))
    whole.train()
    asked = whole.sampler.system.target.usage["requests"]
    assert json.loads((tmp_path / "whole" / "usage.json").read_text())["requests"] <= asked
    folder = tmp_path / "run"
    stopped = metered_trainer(algorithm, folder, most := int(asked * 0.6))
    with pytest.raises(RunStopped, match=r"^the budget of requests is spent; .*true continues from checkpoint-\d+"):
        stopped.train()
    last = last_whole(folder)
    assert last is not None and 0 < stopped.state.global_step < whole.state.global_step
    assert last.name == f"checkpoint-{stopped.state.global_step}"
    assert json.loads((folder / "usage.json").read_text())["requests"] >= most
    counted = (folder / "usage.json").read_bytes()
    (folder / "usage.json").write_bytes(counted[:-3])
    with pytest.raises(InputError, match=r"usage\.json' is damaged .*: delete it, and a budget counts from here"):
        metered_trainer(algorithm, folder, most).train(resume_from_checkpoint=True)
    (folder / "usage.json").write_bytes(counted)
    still = metered_trainer(algorithm, folder, most)
    with pytest.raises(RunStopped):  # what was asked before still counts
        still.train(resume_from_checkpoint=True)
    resumed = metered_trainer(algorithm, folder, float("inf"))
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert lines(folder / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")


def test_a_round_that_was_collected_as_a_whole_is_not_asked_for_again(tmp_path, monkeypatch):
    whole = make_trainer(tmp_path / "whole", save_strategy="epoch")
    whole.train()
    folder = tmp_path / "run"

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    class KillInRound3(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise Killed

    with pytest.raises(Killed):
        make_trainer(folder, save_strategy="epoch", callbacks=[KillInRound3()]).train()
    resumed = make_trainer(folder, save_strategy="epoch")
    monkeypatch.setattr(resumed, "collect_round", killed)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert lines(folder / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
