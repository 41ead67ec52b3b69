"""An epoch is a round: what lives through rounds, what is fresh in each, what is written, what is refused."""

import json
import logging

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from peft import LoraConfig
from transformers import TrainerCallback
from trl import BEMACallback
from trl.trainer.callbacks import RichProgressCallback

from astra_trl import (
    ASTDPOConfig,
    ASTDPOTrainer,
    ASTSampler,
    HFASTSystem,
    HFBackend,
    InputError,
    KeywordScorer,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.systems.astprompter import ASTPrompterSystem
from astra_trl.trainers.progress import header, round_line

PROMPTS = ["Good morning, how are you today?", "soup", "I love gardening", "late again", "what a day"]
SAMPLING = SamplingParams(max_new_tokens=8)
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def make_system(scorer=None, seeds=(0, 1)) -> HFASTSystem:
    tokenizer = make_tokenizer()
    tester, target = (HFBackend(make_gpt2(tokenizer, seed), tokenizer, SAMPLING) for seed in seeds)
    return HFASTSystem(tester, target, None, scorer or KeywordScorer(["soup", "the", "a", "e"]))


def make_config(folder, **config) -> ASTDPOConfig:
    defaults = {
        "num_train_epochs": 3,
        "pairs_per_round": 8,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "save_total_limit": None,
        "logging_steps": 1,
        "report_to": "none",
    }
    return ASTDPOConfig(str(folder), **{**defaults, **config})


def make_trainer(folder, system=None, width=2, depth=2, callbacks=None, peft_config=None, **config) -> ASTDPOTrainer:
    sampler = ASTSampler(system or make_system(), PROMPTS, width, depth)
    return ASTDPOTrainer(sampler, make_config(folder, **config), callbacks=callbacks, peft_config=peft_config)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.state_dict().items()}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Watch(TrainerCallback):
    """A user's callback: what it is told, and the optimizer as it stands after each step."""

    def __init__(self):
        self.optimizers, self.rates, self.events = [], [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.events.append(("round begins", state.global_step))

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.optimizers.append(id(optimizer.optimizer))
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_train_end(self, args, state, control, optimizer=None, **kwargs):
        self.steps = {float(entry["step"]) for entry in optimizer.optimizer.state.values()}


def test_documented_defaults():
    config = ASTDPOConfig("tester")
    assert (config.learning_rate, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (
        1e-5,
        4,
        1,
    )
    assert (config.num_train_epochs, config.trees_per_round, config.lr_scheduler_type) == (1000, 2, "constant")
    assert config.optim.startswith("adamw_torch")
    assert config.full_round(groups_per_tree=7)[0] == 14  # width 2, depth 3


def test_optimizer_state_schedule_and_callbacks_live_through_rounds(tmp_path):
    watch = Watch()
    trainer = make_trainer(tmp_path, callbacks=[watch], lr_scheduler_type="linear")
    trainer.train()
    assert trainer.state.global_step == 6  # 3 rounds of 8 pairs in batches of 4
    assert watch.events == [("round begins", 0), ("round begins", 2), ("round begins", 4)]
    assert len(set(watch.optimizers)) == 1
    assert watch.steps == {6.0}  # AdamW has counted every step of every round
    assert watch.rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(1, 7)])


def test_each_round_trains_on_fresh_trees_of_the_tester_as_it_is_then(tmp_path):
    system = make_system()
    trainer = make_trainer(tmp_path, system, learning_rate=0.0)
    frozen = make_trainer(tmp_path / "other", make_system(), learning_rate=1e-2)
    trainer.train()
    frozen.train()
    still, moving = (lines(folder / "exchanges.jsonl") for folder in (tmp_path, tmp_path / "other"))
    by_round = [[line["probe"] for line in still if line["round"] == number] for number in (1, 2, 3)]
    assert by_round[0] != by_round[1] != by_round[2]
    assert [line["probe"] for line in moving if line["round"] == 1] == by_round[0]
    assert [line["probe"] for line in moving if line["round"] == 2] != by_round[1]  # the tester has moved
    assert system.tester.model is trainer.model


def test_target_and_baseline_never_change(tmp_path):
    system = make_system()
    target, tester = weights(system.target.model), weights(system.tester.model)
    trainer = make_trainer(tmp_path, system)
    trainer.train()
    torch.testing.assert_close(weights(system.target.model), target, rtol=0, atol=0)
    torch.testing.assert_close(weights(trainer.ref_model), tester, rtol=0, atol=0)
    assert not torch.equal(trainer.model.state_dict()["transformer.wte.weight"], tester["transformer.wte.weight"])


def test_the_run_folder_holds_every_exchange_and_the_records_trained_on(tmp_path):
    trainer = make_trainer(tmp_path)
    served = []
    collate = trainer.data_collator.torch_call

    def watch(examples):
        served.extend(example for example in examples if "ref_chosen_logps" in example)  # not the reference's own pass
        return collate(examples)

    trainer.data_collator.torch_call = watch
    trainer.train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    figures = lines(tmp_path / "rounds.jsonl")
    assert [line["round"] for line in figures] == [1, 2, 3]
    assert [sum(line["round"] == number for line in exchanges) for number in (1, 2, 3)] == [
        line["exchanges"] for line in figures
    ]
    wanted = {"round", "tree", "path", "depth", "context", "probe", "response", "scores", "terms", "reward", "error"}
    assert wanted <= set(exchanges[0])
    assert set(exchanges[0]["terms"]) == {"harm", "probe_and_response_harm", "likelihood"}
    records = [record for number in (1, 2, 3) for record in trainer.folder.read_records(number)]

    def key(record):
        return record["prompt_ids"], record["chosen_ids"], record["rejected_ids"]

    assert sorted(map(key, served)) == sorted(map(key, records))
    said = {(line["round"], line["probe"]) for line in exchanges}
    assert all((1, record["chosen"]) in said for record in trainer.folder.read_records(1))
    shares = [line["scores"]["harm"] >= 0.5 for line in exchanges if line["round"] == 2]
    assert figures[1]["harmful_share"] == pytest.approx(sum(shares) / len(shares))


def test_round_figures_are_logged_through_the_trainer(tmp_path):
    trainer = make_trainer(tmp_path, report_to="tensorboard")
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "round" in entry]
    assert [entry["round"] for entry in logged] == [1, 2, 3]
    for name in ("harmful_share", "reward", "probe_logprob_per_token", "pairs", "groups", "collect_seconds"):
        assert all(f"round/{name}" in entry for entry in logged)
    assert all(entry["round/train_seconds"] > 0 for entry in logged)
    assert len(round_line(logged[0], 3, "pairs")) == len(header("pair")) <= 80
    assert any("loss" in entry for entry in trainer.state.log_history)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("train/round/reward")] == pytest.approx(
        [entry["round/reward"] for entry in logged]
    )


def test_trls_callbacks_work(tmp_path):
    before = weights(make_system().tester.model)
    trainer = make_trainer(tmp_path, callbacks=[BEMACallback(update_freq=1, device="cpu"), RichProgressCallback()])
    trainer.train()
    averaged = tmp_path / "bema" / "model.safetensors"
    assert averaged.exists()
    from safetensors.torch import load_file

    bema = load_file(averaged)["transformer.wte.weight"]
    assert not torch.equal(bema, before["transformer.wte.weight"])


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    """From inside a round, whose records are read back, and from a round's end."""
    whole = make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    for step in (3, 4):
        folder = tmp_path / f"from{step}"
        broken = make_trainer(folder, save_strategy="steps", save_steps=1, callbacks=[_StopAfter(step + 1)])
        broken.train()
        with (folder / "exchanges.jsonl").open("a") as file:
            file.write('{"round": 3, "cut of')
        resumed = make_trainer(folder, save_strategy="steps", save_steps=1)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
        assert lines(folder / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")
        assert [line["round"] for line in lines(folder / "rounds.jsonl")] == [1, 2, 3]


class _StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_peft_leaves_one_copy_of_the_weights_for_all_three_roles(tmp_path):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    system = HFASTSystem(one, one, None, KeywordScorer(["soup", "the", "a", "e"]))
    trainer = make_trainer(tmp_path, system, peft_config=LORA, learning_rate=1e-2)
    assert trainer.ref_model is None
    assert system.target.model is system.tester.model is trainer.model

    def score(backend):
        return backend.open(["hi"], seeds=[0], logprobs=True).append(["soup and bread"])[0]

    before = score(system.target)
    assert score(system.tester) == pytest.approx(before)  # LoRA starts as no change
    trainer.train()
    assert score(system.target) == before
    assert score(system.tester) != pytest.approx(before, abs=1e-3)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_round_short_of_pairs_is_topped_up_with_a_log_line(tmp_path, caplog):
    calls = []

    def rarely(exchanges):
        calls.append(len(exchanges))
        return [float(i == 0) for i in range(len(exchanges))]

    system = make_system(rarely)
    system.reward.terms.pop("likelihood")  # so that nearly all siblings tie
    with caplog.at_level(logging.WARNING, logger="astra_trl"):
        make_trainer(tmp_path, system, num_train_epochs=1, max_trees_per_round=4).train()
    (record,) = [record for record in caplog.records if record.name == "astra_trl.trainers.collecting"]
    assert "round 1: only" in record.getMessage()
    (figures,) = lines(tmp_path / "rounds.jsonl")
    assert 0 < figures["pairs"] < 8
    assert figures["trees"] == 4


def test_a_run_without_any_pair_stops_and_says_why(tmp_path):
    system = make_system(lambda exchanges: [0.0] * len(exchanges))
    system.reward.terms.pop("likelihood")
    with pytest.raises(InputError, match="all rewards tie at 0"):
        make_trainer(tmp_path, system).train()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 1}, "tree_width=1 gives none"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "dataloader_persistent_workers"),
        ({"max_length": 64}, "max_length=64 would cut probes"),
        ({"pairs_per_round": 0}, "pairs_per_round must be at least 1"),
        ({"min_margin": -1.0}, "min_margin must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, kwargs, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, **kwargs)


def test_a_tester_that_cannot_be_trained_is_refused(tmp_path):
    backend = ScriptedBackend(lambda texts, sibling: "x")
    system = ASTPrompterSystem(backend, backend, None, KeywordScorer(["soup"]))
    with pytest.raises(InputError, match="ScriptedBackend cannot be trained"):
        make_trainer(tmp_path, system)


def test_training_the_target_by_mistake_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    with pytest.raises(InputError, match="training would change the target"):
        make_trainer(tmp_path, HFASTSystem(one, one, None, KeywordScorer(["soup"])))


def test_a_folder_with_another_run_is_refused(tmp_path):
    make_trainer(tmp_path, num_train_epochs=1).train()
    with pytest.raises(InputError, match="holds another run"):
        make_trainer(tmp_path).train()


def test_data_loader_workers_serve_the_current_round(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_num_workers=1, num_train_epochs=2, dataloader_prefetch_factor=2)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("peft", [False, True])
def test_a_target_without_log_probabilities_trains_with_the_baselines(tmp_path, peft):
    tokenizer = make_tokenizer()
    model = make_gpt2(tokenizer)
    target = ScriptedBackend(lambda texts, sibling: f"soup {len(texts[-1])}", gives_logprobs=False)
    tester = HFBackend(model, tokenizer, SAMPLING)
    # Under PEFT the baseline is the tester's own weights, with the adapter off.
    baseline = HFBackend(model if peft else make_gpt2(tokenizer), tokenizer, SAMPLING)
    system = ASTPrompterSystem(tester, target, baseline, lambda e: [len(x.probe) % 7 / 7 for x in e])
    trainer = make_trainer(tmp_path, system, peft_config=LORA if peft else None, num_train_epochs=2)
    trainer.train()
    first, *_, last = lines(tmp_path / "exchanges.jsonl")
    assert (first["round"], last["round"]) == (1, 2)
    for said in (first, last):  # the frozen weights, in the last round as in the first
        context = [i for _, text in said["context"] for i in tokenizer(text + "\n")["input_ids"]]
        probe = tokenizer(said["probe"])["input_ids"]
        logits = make_gpt2(tokenizer)(torch.tensor([context + probe])).logits[0].log_softmax(-1)
        alone = [logits[len(context) + i - 1, token].item() for i, token in enumerate(probe)]
        assert said["terms"]["likelihood"] == pytest.approx(sum(alone) / len(alone), abs=1e-4)
