"""GRPO and RLOO: the trees' siblings are TRL's groups, and what TRL computes is what the trees say."""

import copy
import json
import math
import shutil
from statistics import fmean, stdev

import pytest
import torch
from conftest import make_gpt2, make_tokenizer
from peft import LoraConfig
from test_dpo import PROMPTS, Watch, lines, weights

from astra_trl import (
    ASTGFNConfig,
    ASTGFNTrainer,
    ASTGRPOConfig,
    ASTGRPOTrainer,
    ASTPrompterSystem,
    ASTRLOOConfig,
    ASTRLOOTrainer,
    ASTSampler,
    HFASTSystem,
    HFBackend,
    InputError,
    PerezSystem,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.backends.hf.session import HFSession
from astra_trl.rewards import Backup, Harm, Reward

SAMPLING = SamplingParams(max_new_tokens=6, min_new_tokens=2, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
BOTH = pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
CLASSES = {
    "gfn": (ASTGFNConfig, ASTGFNTrainer),
    "grpo": (ASTGRPOConfig, ASTGRPOTrainer),
    "rloo": (ASTRLOOConfig, ASTRLOOTrainer),
}
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def hand_made(exchanges):
    """A reward for each probe that is anything but smooth."""
    return [len(e.probe) % 5 / 4 for e in exchanges]


def make_system(scorer=hand_made, **kwargs) -> ASTPrompterSystem:
    tokenizer = make_tokenizer()
    target = ScriptedBackend(lambda texts, sibling: f"answer {len(texts[-1])}")
    reward = Reward({"harm": (1.0, Harm())})
    return ASTPrompterSystem(
        HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING), target, None, scorer, reward=reward, **kwargs
    )


def make_trainer(
    folder,
    algorithm,
    system=None,
    width=4,
    depth=2,
    callbacks=None,
    peft_config=None,
    funcs=(),
    prompts=PROMPTS,
    **config,
):
    config_class, trainer_class = CLASSES[algorithm]
    defaults = {
        "num_train_epochs": 2,
        "trees_per_round": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "beta": 0.2 if algorithm == "gfn" else 0.0,
    }
    sampler = ASTSampler(system or make_system(), prompts, width, depth)
    args = config_class(str(folder), **{**defaults, **config})
    return trainer_class(sampler, args, callbacks=callbacks, peft_config=peft_config, reward_funcs=funcs)


def watch_losses(trainer) -> list[dict]:
    """What TRL's loss is given at each step, and the log-probabilities that the policy has then."""
    seen = []
    loss = trainer._compute_loss

    def watched(model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad():
            logprobs, *_ = trainer._get_per_token_logps_and_entropies(
                model, ids, mask, inputs["completion_ids"].shape[1]
            )
        seen.append({**{key: copy.deepcopy(value) for key, value in inputs.items()}, "policy_logprobs": logprobs})
        return loss(model, inputs)

    trainer._compute_loss = watched
    return seen


def by_probe(step, name) -> dict[tuple, float]:
    """A value of each row by its context's and its probe's ids."""
    rows = {}
    for row in range(len(step["prompt_ids"])):
        prompt = step["prompt_ids"][row][step["prompt_mask"][row].bool()].tolist()
        probe = step["completion_ids"][row][step["completion_mask"][row].bool()].tolist()
        rows[tuple(prompt), tuple(probe)] = step[name][row]
    return rows


def rewards_of(group) -> list[float]:
    return [reward for reward in group["reward"] if reward is not None]


def grpo_advantage(group, index) -> float:
    rewards = rewards_of(group)
    return (group["reward"][index] - fmean(rewards)) / (stdev(rewards) + 1e-4)


def rloo_advantage(group, index) -> float:
    others = [r for i, r in enumerate(group["reward"]) if i != index and r is not None]
    return group["reward"][index] - fmean(others)


@pytest.mark.parametrize(("algorithm", "advantage"), [("grpo", grpo_advantage), ("rloo", rloo_advantage)])
@pytest.mark.parametrize("unscored", [False, True])
def test_trls_advantages_are_those_of_the_siblings_rewards(tmp_path, algorithm, advantage, unscored):
    def scorer(exchanges):
        scores = hand_made(exchanges)
        return [math.nan if unscored and i % 7 == 3 else score for i, score in enumerate(scores)]

    trainer = make_trainer(tmp_path, algorithm, make_system(scorer), num_train_epochs=1, shuffle_dataset=True)
    seen = watch_losses(trainer)
    trainer.train()
    groups = trainer.folder.read_records(1)
    assert len(groups) == 10 and all(len(group["probe"]) == 4 for group in groups)  # 2 trees of 1 + 4 groups
    used = {}
    for step in seen:
        used.update(by_probe(step, "advantages"))
    nothing = 0
    for group in groups:
        for index, ids in enumerate(group["probe_ids"]):
            value = used[tuple(group["prompt_ids"]), tuple(ids)].item()
            if group["reward"][index] is None:
                nothing += 1
                assert value == 0
            elif group["probe"].count(group["probe"][index]) == 1:
                assert value == pytest.approx(advantage(group, index), abs=1e-4)
    assert (nothing > 0) == unscored
    # And the rewards are those of the transcript.
    said = {}
    for line in lines(tmp_path / "exchanges.jsonl"):
        said.setdefault((line["tree"], line["depth"] - 1, "".join(f"{t}\n" for _, t in line["context"])), []).append(
            line
        )
    for group in groups:
        siblings = said[group["tree"], group["depth"], group["prompt"]]
        rewards = {line["probe"]: line["reward"] for line in siblings}
        assert all(
            rewards[probe] == reward or group["probe"].count(probe) > 1
            for probe, reward in zip(group["probe"], group["reward"], strict=True)
        )


@pytest.mark.parametrize(("algorithm", "advantage"), [("grpo", grpo_advantage), ("rloo", rloo_advantage)])
def test_an_unscored_probe_teaches_nothing_beside_further_reward_functions(tmp_path, algorithm, advantage):
    def scorer(exchanges):
        return [math.nan if i % 7 == 3 else score for i, score in enumerate(hand_made(exchanges))]

    # Of what each probe gets of it, the same: it must change no advantage, nor give one to what was not scored.
    trainer = make_trainer(
        tmp_path, algorithm, make_system(scorer), funcs=[lambda completions, **columns: [2.0] * len(completions)],
        num_train_epochs=1,
    )  # fmt: skip
    seen = watch_losses(trainer)
    trainer.train()
    used = {}
    for step in seen:
        used.update(by_probe(step, "advantages"))
    unscored = 0
    for group in trainer.folder.read_records(1):
        for index, ids in enumerate(group["probe_ids"]):
            value = used[tuple(group["prompt_ids"]), tuple(ids)].item()
            if group["reward"][index] is None:
                unscored += 1
                assert value == 0
            elif group["probe"].count(group["probe"][index]) == 1:
                assert value == pytest.approx(advantage(group, index), abs=1e-4)
    assert unscored


@BOTH
def test_at_the_first_step_the_old_policy_is_the_one_that_sampled(tmp_path, algorithm):
    trainer = make_trainer(tmp_path, algorithm, learning_rate=1e-2)
    seen = watch_losses(trainer)
    trainer.train()
    first, later = seen[0], seen[4]  # of a round of 5
    for step, same in ((first, True), (later, False)):
        mask = step["completion_mask"]
        if algorithm == "grpo":
            difference = ((step["old_per_token_logps"] - step["policy_logprobs"]) * mask).abs().max()
        else:
            difference = (step["old_logps"] - (step["policy_logprobs"] * mask).sum(1)).abs().max()
        assert (difference < 1e-4) == same  # later the policy has moved on, and the old one has not
    sampled = {
        (tuple(group["prompt_ids"]), tuple(ids)): logprobs
        for group in trainer.folder.read_records(1)
        for ids, logprobs in zip(group["probe_ids"], group["sampling_logprobs"], strict=True)
    }
    for step in seen[:5]:
        if algorithm == "grpo":
            for key, values in by_probe(step, "old_per_token_logps").items():
                assert values[: len(sampled[key])].tolist() == pytest.approx(sampled[key], abs=1e-6)
        else:
            for key, value in by_probe(step, "old_logps").items():
                assert value.item() == pytest.approx(math.fsum(sampled[key]), abs=1e-5)


@BOTH
def test_each_probe_is_sampled_once(tmp_path, algorithm, monkeypatch):
    sampled, generated = [], []
    sample = HFSession.sample
    monkeypatch.setattr(HFSession, "sample", lambda self: (sampled.append(len(self.rows)), sample(self))[1])
    trainer = make_trainer(tmp_path, algorithm)
    monkeypatch.setattr(type(trainer.model), "generate", lambda *args, **kwargs: generated.append(args))
    trainer.train()
    assert sum(sampled) == len(lines(tmp_path / "exchanges.jsonl")) == 2 * 2 * (4 + 16)
    assert generated == []


@BOTH
def test_rounds_are_epochs_with_fresh_trees_and_their_figures(tmp_path, algorithm):
    watch = Watch()
    trainer = make_trainer(tmp_path, algorithm, callbacks=[watch], lr_scheduler_type="linear")
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 10  # 2 rounds of 10 groups of 4 in batches of 8 probes
    assert watch.events == [("round begins", 0), ("round begins", 5)]
    assert len(set(watch.optimizers)) == 1 and watch.steps == {10.0}
    assert watch.rates == pytest.approx([1e-3 * (1 - step / 10) for step in range(1, 11)])
    assert trainer.sampler.system.tester.model is trainer.model
    assert not torch.equal(before["transformer.wte.weight"], weights(trainer.model)["transformer.wte.weight"])
    exchanges = lines(tmp_path / "exchanges.jsonl")
    first, second = ([line["probe"] for line in exchanges if line["round"] == number] for number in (1, 2))
    assert first != second
    logged = [entry for entry in trainer.state.log_history if "round" in entry]
    assert [(entry["round"], entry["round/usable_groups"], entry["round/groups"]) for entry in logged] == [
        (1, 10, 10),
        (2, 10, 10),
    ]
    assert any("rewards/tree_reward/mean" in entry for entry in trainer.state.log_history)
    figures = lines(tmp_path / "rounds.jsonl")
    shares = [line["scores"]["harm"] >= 0.5 for line in exchanges if line["round"] == 2]
    assert figures[1]["harmful_share"] == pytest.approx(fmean(shares))


LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type_of_grpo_trains(tmp_path, loss_type):
    level = "sequence" if loss_type == "luspo" else "token"
    trainer = make_trainer(
        tmp_path, "grpo", loss_type=loss_type, num_train_epochs=1, beta=0.02, importance_sampling_level=level
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5 and all(math.isfinite(float(loss)) for loss in losses)


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "none", "epsilon_high": 0.28},
        {"scale_rewards": "batch", "top_entropy_quantile": 0.5, "delta": 1.5},
        {"num_iterations": 2, "steps_per_generation": 5, "off_policy_mask_threshold": 0.5},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "beta": 0.1},
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]},
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "use_bias_correction_kl": True},
        {"log_completions": True, "pad_to_multiple_of": 8, "entropy_coef": 0.01},
    ],
)
def test_grpos_options_stay_usable(tmp_path, options):
    funcs = [lengths] if "reward_weights" in options else ()
    trainer = make_trainer(tmp_path, "grpo", num_train_epochs=1, funcs=funcs, **options)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])


def test_further_reward_functions_are_given_what_the_trees_hold(tmp_path):
    seen = []

    def politeness(prompts, completions, completion_ids, response, reward, depth, **columns):
        seen.extend(zip(completions, response, reward, depth, strict=True))
        return [float(len(text)) for text in completions]

    trainer = make_trainer(tmp_path, "grpo", funcs=[politeness], num_train_epochs=1, reward_weights=[1.0, 0.0])
    trainer.train()
    exchanges = {(x["probe"], x["response"], x["reward"], x["depth"] - 1) for x in lines(tmp_path / "exchanges.jsonl")}
    assert set(seen) == exchanges


@BOTH
@pytest.mark.parametrize(
    "config",
    [{}, {"steps_per_generation": 5, "num_iterations": 2, "save_steps": 1}, {"gradient_accumulation_steps": 2}],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, algorithm, config):
    """From inside a round (and a generation batch), whose records are read back, and from a round's end."""
    config = {
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "beta": 0.05,
        "shuffle_dataset": True,
        **config,
    }
    whole = make_trainer(tmp_path / "whole", algorithm, **config)
    whole.train()
    end = whole.state.global_step
    for step in sorted({end // 2, end // 2 + 1, end - 1}):
        folder = tmp_path / f"from{step}"
        shutil.copytree(tmp_path / "whole", folder)  # whose later steps are forgotten
        resumed = make_trainer(folder, algorithm, **config)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
        assert lines(folder / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")
        assert [line["round"] for line in lines(folder / "rounds.jsonl")] == [1, 2]


@BOTH
def test_with_an_adapter_the_reference_is_the_tester_with_it_off(tmp_path, algorithm):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    system = HFASTSystem(one, one, None, hand_made)
    trainer = make_trainer(tmp_path, algorithm, system, peft_config=LORA, beta=0.1, learning_rate=1e-2)
    assert trainer.ref_model is None
    assert system.target.model is system.tester.model is trainer.model
    seen = watch_losses(trainer)
    trainer.train()
    assert len(seen) == 10
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


@BOTH
def test_the_reference_is_the_baseline_or_the_tester_as_it_was(tmp_path, algorithm):
    tokenizer = make_tokenizer()
    baseline = HFBackend(make_gpt2(tokenizer, seed=7), tokenizer, SAMPLING)
    for number, (given, expected) in enumerate(((None, make_gpt2(tokenizer)), (baseline, baseline.model))):
        system = make_system()
        system.baseline = given
        trainer = make_trainer(tmp_path / str(number), algorithm, system, beta=0.1, learning_rate=1e-2)
        trainer.train()
        torch.testing.assert_close(weights(trainer.ref_model), weights(expected), rtol=0, atol=0)
        kls = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
        assert (abs(kls[0]) < 1e-5) == (given is None)


@BOTH
def test_backed_up_credit_is_what_is_trained_on(tmp_path, algorithm):
    trainer = make_trainer(tmp_path, algorithm, make_system(credit=Backup(0.5)), num_train_epochs=1)
    trainer.train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    raised = 0
    for group in trainer.folder.read_records(1):
        for probe, credit in zip(group["probe"], group["reward"], strict=True):
            (*_, line) = [
                x for x in exchanges if (x["probe"], x["tree"], x["credit"]) == (probe, group["tree"], credit)
            ]
            below = [
                x["reward"]
                for x in exchanges
                if x["tree"] == line["tree"] and x["path"][:-1] == line["path"] and x["depth"] == 2
            ]
            assert credit == pytest.approx(line["reward"] + 0.5 * max(below, default=0.0))
            raised += credit != line["reward"]
    assert raised > 0


def test_min_margin_leaves_out_groups_and_more_trees_are_grown_for_them(tmp_path):
    def seldom(exchanges):
        return [float("e" in e.probe) for e in exchanges]

    trainer = make_trainer(tmp_path, "grpo", make_system(seldom), min_margin=0.5, num_train_epochs=1)
    trainer.train()
    (figures,) = lines(tmp_path / "rounds.jsonl")
    assert figures["usable_groups"] < figures["groups"]
    assert all(max(group["reward"]) - min(group["reward"]) > 0.5 for group in trainer.folder.read_records(1))


def test_a_group_may_lie_over_two_batches_of_a_step(tmp_path):
    trainer = make_trainer(
        tmp_path, "grpo", width=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1
    )
    seen = watch_losses(trainer)
    trainer.train()
    assert trainer.state.global_step == 10
    rows = {key: value.item() for step in seen for key, value in by_probe(step, "advantages").items()}
    for group in trainer.folder.read_records(1):
        for index, ids in enumerate(group["probe_ids"]):
            if group["probe"].count(group["probe"][index]) == 1:
                expected = grpo_advantage(group, index)
                assert rows[tuple(group["prompt_ids"]), tuple(ids)] == pytest.approx(expected, abs=1e-4)


def test_documented_defaults():
    for config_class, _ in CLASSES.values():
        config = config_class("tester")
        assert (config.learning_rate, config.per_device_train_batch_size) == (1e-5, 4)
        assert (config.num_train_epochs, config.trees_per_round, config.lr_scheduler_type) == (1000, 2, "constant")
        assert config.num_generations is None and config.temperature is None
        assert config.full_round(groups_per_tree=7, multiple=2)[0] == 14  # width 2, depth 3


def test_fields_of_sampling_are_the_testers(tmp_path):
    trainer = make_trainer(tmp_path, "grpo")
    assert (trainer.args.temperature, trainer.args.max_completion_length, trainer.args.top_p) == (0.7, 6, 0.9)
    assert (trainer.num_generations, trainer.temperature) == (4, 0.7)
    make_trainer(tmp_path, "grpo", temperature=0.7, num_generations=4)  # the same is no contradiction


@BOTH
def test_probes_that_the_system_ends_are_not_taken_for_truncated(tmp_path, algorithm):
    tokenizer = make_tokenizer()
    tester = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    system = PerezSystem(tester, ScriptedBackend(lambda texts, sibling: "x"), None, hand_made)
    with pytest.raises(InputError, match="mask_truncated_completions leaves out probes"):
        make_trainer(tmp_path, algorithm, system, depth=1, mask_truncated_completions=True)
    make_trainer(tmp_path, algorithm, make_system(), mask_truncated_completions=True)
    system = make_system()  # with an end of sequence that TRL does not know
    system.tester.model.generation_config.eos_token_id = [tokenizer.eos_token_id, 200]
    system.tester = HFBackend(system.tester.model, system.tester.tokenizer, SAMPLING)
    with pytest.raises(InputError, match="mask_truncated_completions leaves out probes"):
        make_trainer(tmp_path, algorithm, system, mask_truncated_completions=True)


@BOTH
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 1}, "tree_width=1 gives none"),
        ({"num_generations": 2}, "num_generations=2, and a tree's siblings are the group"),
        ({"width": 3}, "generation batch of 8 probes does not hold whole groups of tree_width=3"),
        ({"groups_per_round": 5}, "groups_per_round=5 is not a multiple of the 2 groups of a batch"),
        ({"temperature": 1.0}, "temperature=1.0, and the tester samples with temperature=0.7"),
        ({"max_completion_length": 99}, "the tester samples with max_new_tokens=6"),
        ({"min_p": 0.1}, "min_p=0.1 has no effect, as trees hold the probes already"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "dataloader_persistent_workers"),
        ({"min_margin": -1.0}, "min_margin must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, algorithm, kwargs, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, algorithm, **kwargs)


@BOTH
def test_systems_that_cannot_be_trained_are_refused(tmp_path, algorithm):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    with pytest.raises(InputError, match="training would change the target"):
        make_trainer(tmp_path, algorithm, HFASTSystem(one, one, None, hand_made))
    greedy = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(temperature=0.0))
    with pytest.raises(InputError, match="cannot explore"):
        make_trainer(tmp_path, algorithm, HFASTSystem(greedy, make_gpt2_backend(tokenizer), None, hand_made))
    scripted = ScriptedBackend(lambda texts, sibling: "x")
    with pytest.raises(InputError, match="ScriptedBackend cannot be trained"):
        make_trainer(tmp_path, algorithm, ASTPrompterSystem(scripted, scripted, None, hand_made))
    baseline = HFASTSystem(one, make_gpt2_backend(tokenizer), make_gpt2_backend(tokenizer, 3), hand_made)
    with pytest.raises(InputError, match="leave the baseline out, or beta=0"):
        make_trainer(tmp_path, algorithm, baseline, peft_config=LORA, beta=0.1)


def make_gpt2_backend(tokenizer, seed=1) -> HFBackend:
    return HFBackend(make_gpt2(tokenizer, seed), tokenizer, SAMPLING)


def test_nothing_measured_stops_and_says_why(tmp_path):
    trainer = make_trainer(tmp_path, "grpo", make_system(lambda e: [math.nan] * len(e)))
    with pytest.raises(InputError, match="hold no group to train on: no exchange has a reward"):
        trainer.train()


def test_records_on_disk_are_whole_groups(tmp_path):
    trainer = make_trainer(tmp_path, "rloo", num_train_epochs=1)
    trainer.train()
    group = trainer.folder.read_records(1)[0]
    assert set(group) == {
        *("tree", "depth", "prompt", "prompt_ids", "probe", "response", "reward", "probe_ids", "sampling_logprobs")
    }
    assert json.dumps(group)
