"""Training whose weights become nan: where it stops, what it says, and what it leaves."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import HAS_PPO, keyword_flags, make_gpt2, make_tokenizer
from peft import LoraConfig
from test_dpo import PROMPTS, SAMPLING, make_system
from test_groups import hand_made
from transformers import TrainerCallback

from astra_trl import ASTSampler, HFBackend, InputError
from astra_trl.cli.main import main
from astra_trl.errors import NotFinite
from astra_trl.rewards.base import Reward
from astra_trl.trainers import TRAINERS, trainer_classes
from astra_trl.trainers.checkpoints import last_whole
from astra_trl.trainers.divergence import check_weights

ALGORITHMS = [name for name in TRAINERS if name != "ppo" or HAS_PPO]


class Ruin(TrainerCallback):
    """Spoils a trained weight after a step."""

    def __init__(self, step, value=math.nan):
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            trained[-1].data.flatten()[-1] = self.value


def make_trainer(folder, algorithm, callbacks=None, peft_config=None, **config):
    config_class, trainer_class = trainer_classes(algorithm)
    defaults = {
        "num_train_epochs": 2,
        "trees_per_round": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 1e-3,
        **({"min_score": 0.25} if algorithm == "sft" else {}),
    }
    sampler = ASTSampler(make_system(hand_made), PROMPTS, 2, 2)
    args = config_class(str(folder), **{**defaults, **config})
    return trainer_class(sampler, args, callbacks=callbacks, peft_config=peft_config)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_stops_at_the_step_whose_weights_are_not_finite(algorithm, value, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, algorithm, [Ruin(2, value)])
    with pytest.raises(NotFinite) as stopped:
        trainer.train()
    assert str(stopped.value) == (
        "training has diverged in round 1: weights of the tester are nan or infinite; neither target nor scorer is "
        "the cause. Lower --learning_rate (now 0.001) and start in another --output_dir, from the same tester, or "
        f"from the last checkpoint with finite weights (--tester '{tmp_path}/checkpoint-1')"
    )
    assert last_whole(tmp_path) == tmp_path / "checkpoint-1" and not (tmp_path / "checkpoint-2").exists()


@pytest.mark.skipif("ppo" not in ALGORITHMS, reason="TRL has no PPOTrainer from 1.13 on")
def test_ppo_samples_no_probe_from_logits_that_overflow(tmp_path):
    class Overflow(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.policy.transformer.ln_f.weight.data[0] = 3e38

    trainer = make_trainer(tmp_path, "ppo", [Overflow()], save_strategy="no")
    with pytest.raises(NotFinite, match="diverged in round 1: the tester computes nan instead of probabilities"):
        trainer.train()


def test_an_adapter_that_diverges_stops_training_too(tmp_path):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, "dpo", [Ruin(1)], lora, save_strategy="no", max_grad_norm=0)
    with pytest.raises(NotFinite, match=r"round 1: .*set --max_grad_norm \(1 is usual\).* from the same tester$"):
        trainer.train()


def test_a_loss_of_nan_that_transformers_leaves_out_of_the_log_stops_training(tmp_path):
    trainer = make_trainer(tmp_path, "dpo", save_strategy="no", logging_steps=1)
    compute_loss, losses = trainer.compute_loss, []

    def spoiled(*args, **kwargs):
        losses.append(compute_loss(*args, **kwargs) * (math.nan if len(losses) == 1 else 1))
        return losses[-1]

    trainer.compute_loss = spoiled
    with pytest.raises(NotFinite, match="diverged in round 1"):
        trainer.train()
    assert len(losses) == 2 and not any(math.isnan(line.get("loss", 0)) for line in trainer.state.log_history)


def test_a_tester_that_computes_nan_with_finite_weights_stops_training_before_it_samples_again(tmp_path):
    trainer = make_trainer(tmp_path, "dpo", max_steps=2, trees_per_round=1, pairs_per_round=2)
    trainer.train()
    assert last_whole(tmp_path) == tmp_path / "checkpoint-2"
    with trainer.current_tester(), torch.no_grad():
        trainer.model.transformer.wte.weight.fill_(3e38)
    with pytest.raises(
        NotFinite, match="diverged in round 2: the tester computes nan instead of probabilities; neith"
    ):
        trainer.evaluate(["Good morning"])


def test_a_step_in_float16_that_is_skipped_is_no_divergence_and_endless_skipping_is(tmp_path):
    weight = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, scaler=scaler)
    args = SimpleNamespace(output_dir=str(tmp_path), learning_rate=1e-5, max_grad_norm=1.0)
    trainer = SimpleNamespace(model=weight, accelerator=accelerator, args=args, round=3)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    for _ in range(4):
        check_weights(trainer)
        scaler.scale(weight(torch.full((1, 1), math.inf)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**-14
    with pytest.raises(
        NotFinite, match="in round 3: the gradients of one step after another are nan or overflow float"
    ):
        check_weights(trainer)


def test_a_model_that_computes_nan_is_named_when_it_is_sampled():
    tokenizer = make_tokenizer()
    model = make_gpt2(tokenizer)
    model.config.name_or_path = "some/model"
    backend = HFBackend(model, tokenizer, SAMPLING)
    assert backend.open(["Good morning"], seeds=[0]).sample()
    with pytest.raises(InputError, match="max_rows must be at least 1, got 0"):
        HFBackend(model, tokenizer, SAMPLING, max_rows=0)
    model.transformer.ln_f.bias.data[0] = math.nan
    with pytest.raises(
        NotFinite, match="'some/model' computes nan instead of probabilities: its weights are"
    ) as stopped:
        backend.open(["Good morning"], seeds=[0]).sample()
    assert stopped.value.backend is backend


def test_an_evaluation_of_a_tester_of_nan_ends_in_one_line(tmp_path, capsys):
    tokenizer = make_tokenizer()
    model = make_gpt2(tokenizer)
    model.transformer.ln_f.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "tester")
    tokenizer.save_pretrained(tmp_path / "tester")
    (tmp_path / "prompts.txt").write_text("Good morning\nGood evening\n")
    flags = ["--target", str(tmp_path / "tester"), "--prompts", str(tmp_path / "prompts.txt")]
    assert main(["evaluate", str(tmp_path / "tester"), *flags, *keyword_flags("soup"), "--max_new_tokens", "4"]) == 1
    assert "gives logits that are nan or infinite" in capsys.readouterr().err.splitlines()[-1]


def test_the_error_begins_on_a_line_of_its_own_below_the_bar(tmp_path, capsys):
    flags = ["--trees_per_round", "1", "--eval_openings", "1", "--report_to", "none", "--num_train_epochs", "1"]
    run = ["train", "--world", "embedded", *flags, "--output_dir", str(tmp_path / "run"), "--tree_depth", "1"]
    assert main([*run, "--learning_rate", "1e30", "--disable_tqdm", "false"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training has diverged in round 1")


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_a_reward_term_that_is_infinite_is_refused_by_name(value):
    node = SimpleNamespace(exchange=SimpleNamespace(probe="Hello?"), terms={})
    with pytest.raises(
        InputError, match="reward term 'own' is -?inf for the probe 'Hello\\?': return a finite number"
    ):
        Reward({"own": (1.0, lambda nodes: [value])})([node])
