"""`eval_dataset` in the trainers: held-out figures as metrics, by which a checkpoint is chosen or training stopped."""

import json
import math

import pytest
import torch
from conftest import HAS_PPO, make_gpt2, make_tokenizer
from datasets import Dataset
from peft import LoraConfig
from test_dpo import PROMPTS, lines, weights
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from astra_trl import ASTEvaluator, ASTSampler, HFASTSystem, HFBackend, InputError, SamplingParams
from astra_trl.trainers import trainer_classes

SAMPLING = SamplingParams(max_new_tokens=6)
HELD_OUT = ["It rained", "Thanks a lot", "a pot of soup"]
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
ALGORITHMS = ["dpo", "gfn", "grpo", "rloo", *(["ppo"] if HAS_PPO else [])]
EVERY = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Waning:
    """Harm of every response by the round: a tester that finds most in its second round."""

    of = "response"
    shares = (0.25, 1.0, 0.5, 0.0, 0.0, 0.0)
    round = 0

    def __call__(self, exchanges):
        share = self.shares[self.round - 1]
        return [float(number < share * len(exchanges)) for number in range(len(exchanges))]


class Count(TrainerCallback):
    def __init__(self, scorer):
        self.scorer, self.evaluated = scorer, []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.scorer.round = round(state.epoch or 0) + 1

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.evaluated.append((state.global_step, metrics))


def make_trainer(folder, algorithm, scorer=None, callbacks=(), eval_dataset=HELD_OUT, peft_config=None, **config):
    tokenizer = make_tokenizer()
    tester, target = (HFBackend(make_gpt2(tokenizer, seed), tokenizer, SAMPLING) for seed in (0, 1))
    system = HFASTSystem(tester, target, None, scorer or (lambda exchanges: [0.5] * len(exchanges)))
    config_class, trainer_class = trainer_classes(algorithm)
    size = {"dpo": {"pairs_per_round": 4}, "ppo": {"contexts_per_round": 8, "gradient_accumulation_steps": 1}}
    args = config_class(
        str(folder),
        **{
            "num_train_epochs": 3,
            "trees_per_round": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            **size.get(algorithm, {}),
            **config,
        },
    )
    sampler = ASTSampler(system, PROMPTS, 2, 2)
    return trainer_class(sampler, args, eval_dataset=eval_dataset, callbacks=list(callbacks), peft_config=peft_config)


@EVERY
def test_evaluate_is_the_evaluator_on_the_current_tester(tmp_path, algorithm):
    trainer = make_trainer(tmp_path, algorithm, beta=0.1) if algorithm != "ppo" else make_trainer(tmp_path, algorithm)
    before = trainer.evaluate()
    assert before["eval_exchanges"] == 6
    assert {"eval_harmful_share_turn_1", "eval_harmful_share_turn_2", "eval_reward", "eval_distinct_2"} <= set(before)
    # Untrained, it is its own baseline; what it says is as likely to it as to the baseline, which training changes.
    evaluator = ASTEvaluator(trainer.sampler, HELD_OUT, seed=trainer.args.seed)
    metrics = {f"eval_{name}": value for name, value in evaluator.metrics(trainer.baseline()).items()}
    assert {**metrics, "epoch": 0} == before
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_probe_logprob_per_token"] != before["eval_probe_logprob_per_token"]
    assert not math.isnan(after["eval_baseline_logprob_per_token"])
    untrained = make_trainer(tmp_path / "other", algorithm, beta=0.1) if algorithm != "ppo" else None
    if untrained is not None:
        tester = HFBackend(untrained.accelerator.unwrap_model(untrained.model), make_tokenizer(), SAMPLING)
        again = ASTEvaluator(trainer.sampler, HELD_OUT, seed=trainer.args.seed).metrics(tester)
        assert again["baseline_logprob_per_token"] == pytest.approx(after["eval_baseline_logprob_per_token"])


@EVERY
def test_the_best_round_by_harmful_share_is_loaded_at_the_end(tmp_path, algorithm):
    scorer = Waning()
    count = Count(scorer)
    trainer = make_trainer(
        tmp_path,
        algorithm,
        scorer,
        [count],
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,
        metric_for_best_model="harmful_share",
        load_best_model_at_end=True,
    )
    trainer.train()
    steps = trainer.state.global_step // 3
    assert [step for step, _ in count.evaluated] == [steps, 2 * steps, 3 * steps]
    shares = [metrics["eval_harmful_share"] for _, metrics in count.evaluated]
    assert shares[1] == 1.0 == max(shares) and trainer.state.best_metric == 1.0
    best = tmp_path / f"checkpoint-{2 * steps}"
    assert trainer.state.best_model_checkpoint == str(best)
    ours = weights(trainer.tester_in(trainer.accelerator.unwrap_model(trainer.model)))
    saved = AutoModelForCausalLM.from_pretrained(best).state_dict()
    assert all(torch.equal(ours[name], saved[name]) for name in saved)
    last = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{3 * steps}").state_dict()
    assert not all(torch.equal(ours[name], last[name]) for name in last)
    logged = [line["eval_harmful_share"] for line in trainer.state.log_history if "eval_harmful_share" in line]
    assert logged == shares


@EVERY
def test_the_best_round_is_remembered_by_a_run_that_goes_on(tmp_path, algorithm):
    def trainer(*callbacks):
        scorer = Waning()
        return make_trainer(
            tmp_path,
            algorithm,
            scorer,
            [Count(scorer), *callbacks],
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=None,
            metric_for_best_model="harmful_share",
            load_best_model_at_end=True,
        )

    class StopAfterTwo(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = round(state.epoch) == 2

    trainer(StopAfterTwo()).train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    steps = resumed.state.global_step // 3
    assert [line["round"] for line in lines(tmp_path / "rounds.jsonl")] == [1, 2, 3]
    assert resumed.state.best_metric == 1.0
    assert resumed.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{2 * steps}")


@EVERY
def test_early_stopping_stops(tmp_path, algorithm):
    scorer = Waning()
    callbacks = [Count(scorer), EarlyStoppingCallback(early_stopping_patience=1)]
    trainer = make_trainer(
        tmp_path,
        algorithm,
        scorer,
        callbacks,
        num_train_epochs=6,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,
        metric_for_best_model="eval_harmful_share",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert round(trainer.state.epoch) == 3  # best in the second, none better in the third
    assert [line["round"] for line in lines(tmp_path / "rounds.jsonl")] == [1, 2, 3]
    assert not (tmp_path / "records" / "round-00004.parquet").exists()


@EVERY
def test_evaluating_changes_nothing_about_training(tmp_path, algorithm):
    plain = make_trainer(tmp_path / "plain", algorithm, eval_dataset=None)
    plain.train()
    watched = make_trainer(tmp_path / "watched", algorithm, eval_strategy="steps", eval_steps=1)
    watched.train()
    assert sum("eval_reward" in line for line in watched.state.log_history) == watched.state.global_step
    ours, theirs = weights(watched.model), weights(plain.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "watched" / "exchanges.jsonl").read_text() == (
        tmp_path / "plain" / "exchanges.jsonl"
    ).read_text()


def test_several_sets_and_data_sets_of_openings(tmp_path):
    sets = {"rain": ["It rained"], "soup": Dataset.from_dict({"id": [1, 2], "opening": ["soup", "a pot"]})}
    trainer = make_trainer(tmp_path, "dpo", eval_dataset=sets, eval_strategy="epoch", num_train_epochs=1)
    trainer.train()
    logged = {name: value for line in trainer.state.log_history for name, value in line.items()}
    assert (logged["eval_rain_exchanges"], logged["eval_soup_exchanges"]) == (2, 4)
    assert trainer.evaluate(["one more"], metric_key_prefix="test")["test_exchanges"] == 2


def test_with_an_adapter_the_baseline_is_the_tester_without_it(tmp_path):
    trainer = make_trainer(tmp_path, "dpo", peft_config=LORA, learning_rate=0.1)
    trainer.train()
    found = trainer.evaluate()
    plain = HFBackend(make_gpt2(make_tokenizer(), 0), make_tokenizer(), SAMPLING)
    again = ASTEvaluator(trainer.sampler, HELD_OUT, seed=trainer.args.seed).metrics(plain)
    assert found["eval_baseline_logprob_per_token"] == pytest.approx(again["baseline_logprob_per_token"], abs=1e-5)
    evaluation = ASTEvaluator(trainer.sampler, HELD_OUT, draws=5).evaluate()
    untrained = ASTEvaluator(trainer.sampler, HELD_OUT, draws=5)
    untrained.measure("tester", plain, baseline=plain)
    for name in ("reward", "probe_logprob_per_token/target", "probe_logprob_per_token/baseline"):
        expected = untrained.evaluation().figure(name).value
        assert evaluation.figure(name, "baseline").value == pytest.approx(expected, abs=1e-5)


def test_evaluating_needs_openings(tmp_path):
    with pytest.raises(InputError, match="no held-out openings: give it an eval_dataset"):
        make_trainer(tmp_path, "dpo", eval_dataset=None).evaluate()
    with pytest.raises(ValueError, match="eval_dataset"):  # transformers' own
        make_trainer(tmp_path, "dpo", eval_dataset=None, eval_strategy="epoch")


def test_metrics_are_numbers_for_every_logger(tmp_path):
    trainer = make_trainer(tmp_path, "dpo", scorer=lambda exchanges: [math.nan] * len(exchanges))
    metrics = trainer.evaluate()
    assert math.isnan(metrics["eval_harmful_share"]) and metrics["eval_unscored"] == 6
    assert all(isinstance(value, int | float) for value in metrics.values())
    json.dumps(metrics)
