"""Settings that libraries refuse: one line each, before anything is collected."""

import sys

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from peft import LoraConfig

from astra_trl import ASTSampler, HFASTSystem, HFBackend, InputError, KeywordScorer, SamplingParams
from astra_trl.cli.main import main
from astra_trl.libraries import explained
from astra_trl.trainers import TRAINERS, trainer_classes

SAMPLING = SamplingParams(max_new_tokens=4, min_new_tokens=1)


def build(folder, algorithm="dpo", tokenizer=None, peft_config=None, **settings):
    own = make_tokenizer()
    tester = HFBackend(make_gpt2(own), tokenizer or own, SAMPLING)
    system = HFASTSystem(tester, HFBackend(make_gpt2(own, 1), own, SAMPLING), None, KeywordScorer(["soup"]))
    config_class, trainer_class = trainer_classes(algorithm)
    settings = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": 2, **settings}
    args = config_class(str(folder), **settings)
    return trainer_class(ASTSampler(system, ["hi"], 2, 1), args, peft_config=peft_config)


def algorithms():
    return [name for name in TRAINERS if name != "ppo" or _has_ppo()]


def _has_ppo():
    try:
        import trl.experimental.ppo  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("algorithm", algorithms())
def test_lora_modules_that_fit_nothing_are_answered_with_those_that_do(tmp_path, algorithm):
    with pytest.raises(InputError, match=r"among c_attn, c_fc, c_proj, or all-linear \(Target modules") as caught:
        build(tmp_path, algorithm, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, ValueError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algorithm", algorithms())
def test_a_pad_token_that_the_tester_does_not_know_is_refused(tmp_path, algorithm):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(InputError, match="pad token '<pad>' that the tester does not know, .* 320 tokens"):
        build(tmp_path, algorithm, tokenizer)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no pad token and no EOS, and training pads rows with it"):
        build(tmp_path, algorithm, tokenizer)


def test_another_pad_token_can_be_given(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    trainer = build(tmp_path, tokenizer=tokenizer, pad_token=tokenizer.eos_token)
    assert trainer.processing_class.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_8bit"}, r"the optimizer adamw_8bit cannot be used: install the package .*bitsandbytes"),
        ({"optim_args": "a"}, r"the optimizer .* cannot be used: .*--optim_args\) \(not enough values"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"--lr_scheduler_kwargs\) \(One of min_lr or min_lr_rate"),
        ({"report_to": "wandb"}, r"report_to wandb cannot be used: install it \(pip install wandb\), or .* none"),
        ({"report_to": "nothing"}, "report_to 'nothing': choose none, or among"),
        ({"use_liger_kernel": True}, "use_liger_kernel needs Liger: install it"),
        ({"fsdp": "full_shard"}, r"start it in several processes \(--num_processes, .* \(Using fsdp only"),
    ],
)
def test_what_libraries_refuse_is_one_line(tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        build(tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_what_trl_refuses_in_its_first_step_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"the first training step failed: .* \(Unknown loss type: nonsense"):
        build(tmp_path, "grpo", loss_type="nonsense", num_train_epochs=1).train()


def test_the_cause_can_be_seen(capsys, monkeypatch):
    run = ["sandbox", "run", "--optim", "adamw_8bit", "--output_dir", "unused"]
    assert main(run) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: the optimizer adamw_8bit") and shown.count("\n") == 1
    monkeypatch.setenv("ASTRA_TRL_TRACEBACK", "1")
    assert main(run) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "direct cause" in shown and "\nerror: the optimizer adamw_8bit" in shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("no x\nmore"), r"^it: install the package that is missing, .* \(ImportError: no x\)$"),
        (RuntimeError("\n\n  Validation failed for:\n  field a\n  and more"), r"^it: fix it \(RuntimeError: Valid"),
        (ValueError("Validation failed for:\n  field a"), r"^it: fix it \(Validation failed for: field a\)$"),
        (torch.OutOfMemoryError("CUDA out of memory."), "choose a smaller model"),
        (KeyError("a"), r"\(KeyError: 'a'\)$"),
        (ValueError(""), r"\(ValueError: \)$"),
    ],
)
def test_errors_of_libraries_are_told_by_their_first_meaningful_line(error, message):
    with pytest.raises(InputError, match=message) as caught, explained("it", "fix it"):
        raise error
    assert caught.value.__cause__ is error


def test_a_bug_keeps_its_type():
    with pytest.raises(AssertionError), explained("it", "fix it"):
        raise AssertionError
    with pytest.raises(TypeError), explained("it", "fix it", errors=(ImportError,)):
        raise TypeError


def test_a_config_that_needs_a_missing_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert main(["sandbox", "run", "--deepspeed", "/no/such/file.json", "--output_dir", "unused"]) == 1
    assert capsys.readouterr().err.startswith("error: a setting needs a package that is missing: install it (")


@pytest.mark.slow
def test_a_compiled_tester_is_trained_and_sampled_without_its_wrapper(tmp_path):
    trainer = build(tmp_path, "grpo", torch_compile_backend="eager", num_train_epochs=1, disable_tqdm=True)
    trainer.train()
    assert trainer.state.global_step > 0
    assert trainer.sampler.system.tester.model is trainer.accelerator.unwrap_model(trainer.model, False, False)
