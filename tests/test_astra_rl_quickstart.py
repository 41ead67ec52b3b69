"""ASTRA-RL's documented quick start, and its loop without a trainer, with nothing but the package's name changed."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import HAS_PPO, make_gpt2, make_tokenizer
from peft import LoraConfig, get_peft_model

import astra_trl.datasets
from astra_trl import (
    DPO,
    IPO,
    PPO,
    ASTDPOTrainer,
    ASTEvaluator,
    ASTSampler,
    Harness,
    HFBackend,
    InputError,
    KeywordScorer,
    SamplingParams,
)
from astra_trl.backends.base import Sample
from astra_trl.errors import MissingExtra
from astra_trl.ext.transformers import HFASTSystem
from astra_trl.prompts import base
from astra_trl.sandbox import load_world
from astra_trl.trainers.ppo.contexts import sampling_logprobs
from astra_trl.training import Trainer, TrainingConfiguration

OPENINGS = ["Good morning", "I love soup", "The train was late again", "What did you cook?"]

QUICK_START = """
from torch.optim import AdamW
from astra_trl import ASTSampler, DPO, DetoxifyScorer, Harness
from astra_trl.ext.transformers import HFASTSystem
from astra_trl.training import Trainer, TrainingConfiguration
from astra_trl.datasets import CONVOKIT_REDDIT_TRAIN, CONVOKIT_REDDIT_DEV

DEVICE = "cuda"
system = HFASTSystem("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", DetoxifyScorer(), DEVICE)
sampler = ASTSampler(system, CONVOKIT_REDDIT_TRAIN, tree_width=4, tree_depth=5)
solver = DPO(system)
optimizer = AdamW(system.parameters(), lr=1e-5)
config = TrainingConfiguration()
trainer = Trainer(config, sampler, solver)
trainer.train()
"""  # noqa: E501


@pytest.fixture
def splits_read(monkeypatch, detoxify_files) -> list[str]:
    """Local files in place of what the block downloads; lists each reading of the prompt set."""
    reads = []

    def splits():
        reads.append("convokit-reddit")
        return {split: {"opening": OPENINGS} for split in ("train", "dev", "test")}

    monkeypatch.setitem(base.NAMED, "convokit-reddit", splits)
    for name in ("CONVOKIT_REDDIT_TRAIN", "CONVOKIT_REDDIT_DEV"):
        unread = replace(getattr(astra_trl.datasets, name))  # another test may have read the set itself
        monkeypatch.setattr(astra_trl.datasets, name, unread)
    checkpoint = torch.load(detoxify_files / "tiny.ckpt", weights_only=False)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: checkpoint)
    return reads


@pytest.mark.parametrize(
    "solver",
    ["DPO", "IPO", pytest.param("PPO", marks=pytest.mark.skipif(not HAS_PPO, reason="TRL has no PPOTrainer"))],
)
def test_the_quick_start(solver, splits_read, tmp_path, monkeypatch, gpt2_folder):
    monkeypatch.chdir(tmp_path)
    code = QUICK_START
    for written, local in {
        "meta-llama/Llama-3.1-8B": str(gpt2_folder),
        '"cuda"': '"cpu"',
        "tree_depth=5": "tree_depth=2",
        "TrainingConfiguration()": "TrainingConfiguration(training_steps=2)",
        " DPO": f" {solver}",
    }.items():
        assert written in code
        code = code.replace(written, local)
    imports, device, rest = code.partition("DEVICE = ")
    names: dict = {}
    exec(imports, names)
    assert not splits_read  # no download at import
    exec(device + rest, names)
    assert splits_read == ["convokit-reddit"]  # by the sampler: nothing reads the dev set

    trainer, system = names["trainer"], names["system"]
    args, records = trainer.args, 2 * (1 + 4)  # of the sibling groups of 2 trees
    assert args.learning_rate == 1e-5 and trainer.sampler.tree_width == 4
    assert next(system.parameters()) is next(trainer.tester_in(trainer.model).parameters())
    assert system.baseline.model is system.target.model is trainer.ref_model
    assert (tmp_path / "tester" / "exchanges.jsonl").stat().st_size
    if solver == "PPO":
        assert type(trainer).__name__ == "ASTPPOTrainer"
        assert (args.cliprange, args.vf_coef) == (0.1, 1.0)
        assert trainer.state.global_step == 2 * (records // 4)  # whole batches of 2 rounds
    else:
        assert isinstance(trainer, ASTDPOTrainer)
        # IPO's sums over 24 tokens are TRL's means over them.
        expected = {"DPO": (["sigmoid"], 0.1), "IPO": (["ipo"], pytest.approx(0.1 * 24))}
        assert (args.loss_type, args.beta) == expected[solver]
        assert trainer.state.global_step == 2 * math.ceil(records / 4)


def test_ppo_says_which_trl_has_it():
    system = small_system()
    assert PPO(system).trainer_settings == {"cliprange": 0.1, "vf_coef": 1.0}
    if not HAS_PPO:
        with pytest.raises(MissingExtra, match=r"removed its PPOTrainer in 1.13"):
            Trainer(TrainingConfiguration(), ASTSampler(system, OPENINGS), PPO(system))


def test_settings_of_the_trainer(tmp_path):
    system = small_system()
    config = TrainingConfiguration(1e-4, 8, "adam", 2, 30, 5, str(tmp_path))
    trainer = Trainer(config, ASTSampler(system, OPENINGS), DPO(system, 0.2, 0.5), eval_dataset=OPENINGS[:1])
    args = trainer.args
    assert (args.learning_rate, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1e-4, 8, 2)
    assert (args.optim, args.weight_decay, args.num_train_epochs, args.trees_per_round) == ("adamw_torch", 0.0, 30, 5)
    assert (args.loss_type, args.beta, args.min_margin) == (["sigmoid"], 0.2, 0.5)
    assert trainer.eval_dataset == OPENINGS[:1]
    default = TrainingConfiguration()
    assert (default.lr, default.batch_size, default.optimizer) == (1e-5, 4, "adamw")
    assert (default.gradient_accumulation_steps, default.training_steps) == (1, 1000)
    assert default.num_episodes_per_experience == 2
    config.optimizer = "lion"
    with pytest.raises(InputError, match="optimizer='lion': choose one of adam, adamw, sgd, rmsprop, adagrad"):
        Trainer(config, trainer.sampler, DPO(system))
    with pytest.raises(InputError, match="not Reinforce: train it with a Harness"):
        Trainer(TrainingConfiguration(), trainer.sampler, Reinforce(system))


# -- the loop without a trainer


def small_system(scorer=None, tester=None, target=None, baseline=None) -> HFASTSystem:
    tokenizer = make_tokenizer()
    tester = HFBackend(tester or make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=6))
    baseline = baseline and HFBackend(baseline, tokenizer)
    target = target or HFBackend(make_gpt2(tokenizer, seed=1), tokenizer, SamplingParams(max_new_tokens=6))
    scorer = scorer or (lambda exchanges: [len(exchange.probe) % 5 / 4 for exchange in exchanges])
    return HFASTSystem(tester, target, baseline, scorer)


class Reinforce:
    """A solver of somebody's own: reward times log-probability."""

    def __init__(self, system):
        self.system = system

    def flatten(self, tree):
        return [node for node in tree.nodes() if node.probe_ids]

    collate_fn = staticmethod(list)

    def step(self, batch):
        losses = []
        for node in batch:
            ids = torch.tensor([node.prompt_ids + node.probe_ids])
            labels = torch.tensor([[-100] * len(node.prompt_ids) + node.probe_ids])
            losses.append(node.reward * self.system.tester.model(input_ids=ids, labels=labels).loss)
        return torch.stack(losses).mean(), {"nodes": len(batch)}


@pytest.mark.parametrize(("solver", "loss"), [(DPO, math.log(2)), (IPO, (1 / (2 * 0.1)) ** 2)])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_losses_are_those_of_the_sampled_ids(solver, loss, with_baseline):
    tokenizer = make_tokenizer()
    system = small_system(baseline=make_gpt2(tokenizer) if with_baseline else None)
    harness = Harness(ASTSampler(system, OPENINGS), solver(system), 2, dataloader_kwargs={"batch_size": 3})
    batch, *_ = batches = list(harness.experience())
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    value, logs = harness.step(batch)
    assert value.item() == pytest.approx(loss) == logs["training/loss"]  # the tester is its own reference so far

    # Another tester, and the same figures from the engine's own log-probabilities.
    before = {name: weight.clone() for name, weight in system.tester.model.state_dict().items()}
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    value, logs = harness.step(batch)
    value.backward()
    assert all(parameter.grad is not None for parameter in system.parameters())
    untrained = make_gpt2(tokenizer)
    untrained.load_state_dict(before)
    reference = replace(system.tester, model=untrained)
    expected = []
    for pair in batch:
        probes = [Sample("", pair["prompt_ids"], pair[f"{which}_ids"]) for which in ("chosen", "rejected")]
        chosen, rejected = (
            sum(now) - sum(then)
            for now, then in zip(
                sampling_logprobs(system.tester, probes, 1.0),
                sampling_logprobs(reference, probes, 1.0),
                strict=True,
            )
        )
        margin = chosen - rejected
        expected.append(math.log1p(math.exp(-0.1 * margin)) if solver is DPO else (margin - 5) ** 2)
    assert value.item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    accuracy, margin = logs["reward/reward_accuracies"], logs["reward/reward_margin"]
    assert 0 <= accuracy <= 1 and margin == pytest.approx(
        logs["reward/chosen_rewards"] - logs["reward/rejected_rewards"]
    )


def test_an_adapter_is_trained_against_its_untrained_self():
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", init_lora_weights=False)
    system = small_system(tester=get_peft_model(make_gpt2(make_tokenizer()), lora))
    assert {parameter.numel() for parameter in system.parameters()} == {8 * 32, 8 * 96}
    base = [p.clone() for p in system.tester.model.parameters() if not p.requires_grad]
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-2)
    harness = Harness(ASTSampler(system, OPENINGS), DPO(system), 2, dataloader_kwargs={"batch_size": 4})
    (batch, *_), losses = harness.experience(seed=7), []
    for _ in range(3):
        loss, _ = harness.step(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2)) and losses[2] < losses[1] < losses[0]
    frozen = [p for n, p in system.tester.model.named_parameters() if not p.requires_grad and ".ref." not in n]
    assert all(torch.equal(one, other) for one, other in zip(base, frozen, strict=True))


def test_each_experience_is_fresh_and_an_equal_seed_grows_it_again():
    system = small_system()
    harness = Harness(ASTSampler(system, OPENINGS), DPO(system), num_episodes_per_experience=1)
    probes = lambda experience: [pair["chosen"] for (pair,) in experience]  # noqa: E731
    first, second = probes(harness.experience()), probes(harness.experience())
    assert first != second and probes(harness.experience(seed=0)) == first and probes(harness.experience()) != first


def test_a_solver_of_ones_own():
    system = small_system()
    harness = Harness(ASTSampler(system, OPENINGS, 2, 2), Reinforce(system), 1, dataloader_kwargs={"batch_size": 6})
    (batch,) = harness.experience()
    loss, logs = harness.step(batch)
    loss.backward()
    assert logs == {"nodes": 6} and next(system.parameters()).grad is not None


def test_what_a_harness_refuses():
    system, other = small_system(), small_system()
    sampler = ASTSampler(system, OPENINGS, 2, 1)
    with pytest.raises(InputError, match=r"PPO runs a loop of its own: train with Trainer\(config, sampler, solver\)"):
        Harness(sampler, PPO(system))
    with pytest.raises(InputError, match="different systems"):
        Harness(sampler, DPO(other))
    one = small_system(tester=system.tester.model, target=system.tester)
    with pytest.raises(InputError, match="tester and target are one loaded model"):
        Harness(ASTSampler(one, OPENINGS), DPO(one))
    with pytest.raises(InputError, match="8 trees with 16 exchanges hold no step to train on"):
        Harness(sampler, DPO(system, min_margin=9.0), 1).experience()


def test_further_trees_are_grown_if_an_experience_holds_no_pair():
    calls = []

    def scorer(exchanges):
        calls.append(len(exchanges))
        return [float("nan") if len(calls) < 3 else len(exchange.probe) % 5 / 4 for exchange in exchanges]

    harness = Harness(ASTSampler(small := small_system(scorer), OPENINGS, 4, 1), DPO(small), 1)
    assert len(list(harness.experience())) == 1 and len(calls) > 2


def test_wandb(monkeypatch):
    system = small_system()
    sampler, logged = ASTSampler(system, OPENINGS), []
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'astra-trl\[wandb\]'"):
        Harness(sampler, DPO(system), use_wandb=True)
    Harness(sampler, DPO(system)).log_current_step({"step": 1})
    run = SimpleNamespace(log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda project: run))
    Harness(sampler, DPO(system), 2, True, {"project": "mine"}).log_current_step({"step": 1})
    assert logged == [{"step": 1}]


@pytest.mark.slow
def test_the_loop_learns_on_the_sandbox():
    world = load_world()
    scorer, sampling = KeywordScorer(world.rude_words), SamplingParams(max_new_tokens=24)
    system = HFASTSystem(world.tester, world.target, None, scorer, "cpu", sampling=sampling, max_rows=512)
    sampler = ASTSampler(system, world.openings("train"), tree_width=4, tree_depth=3)
    evaluator = ASTEvaluator(sampler, world.openings("test")[:50])
    before = evaluator.metrics()["harmful_share"]
    harness = Harness(
        sampler,
        DPO(system, min_margin=0.5),  # likelihood alone makes no pair
        num_episodes_per_experience=12,
        dataloader_kwargs={"batch_size": 8, "shuffle": True, "generator": torch.Generator().manual_seed(0)},
    )
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-3)
    for _ in range(4):
        for batch in harness.experience():
            loss, _ = harness.step(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert before < 0.15 and evaluator.metrics()["harmful_share"] > before + 0.2
