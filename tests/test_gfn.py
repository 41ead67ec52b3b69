"""GFN: the loss is trajectory balance over siblings, and the trained tester samples in proportion to reward."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from peft import LoraConfig
from test_dpo import weights
from test_groups import make_system, make_trainer, watch_losses

from astra_trl import (
    ASTGFNConfig,
    ASTGFNTrainer,
    ASTPrompterSystem,
    ASTSampler,
    HFBackend,
    InputError,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards import Harm, Reward
from astra_trl.rewards.config import build_reward
from astra_trl.systems import SYSTEMS, system_class
from astra_trl.trainers.gfn import balance_loss

BETA = 0.2


def logprob(model, context, probe, temperature) -> float:
    """The sum of a probe's log-probabilities, by a plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([context + probe])).logits[0, :-1] / temperature
    rows = logits.log_softmax(-1)[len(context) - 1 :]
    return rows[range(len(probe)), probe].sum().item()


@pytest.mark.parametrize(
    ("peft_config", "nll_coef"), [(None, 0.0), (LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True), 0.7)]
)
@pytest.mark.parametrize("unscored", [False, True])
def test_the_loss_is_contrastive_trajectory_balance(tmp_path, unscored, peft_config, nll_coef):
    def scorer(exchanges):
        scores = [len(e.probe) % 5 / 4 for e in exchanges]
        return [math.nan if unscored and i % 7 == 3 else score for i, score in enumerate(scores)]

    system = make_system(scorer)
    trainer = make_trainer(
        tmp_path, "gfn", system, beta=BETA, replay_share=0.5, nll_coef=nll_coef, peft_config=peft_config,
        num_train_epochs=3,
    )  # fmt: skip
    baseline = make_gpt2(make_tokenizer())  # the same weights
    losses, compute = [], trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        losses.append(compute(model, inputs, *args, **kwargs))
        plain = trainer.accelerator.unwrap_model(model)
        expected.append(by_hand(plain, inputs))
        return losses[-1]

    def by_hand(model, inputs) -> float:
        rows, nlls = [], []
        exchanges = map(json.loads, (tmp_path / "exchanges.jsonl").read_text().splitlines())
        credits = [exchange["credit"] for exchange in exchanges if exchange["credit"] is not None]
        beta = BETA * (max(credits) - min(credits))
        for row in range(len(inputs["prompt_ids"])):
            context = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            probe = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
            # A probe may be in a group twice, as its replay has been asked anew.
            rewards = [
                group["reward"][i]
                for group in trainer.train_dataset.records
                if group["prompt_ids"] == context
                for i, ids in enumerate(group["probe_ids"])
                if ids == probe
            ]
            given = inputs["rewards"][row].item()
            reward = None if math.isnan(given) else given
            assert reward in [None if one is None else pytest.approx(one) for one in rewards]
            policy = logprob(model, context, probe, 0.7)
            replayed = inputs["old_logps"][row].item() == 0
            left_out = reward is None or (nll_coef and replayed)
            target = None if left_out else reward / beta + logprob(baseline, context, probe, 0.7)
            rows.append((policy, target))
            nlls.append((reward, -policy / len(probe), replayed))
        total = 0.0
        for start in range(0, len(rows), 4):
            known = [(policy - target) for policy, target in rows[start : start + 4] if target is not None]
            pairs = sum((a - b) ** 2 for a, b in combinations(known, 2))
            total += pairs / max(len(known), 1)
        better = []
        for start in range(0, len(nlls), 4):
            mean = np.nanmean([math.nan if reward is None else reward for reward, *_ in nlls[start : start + 4]])
            for reward, nll, replayed in nlls[start : start + 4]:
                if replayed and reward is not None and reward > mean:
                    better.append((reward - mean, nll))
        imitated.extend(better)
        supervised = sum(weight * nll for weight, nll in better) / sum(weight for weight, _ in better) if better else 0
        return beta * total / (2 * len(rows)) + nll_coef * supervised

    expected: list[float] = []
    imitated: list[tuple[float, float]] = []
    trainer.compute_loss = watched
    trainer.train()
    assert len(imitated) > 5
    assert any(record["sampling_logprobs"][-1] == [] for record in trainer.train_dataset.records)  # some are replayed
    assert len(losses) == 15 and max(expected) > 0.1
    for loss, value in zip(losses, expected, strict=True):
        assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_with_fresh_probes_the_gradient_is_that_of_rloo():
    torch.manual_seed(0)
    logprobs = torch.randn(8, requires_grad=True)
    rewards, baseline = torch.rand(8), torch.randn(8)
    regularised = (rewards - BETA * (logprobs.detach() - baseline)).view(2, 4)
    advantages = ((regularised - regularised.mean(1, keepdim=True)) * 4 / 3).flatten()
    loss, _ = balance_loss(logprobs - logprobs.detach(), advantages, rewards, width=4, beta=BETA)
    loss.backward()
    rloo = -advantages / 8 * 3 / 4  # of the mean of -advantage * log pi; RLOO's baseline leaves the probe itself out
    assert torch.allclose(logprobs.grad, rloo, atol=1e-6)


def test_pairs_whose_rewards_differ_by_less_than_the_margin_are_not_compared():
    # log pi - log R of each probe; the rewards are known for three, and differ by 0.1, 0.5 and 0.6.
    gaps, rewards = [0.0, 3.0, 5.0, 9.0], torch.tensor([0.0, 0.1, 0.6, math.nan])
    ratios, advantages = torch.tensor(gaps), torch.zeros(4)
    for margin, pairs in ((None, [9, 25, 4]), (0.05, [9, 25, 4]), (0.2, [25, 4]), (0.55, [25]), (1.0, [])):
        loss, (total, count) = balance_loss(ratios, advantages, rewards, width=4, beta=BETA, min_margin=margin)
        assert loss.item() == pytest.approx(BETA / 2 * sum(pairs) / 3 / 4)
        assert (total.item(), count.item()) == (sum(pairs), len(pairs))


def test_the_tester_samples_in_proportion_to_reward(tmp_path):
    tokenizer = make_tokenizer()
    model = make_gpt2(tokenizer)
    prompt = "hello"
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    chosen = {3: 1.0, 5: 0.9, 7: 0.75, 11: 0.5}  # four probes of one token, and every other has no reward
    scores = {tokenizer.decode([token]): score for token, score in chosen.items()}

    def scorer(exchanges):
        return [scores.get(e.probe, 0.0) for e in exchanges]

    tester = HFBackend(model, tokenizer, SamplingParams(max_new_tokens=1, temperature=1.0))
    system = ASTPrompterSystem(
        tester, ScriptedBackend(lambda texts, sibling: "fine"), None, scorer, reward=Reward({"harm": (1.0, Harm())})
    )
    context = tester.open([prompt], seeds=[0]).sample()[0].prompt_ids
    with torch.no_grad():
        baseline = model(torch.tensor([context])).logits[0, -1].log_softmax(-1)
    by_token = torch.tensor([scores.get(tokenizer.decode([i]), 0.0) for i in range(len(words))])
    beta = 0.15
    wanted = (baseline + by_token / beta).softmax(-1)
    args = ASTGFNConfig(
        str(tmp_path), beta=beta, learning_rate=5e-3, lr_scheduler_type="linear", num_train_epochs=100,
        trees_per_round=16, per_device_train_batch_size=64, replay_share=0.25, gradient_checkpointing=False,
        disable_tqdm=True, save_strategy="no", report_to="none",
    )  # fmt: skip
    ASTGFNTrainer(ASTSampler(system, [prompt], 8, 1), args).train()
    with torch.no_grad():
        reached = model(torch.tensor([context])).logits[0, -1].softmax(-1)
    assert wanted[[*chosen]].sum() > 0.5 > 4 * baseline.exp()[[*chosen]].sum()
    assert (reached - wanted)[[*chosen]].abs().max() < 0.03


def test_what_its_loss_does_not_read_is_refused():
    with pytest.raises(InputError, match="beta must be above 0"):
        ASTGFNConfig("tester", beta=0.0, report_to="none")
    with pytest.raises(InputError, match="add up to 1.1, more than 1"):
        ASTGFNConfig("tester", replay_share=0.6, variation_share=0.5, report_to="none")
    for useless in ({"nll_coef": 1.0}, {"screened_probes": 10}):
        with pytest.raises(InputError, match="no effect without replayed probes"):
            ASTGFNConfig("tester", replay_share=0.0, **useless, report_to="none")
    with pytest.raises(InputError, match="epsilon=0.1 has no effect"):
        ASTGFNConfig("tester", epsilon=0.1, report_to="none")


def test_without_arguments_it_has_its_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ASTGFNTrainer(ASTSampler(make_system(), ["a b"], 4, 1))
    assert (trainer.args.beta, trainer.replay.share, trainer.replay.variation_share) == (0.04, 0.25, 0.0)


def test_a_batch_that_splits_groups_is_refused(tmp_path):
    with pytest.raises(InputError, match="make it a multiple of tree_width=4"):
        make_trainer(tmp_path, "gfn", beta=BETA, per_device_train_batch_size=2, gradient_accumulation_steps=4)


def test_siblings_stay_together_without_a_shared_context(tmp_path):
    trainer = make_trainer(
        tmp_path, "gfn", beta=BETA, shared_context=False, per_device_train_batch_size=4, steps_per_generation=2,
        replay_share=0.5, nll_coef=0.5,
    )  # fmt: skip
    seen = watch_losses(trainer)
    trainer.train()
    # Weights of the likelihood are relative to the whole batch, not to the rows of a pass.
    by_pass = [step["nll_weights"] for step in seen]
    means = [torch.cat(passes).mean() for passes in zip(by_pass[::2], by_pass[1::2], strict=True)]
    assert {round(mean.item(), 3) for mean in means} == {0.0, 1.0} and sum(means) > 2
    assert any(values.mean() not in (0.0, 1.0) for values in by_pass)
    for step in seen:
        contexts = [
            row[mask.bool()].tolist() for row, mask in zip(step["prompt_ids"], step["prompt_mask"], strict=True)
        ]
        assert contexts == contexts[:1] * 4


@pytest.mark.parametrize("kind", ["step", "round"])
def test_a_resumed_run_equals_one_that_went_on(tmp_path, kind):
    def run(folder, epochs, **kwargs):
        start = {"screened_probes": 40, "variation_share": 0.3, "nll_coef": 0.5}
        saving = {"save_strategy": "steps", "save_steps": 1}
        return make_trainer(folder, "gfn", beta=BETA, num_train_epochs=epochs, **start, **saving, **kwargs)

    whole = run(tmp_path / "whole", 4)
    whole.train()
    begun = run(tmp_path / "begun", 4, max_steps=7 if kind == "step" else 10)
    begun.train()
    assert len(begun.replay) > 0
    resumed = run(tmp_path / "begun", 4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.replay.state_dict() == whole.replay.state_dict()
    for name, value in weights(whole.model).items():
        assert torch.equal(value, weights(resumed.model)[name])
    assert (tmp_path / "begun" / "exchanges.jsonl").read_text() == (tmp_path / "whole" / "exchanges.jsonl").read_text()


def test_a_tester_that_samples_from_a_part_of_its_distribution_is_warned_about(tmp_path, caplog):
    make_trainer(tmp_path / "part", "gfn", beta=BETA)
    assert "leave out a part of it" in caplog.text
    caplog.clear()
    system = make_system()
    system.tester.sampling = SamplingParams(max_new_tokens=6)
    make_trainer(tmp_path / "whole", "gfn", system, beta=BETA)
    assert "leave out a part of it" not in caplog.text


def test_a_reward_that_replayed_probes_cannot_have_is_refused(tmp_path):
    system = make_system()
    system.reward = build_reward({"harm": 1, "entropy": 0.1})
    with pytest.raises(InputError, match="drop the term, as GFN keeps the entropy by itself, or set replay_share=0"):
        make_trainer(tmp_path, "gfn", system)
    make_trainer(tmp_path, "gfn", system, replay_share=0.0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_by_default_the_whole_distribution_is_sampled_and_no_reward_is_refused(system):
    settings = system_class(system).default_settings("gfn")
    assert (settings["temperature"], settings["top_p"]) == (1.0, 1.0) and "entropy" not in settings["reward"]
    assert settings.get("repetition_penalty", 1.0) == 1.0 and settings["target_sampling"]["top_p"] < 1
