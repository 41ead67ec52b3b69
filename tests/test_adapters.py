"""A tester that is an adapter: training goes on with it, and the baseline is what it was before."""

import json

import pytest
import torch
from conftest import keyword_flags, make_gpt2, make_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_dpo import _StopAfter
from test_groups import make_trainer as make_group_trainer
from test_run import FLAGS
from transformers import AutoModelForCausalLM

import astra_trl
from astra_trl import (
    ASTDPOConfig,
    ASTDPOTrainer,
    ASTSampler,
    ASTSFTConfig,
    ASTSFTTrainer,
    HFASTSystem,
    HFBackend,
    InputError,
    SamplingParams,
)
from astra_trl.cli.recipe import main as train
from astra_trl.trainers import roles

LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", r=4, lora_dropout=0.2)
PROMPTS = ["Good morning", "The train was late again", "Thanks"]
CONFIG = {
    "num_train_epochs": 2,
    "trees_per_round": 4,
    "learning_rate": 0.05,
    "max_grad_norm": 0.0,
    "disable_tqdm": True,
    "save_strategy": "no",
    "report_to": "none",
}


@pytest.fixture
def adapter(gpt2_folder, tmp_path):
    """An adapter that was trained: its weights are far from those of a new one."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(gpt2_folder), LORA)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def harm(exchanges):
    return [len(e.probe) % 5 / 4 for e in exchanges]


def make_trainer(folder, algorithm, tester, target, peft_config=None, callbacks=None, **config):
    system = HFASTSystem(str(tester), str(target), None, harm, device="cpu")
    if algorithm in ("gfn", "grpo", "rloo"):
        settings = {**CONFIG, "beta": 0.1, "per_device_train_batch_size": 4, **config}
        settings |= {"peft_config": peft_config, "callbacks": callbacks}
        return make_group_trainer(folder, algorithm, system, prompts=PROMPTS, **settings)
    if algorithm == "ppo":
        pytest.importorskip("trl.experimental.ppo")
        args = astra_trl.ASTPPOConfig(
            str(folder),
            **CONFIG,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            bf16=False,
            logging_steps=1,
        )
        return astra_trl.ASTPPOTrainer(ASTSampler(system, PROMPTS, 2, 2), args, peft_config=peft_config)
    trainer, args = {"dpo": (ASTDPOTrainer, ASTDPOConfig), "sft": (ASTSFTTrainer, ASTSFTConfig)}[algorithm]
    sampler = ASTSampler(system, PROMPTS, 2, 2)
    return trainer(sampler, args(str(folder), **{**CONFIG, **config}), peft_config=peft_config, callbacks=callbacks)


def logits_of(folder, base):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return model(torch.arange(1, 9)[None]).logits


def logits_by(backend):
    with backend.inference():
        return backend.model(torch.arange(1, 9)[None]).logits.clone()


@pytest.mark.parametrize("algorithm", ["dpo", "gfn", "grpo", "rloo", "sft", "ppo"])
def test_training_goes_on_with_the_adapter(tmp_path, gpt2_folder, adapter, algorithm):
    trainer = make_trainer(tmp_path / "run", algorithm, adapter, gpt2_folder)
    system, start = trainer.sampler.system, logits_of(adapter, gpt2_folder)
    base = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()(torch.arange(1, 9)[None]).logits.detach()
    assert (start - base).abs().max() > 0.1
    torch.testing.assert_close(logits_by(system.tester), start)
    trainer.train()
    trainer.save_model()
    # Trained, and from where the adapter was; the target and the baseline are where they were.
    assert (logits_by(system.tester) - start).abs().max() > 1e-3
    torch.testing.assert_close(logits_by(system.target), base)
    torch.testing.assert_close(logits_by(trainer.baseline()), start)
    torch.testing.assert_close(logits_by(system.tester), logits_of(tmp_path / "run", gpt2_folder))
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(gpt2_folder)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "run"))
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)
    assert all(parameter.requires_grad == (".default." in name) for name, parameter in trained_of(trainer))
    if algorithm == "ppo":  # the reference is what the policy was, without the dropout of either adapter
        first = next(entry for entry in trainer.state.log_history if "objective/kl" in entry)
        assert first["objective/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_a_resumed_run_keeps_the_adapter_that_it_started_from(tmp_path, gpt2_folder, adapter, algorithm):
    saving = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "trees_per_round": 1}
    whole = make_trainer(tmp_path / "whole", algorithm, adapter, gpt2_folder, **saving)
    whole.train()
    stopped = make_trainer(tmp_path / "run", algorithm, adapter, gpt2_folder, callbacks=[_StopAfter(3)], **saving)
    stopped.train()
    resumed = make_trainer(tmp_path / "run", algorithm, adapter, gpt2_folder, **saving)
    resumed.train(resume_from_checkpoint=True)
    for one, other in zip(trained_of(whole), trained_of(resumed), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])
    torch.testing.assert_close(logits_by(resumed.baseline()), logits_of(adapter, gpt2_folder))


def trained_of(trainer):
    model = trainer.tester_in(trainer.accelerator.unwrap_model(trainer.model))
    return [(name, parameter) for name, parameter in model.named_parameters()]


@pytest.mark.parametrize("use_peft", ["true", "false"])
def test_a_run_goes_on_with_the_adapter_of_another(tmp_path, gpt2_folder, adapter, use_peft, caplog):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Good morning {i}, what did you cook last night?" for i in range(30)))
    common = ["--target", str(gpt2_folder), "--prompts", str(prompts), *FLAGS]
    common += [*keyword_flags("the", "a", "e"), "--learning_rate", "0.01", "--use_peft", use_peft]
    train({}, [*common, "--tester", str(adapter), "--output_dir", str(tmp_path / "run")])
    assert ("is trained further" in caplog.text) == (use_peft == "true")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "run"))
    assert before.keys() == after.keys() and all((before[name] != after[name]).any() for name in before)
    # The lora_A of a new adapter would have nothing in common with this one's.
    for name in before:
        if "lora_A" in name:
            similar = torch.nn.functional.cosine_similarity(before[name].flatten(), after[name].flatten(), 0)
            assert similar > 0.5


def test_roles_that_share_a_peft_model_stay_what_they_were(gpt2_folder, adapter, tmp_path):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2_folder), adapter, is_trainable=True)
    tokenizer = make_tokenizer()
    system = HFASTSystem(model, model, None, harm, processing_class=tokenizer)
    start = logits_by(system.tester)
    trainer = ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 1), ASTDPOConfig(str(tmp_path), **CONFIG))
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.data.normal_()
    assert (logits_by(system.tester) - start).abs().max() > 0.1
    torch.testing.assert_close(logits_by(system.target), start)
    torch.testing.assert_close(logits_by(trainer.baseline()), start)


@pytest.mark.parametrize("role", ["target", "baseline"])
def test_a_role_on_the_base_of_the_testers_adapter_has_no_adapter(tmp_path, gpt2_folder, adapter, role):
    base, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2_folder), make_tokenizer()
    start = logits_by(HFBackend(base, tokenizer, SamplingParams()))
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True)  # puts the adapter into `base` itself
    target = base if role == "target" else str(gpt2_folder)
    baseline = base if role == "baseline" else None
    system = HFASTSystem(model, target, baseline, harm, processing_class=tokenizer)
    sampler, args = ASTSampler(system, PROMPTS, 2, 1), ASTDPOConfig(str(tmp_path), **CONFIG)
    if role == "baseline":
        with pytest.raises(InputError, match="baseline is the tester's base without its adapter.*model of its own"):
            ASTDPOTrainer(sampler, args)
        return
    trainer = ASTDPOTrainer(sampler, args)
    torch.testing.assert_close(logits_by(system.target), start)
    assert (logits_by(system.tester) - start).abs().max() > 0.1
    trainer.train()
    torch.testing.assert_close(logits_by(system.target), start)


def test_without_its_adapter_a_peft_model_is_no_tester_and_no_reference(tmp_path, gpt2_folder, adapter):
    def peft_model():
        base = AutoModelForCausalLM.from_pretrained(gpt2_folder)
        return PeftModel.from_pretrained(base, adapter, is_trainable=True)

    tokenizer, args = make_tokenizer(), ASTDPOConfig(str(tmp_path), **CONFIG)
    system = HFASTSystem(peft_model(), str(gpt2_folder), None, harm, processing_class=tokenizer)
    system.baseline = HFBackend(peft_model(), tokenizer, SamplingParams(), use_adapter=False)
    with pytest.raises(InputError, match="baseline has an adapter that it does not use.*load its base alone"):
        ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 1), args)
    system.tester.use_adapter = False
    with pytest.raises(InputError, match="tester samples without the adapter.*use_adapter=True"):
        ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 1), args)


def test_what_would_train_nothing_is_refused(tmp_path, gpt2_folder, adapter):
    base = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    frozen = PeftModel.from_pretrained(base, adapter)
    system = HFASTSystem(frozen, str(gpt2_folder), None, harm, processing_class=make_tokenizer())
    with pytest.raises(InputError, match="would change no parameter .*is_trainable=True"):
        ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 1), ASTDPOConfig(str(tmp_path), **CONFIG))
    with pytest.raises(InputError, match="has an adapter already.*leave peft_config out"):
        make_trainer(tmp_path, "sft", adapter, gpt2_folder, peft_config=LORA)
    other = get_peft_model(make_gpt2(make_tokenizer()), LORA, adapter_name="other")
    system = HFASTSystem(other, str(gpt2_folder), None, harm, processing_class=make_tokenizer())
    with pytest.raises(InputError, match="adapter is called 'other'"):
        roles.tester_to_train(system, None)


@pytest.mark.parametrize("role", ["target", "baseline"])
def test_a_role_that_training_would_change_is_refused(gpt2_folder, role):
    system = HFASTSystem(str(gpt2_folder), str(gpt2_folder), None, harm, device="cpu")
    setattr(system, role, HFBackend(system.tester.model, system.tester.tokenizer, SamplingParams()))
    with pytest.raises(InputError, match=f"tester and {role} are one loaded model.*would change the {role}"):
        roles.tester_to_train(system, None)
    roles.tester_to_train(system, LORA)


def test_float16_is_refused_unless_an_adapter_is_trained(gpt2_folder):
    half = {"model_init_kwargs": {"dtype": "float16"}, "device": "cpu"}
    system = HFASTSystem(str(gpt2_folder), str(gpt2_folder), None, harm, **half)
    with pytest.raises(InputError, match="float16.*--dtype"):
        roles.tester_to_train(system, None)
    roles.tester_to_train(system, LORA)
    roles.bind_tester(system, get_peft_model(system.tester.model, LORA))


@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_a_synced_reference_is_nobody_elses(tmp_path, gpt2_folder, algorithm):
    folder = str(gpt2_folder)
    system = HFASTSystem(folder, folder, folder, harm, device="cpu")
    assert system.target.model is system.baseline.model
    config = {**CONFIG, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.9}
    if algorithm == "grpo":
        config |= {"per_device_train_batch_size": 4}
        trainer = make_group_trainer(tmp_path, "grpo", system, prompts=PROMPTS, **config)
    else:
        trainer = ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 2), ASTDPOConfig(str(tmp_path), **config))
    start = logits_by(system.target)
    trainer.train()
    torch.testing.assert_close(logits_by(system.target), start)
    torch.testing.assert_close(logits_by(trainer.baseline()), start)
    with torch.no_grad():
        assert (trainer.ref_model(torch.arange(1, 9)[None]).logits - start).abs().max() > 1e-4


def test_a_reference_that_moves_is_no_baseline(tmp_path, gpt2_folder):
    system = HFASTSystem(str(gpt2_folder), str(gpt2_folder), None, harm, device="cpu")
    args = ASTDPOConfig(str(tmp_path), **CONFIG, sync_ref_model=True)
    assert ASTDPOTrainer(ASTSampler(system, PROMPTS, 2, 2), args).baseline() is None
