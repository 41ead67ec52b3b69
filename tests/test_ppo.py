"""PPO on contexts of fresh trees: what TRL samples, scores and trains on, and what is saved and taken up again."""

import copy
import itertools
import json
import math
import shutil
from dataclasses import fields
from statistics import fmean

import pytest
import torch
from conftest import HAS_PPO, make_gpt2, make_llama, make_tokenizer
from peft import LoraConfig
from test_dpo import PROMPTS, lines, weights
from test_first_step import OPENINGS, with_dropout
from test_groups import hand_made
from transformers import TrainerCallback

from astra_trl import (
    ASTPrompterSystem,
    ASTSampler,
    HFASTSystem,
    HFBackend,
    InputError,
    KeywordScorer,
    PerezSystem,
    SamplingParams,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.rewards import Backup

if not HAS_PPO:

    def test_a_trl_without_ppo_is_told_apart():
        with pytest.raises(ImportError, match=r"removed its PPOTrainer in 1.13: pip install 'astra-trl\[ppo\]'.*GRPO"):
            from astra_trl import ASTPPOTrainer  # noqa: F401

    pytest.skip("TRL has no PPOTrainer from 1.13 on", allow_module_level=True)

from trl.experimental.ppo import ppo_trainer

from astra_trl import ASTPPOConfig, ASTPPOTrainer
from astra_trl.trainers.ppo import trainer as ppo
from astra_trl.trainers.ppo.loop import VALUE_MODEL_NAME
from astra_trl.trainers.ppo.trainer import by_depth

SAMPLING = SamplingParams(max_new_tokens=6, temperature=0.7)
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


def make_system(scorer=hand_made, target=None, tokenizer=None, sampling=SAMPLING, **kwargs) -> ASTPrompterSystem:
    tokenizer = tokenizer or make_tokenizer()
    target = target or HFBackend(make_gpt2(tokenizer, seed=1), tokenizer, SAMPLING)
    return ASTPrompterSystem(HFBackend(make_gpt2(tokenizer), tokenizer, sampling), target, None, scorer, **kwargs)


def make_trainer(folder, system=None, width=2, depth=3, callbacks=None, peft_config=None, **config) -> ASTPPOTrainer:
    defaults = {
        "num_train_epochs": 2,
        "trees_per_round": 2,
        "contexts_per_round": 16,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
    }
    sampler = ASTSampler(system or make_system(), PROMPTS, width, depth)
    args = ASTPPOConfig(str(folder), **{**defaults, **config})
    return ASTPPOTrainer(sampler, args, callbacks=callbacks, peft_config=peft_config)


def watch_scores(monkeypatch, trainer) -> list[tuple[list[int], float]]:
    """Every row that TRL has scored by the target, without padding, and the score it used."""
    seen = []
    get_reward = ppo_trainer.get_reward

    def watched(model, rows, pad_token_id, context_length):
        result = get_reward(model, rows, pad_token_id, context_length)
        if model is trainer.reward_model:
            unpadded = [[i for i in row if i != pad_token_id] for row in rows.tolist()]
            seen.extend(zip(unpadded, result[1].tolist(), strict=True))
        return result

    monkeypatch.setattr(ppo_trainer, "get_reward", watched)
    return seen


def test_scores_are_the_rewards_of_the_exchanges_in_the_transcript(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    seen = watch_scores(monkeypatch, trainer)
    trainer.train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    assert len(seen) == len(exchanges) == 2 * 16
    assert [score for _, score in seen] == pytest.approx([line["reward"] for line in exchanges])
    tokenizer, eos = trainer.saved_processing_class, trainer.processing_class.eos_token_id
    for (row, score), line in zip(seen, exchanges, strict=True):
        text = tokenizer.decode([i for i in row if i != eos])
        assert text == "".join(f"{said}\n" for _, said in line["context"]) + line["probe"]
        terms = line["terms"]
        harm = len(line["probe"]) % 5 / 4
        assert terms["harm"] == harm
        assert score == pytest.approx(harm + 0.5 * terms["probe_and_response_harm"] + 0.1 * terms["likelihood"])
    logged = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    for entry in logged:
        rewards = [line["reward"] for line in exchanges if line["step"] == entry["step"]]
        assert entry["objective/scores"] == pytest.approx(fmean(rewards), abs=1e-5)


def test_with_backed_up_credit_scores_are_what_came_of_the_probe(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, make_system(credit=Backup(0.5)))
    seen = watch_scores(monkeypatch, trainer)
    trainer.train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    assert len(seen) == 2 * 16 < len(exchanges)
    # A probe's line is followed by those of what grew below it, to the depth of the tree.
    rest, groups = iter(exchanges), []
    for head in rest:
        grown = sum(2**turn for turn in range(1, 3 - head["depth"] + 1))
        groups.append([head, *itertools.islice(rest, grown)])
    for (_, score), (head, *below) in zip(seen, groups, strict=True):
        assert all(line["path"][: head["depth"]] == head["path"] for line in below)
        assert score == pytest.approx(head["credit"])

        def backed_up(line, below=below):
            children = [c for c in below if c["depth"] == line["depth"] + 1 and c["path"][:-1] == line["path"]]
            return line["reward"] + 0.5 * max((backed_up(child) for child in children), default=0.0)

        assert head["credit"] == pytest.approx(backed_up(head))


def test_the_answers_and_likelihoods_are_those_of_the_whole_conversation(tmp_path):
    system = make_system()
    system.target.sampling = SamplingParams(max_new_tokens=6, temperature=0.0)  # so that it can be asked again
    trainer = make_trainer(tmp_path, system, num_train_epochs=1)
    trainer.train()
    encode = lambda text: system.target.tokenizer(text)["input_ids"]  # noqa: E731
    for line in lines(tmp_path / "exchanges.jsonl"):
        if len(line["context"]) > 1:
            continue
        context, probe = encode(line["context"][0][1] + "\n"), encode(line["probe"])
        with torch.no_grad():
            logits = system.target.model(torch.tensor([context + probe])).logits[0].log_softmax(-1)
        alone = [logits[len(context) + i - 1, token].item() for i, token in enumerate(probe)]
        assert line["terms"]["likelihood"] == pytest.approx(fmean(alone), abs=1e-4)


def test_queries_are_the_contexts_of_all_depths(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    records = trainer.folder.read_records(1)
    assert len(records) == 16
    assert sorted({record["depth"] for record in records}) == [0, 1, 2]
    assert len({(record["tree"], tuple(json.loads(record["context"])["path"])) for record in records}) == 16
    lengths = [len(line["context"]) for line in lines(tmp_path / "exchanges.jsonl")]
    assert sorted(lengths) == sorted(1 + 2 * record["depth"] for record in records)


def test_rounds_refresh_the_contexts_with_the_tester_as_it_is_then(tmp_path):
    still, moving = (make_trainer(tmp_path / name, learning_rate=rate) for name, rate in (("a", 0.0), ("b", 1e-2)))
    still.train()
    moving.train()
    contexts = {
        (name, number): sorted(record["prompt"] for record in trainer.folder.read_records(number))
        for name, trainer in (("still", still), ("moving", moving))
        for number in (1, 2)
    }
    assert contexts["still", 1] == contexts["moving", 1] != contexts["still", 2] != contexts["moving", 2]
    assert moving.sampler.system.tester.model is moving.model.policy


def test_at_the_first_step_the_policy_is_the_one_that_sampled(tmp_path):
    trainer = make_trainer(tmp_path, num_ppo_epochs=1, gradient_accumulation_steps=1)
    trainer.train()
    first, *_ = [entry for entry in trainer.state.log_history if "val/ratio" in entry]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert first["policy/approxkl_avg"] < 1e-8
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)  # the reference is the tester before training


class Events(TrainerCallback):
    def __init__(self):
        self.seen, self.optimizers = [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.seen.append(("begin", state.global_step))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seen.append(("end", state.global_step))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("save", state.global_step))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.optimizers.append(id(optimizer))


def test_rounds_are_epochs_to_callbacks_and_to_saving(tmp_path):
    events = Events()
    trainer = make_trainer(tmp_path, callbacks=[events], save_strategy="epoch")
    trainer.train()
    assert events.seen == [("begin", 0), ("end", 2), ("save", 2), ("begin", 2), ("end", 4), ("save", 4)]
    assert len(set(events.optimizers)) == 1
    assert (trainer.state.global_step, trainer.state.epoch) == (4, 2.0)
    logged = [entry for entry in trainer.state.log_history if "round" in entry]
    assert [(entry["round"], entry["round/contexts"], entry["round/exchanges"]) for entry in logged] == [
        (1, 28, 16),
        (2, 28, 16),
    ]
    figures, exchanges = lines(tmp_path / "rounds.jsonl"), lines(tmp_path / "exchanges.jsonl")
    for number in (1, 2):
        scores = [line["scores"]["harm"] >= 0.5 for line in exchanges if line["round"] == number]
        assert figures[number - 1]["harmful_share"] == pytest.approx(fmean(scores))


@pytest.mark.parametrize("peft_config", [None, LORA])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, peft_config):
    """From inside a round, whose contexts are read back, and from a round's end."""
    config = {
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "num_train_epochs": 3,
        "peft_config": peft_config,
    }
    whole = make_trainer(tmp_path / "whole", **config)
    whole.train()
    assert whole.state.global_step == 6
    for step in (2, 3, 5):
        folder = tmp_path / f"from{step}"
        shutil.copytree(tmp_path / "whole", folder)  # whose later steps are forgotten
        resumed = make_trainer(folder, **config)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
        assert lines(folder / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")
        timed = {"collect_seconds"}
        for mine, theirs in zip(
            lines(folder / "rounds.jsonl"), lines(tmp_path / "whole" / "rounds.jsonl"), strict=True
        ):
            assert {k: v for k, v in mine.items() if k not in timed} == {
                k: v for k, v in theirs.items() if k not in timed
            }
        assert (resumed.state.global_step, resumed.state.max_steps, resumed.state.epoch) == (6, 6, 3.0)
        rates = [[x["lr"] for x in t.state.log_history if "lr" in x] for t in (resumed, whole)]
        assert rates[0] == rates[1] and len(rates[0]) == 6


def test_resuming_the_last_checkpoint_and_what_cannot_be_resumed(tmp_path):
    config = {"save_strategy": "epoch", "save_total_limit": 1}
    make_trainer(tmp_path, **config).train()
    resumed = make_trainer(tmp_path, num_train_epochs=3, **config)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert [line["round"] for line in lines(tmp_path / "rounds.jsonl")] == [1, 2, 3]
    (tmp_path / "checkpoint-6" / VALUE_MODEL_NAME).unlink()
    with pytest.raises(
        InputError, match="checkpoint-6' is not a whole checkpoint: give 'true' for the last one that is"
    ):
        make_trainer(tmp_path, **config).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    with pytest.raises(InputError, match="holds another run"):
        make_trainer(tmp_path, **config).train()


def test_a_checkpoint_holds_the_value_model_apart_from_the_policy(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="epoch")
    values = weights(trainer.model.value_model)
    trainer.train()
    assert not torch.equal(weights(trainer.model.value_model)["head.weight"], values["head.weight"])
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-4" / VALUE_MODEL_NAME)
    torch.testing.assert_close(saved["head.weight"], trainer.model.value_model.head.weight.detach())
    policy = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert not any("head" in name and "lm_head" not in name for name in policy)
    again = HFBackend.from_pretrained(str(tmp_path / "checkpoint-4"))
    torch.testing.assert_close(weights(again.model), weights(trainer.model.policy))
    assert again.tokenizer.pad_token is None  # TRL's padding is no part of the tester
    assert len(again.tokenizer) == again.model.config.vocab_size


def test_with_an_adapter_there_is_one_copy_of_the_weights(tmp_path):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    system = HFASTSystem(one, one, None, hand_made)
    trainer = make_trainer(tmp_path, system, peft_config=LORA, learning_rate=1e-2)
    assert trainer.ref_model is None
    assert system.target.model is system.tester.model is trainer.model.policy
    assert [name for name, _ in trainer.model.value_model.named_parameters()] == ["head.weight", "head.bias"]

    def score(backend):
        return backend.open(["hi"], seeds=[0], logprobs=True).append(["soup and bread"])[0]

    before = score(system.target)
    trainer.train()
    assert score(system.target) == before
    assert score(system.tester) != pytest.approx(before, abs=1e-3)
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_the_value_of_an_adapters_policy_is_read_off_the_frozen_weights(tmp_path):
    trainer = make_trainer(tmp_path, peft_config=LORA, learning_rate=1e-2)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "output_hidden_states": True}
    hidden = trainer.model.value_model.backbone(**inputs).hidden_states[-1]
    trainer.train()
    torch.testing.assert_close(trainer.model.value_model.backbone(**inputs).hidden_states[-1], hidden)
    assert trainer.model.value_model.head.weight.abs().sum() > 0


def test_what_could_not_be_measured_gets_the_mean_and_is_counted(tmp_path, monkeypatch):
    def scorer(exchanges):
        return [math.nan if i % 3 == 0 else score for i, score in enumerate(hand_made(exchanges))]

    trainer = make_trainer(tmp_path, make_system(scorer), num_train_epochs=1)
    seen = watch_scores(monkeypatch, trainer)
    trainer.train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    for step in (1, 2):
        found = [(line["depth"], line["reward"]) for line in exchanges if line["step"] == step]
        used = [score for (_, score), line in zip(seen, exchanges, strict=True) if line["step"] == step]
        everything = [reward for _, reward in found if reward is not None]
        for (depth, reward), score in zip(found, used, strict=True):
            beside = [other for of, other in found if of == depth and other is not None] or everything
            assert score == pytest.approx(fmean(beside) if reward is None else reward)
    (figures,) = lines(tmp_path / "rounds.jsonl")
    assert figures["unrewarded"] == 6


def test_a_probe_without_credit_gets_the_mean_of_its_depth():
    # Backed up, first turns are worth more than last ones: the mean over all, 2.0, would single one of either out.
    credits = [(0, 4.0), (0, 2.0), (0, None), (2, 0.0), (2, None), (1, None)]
    assert by_depth(credits) == [4.0, 2.0, 3.0, 0.0, 0.0, 2.0]
    assert by_depth([(0, None), (1, None)]) is None


def trained_rows(monkeypatch, trainer):
    """What TRL's loss masks leave of each sampled row: its ids through the last one that is trained on."""
    rows = []
    truncate = trainer._truncated

    def watched(stop, pad, responses):
        cut = truncate(stop, pad, responses)
        rows.extend([i for i in row if i != pad] for row in cut.tolist())
        return cut

    monkeypatch.setattr(trainer, "_truncated", watched)
    return rows


def test_every_end_token_of_the_tester_ends_a_probe(tmp_path, monkeypatch):
    system = make_system(sampling=SamplingParams(max_new_tokens=24, temperature=1.5))
    model, tokenizer = system.tester.model, system.tester.tokenizer
    ends = [tokenizer.eos_token_id, *range(200, 216)]
    model.generation_config.eos_token_id = ends
    system.tester = HFBackend(model, tokenizer, system.tester.sampling)
    trainer = make_trainer(tmp_path, system, contexts_per_round=32, gradient_accumulation_steps=4, num_train_epochs=1)
    rows = trained_rows(monkeypatch, trainer)
    seen = watch_scores(monkeypatch, trainer)
    trainer.train()
    assert len(rows) == 32 and sum(row[-1] in ends for row in rows) > 10
    assert not any(token in ends for row in rows for token in row[:-1])
    # What is scored is what is trained on, and what was heard ends before the end token.
    assert all(context[-len(row) :] == row for row, (context, _) in zip(rows, seen, strict=True))
    heard = [line["probe"] for line in lines(tmp_path / "exchanges.jsonl")]
    assert heard == system.tester.texts(rows)
    # TRL leaves its one in the config, with which the tester would be saved.
    assert model.generation_config.eos_token_id == ends


def test_an_end_token_that_is_the_pad_token_is_trained_on(tmp_path, monkeypatch):
    # As Qwen's <|endoftext|>, which is an end token of its models and the tokenizer's pad token.
    tokenizer, ends = make_tokenizer(), [*range(200, 232)]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(200)
    system = make_system(tokenizer=tokenizer, sampling=SamplingParams(max_new_tokens=24, temperature=1.5))
    model = system.tester.model
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    system.tester = HFBackend(model, tokenizer, system.tester.sampling)
    trainer = make_trainer(tmp_path, system, contexts_per_round=64, gradient_accumulation_steps=4, num_train_epochs=1)
    rows = trained_rows(monkeypatch, trainer)
    trainer.train()
    assert sum(row[-1:] == [200] for row in rows) > 0


def test_a_probe_ends_where_the_system_ends_it(tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    tester = HFBackend(make_gpt2(tokenizer), tokenizer, SamplingParams(max_new_tokens=24, temperature=1.5))
    system = PerezSystem(tester, ScriptedBackend(lambda t, s: "x"), None, lambda e: [0.5] * len(e))
    trainer = make_trainer(tmp_path, system, depth=1, contexts_per_round=64, gradient_accumulation_steps=4)
    rows = trained_rows(monkeypatch, trainer)
    trainer.train()
    asked = [row for row in rows if "?" in tokenizer.decode(row)]
    assert len(asked) > 3 and all("?" not in tokenizer.decode(row[:-1]) for row in asked)
    assert [line["probe"] for line in lines(tmp_path / "exchanges.jsonl")] == tester.texts(rows)


def test_the_models_own_generation_config_has_no_part_in_sampling(tmp_path, monkeypatch):
    def sampled(folder, **own):
        system = make_system()
        for name, value in own.items():
            setattr(system.tester.model.generation_config, name, value)
        trainer = make_trainer(folder, system, num_train_epochs=1, learning_rate=0.0)
        rows = trained_rows(monkeypatch, trainer)
        trainer.train()
        assert all(getattr(system.tester.model.generation_config, name) == value for name, value in own.items())
        return rows, trainer

    plain, _ = sampled(tmp_path / "plain")
    leaking, trainer = sampled(tmp_path / "own", repetition_penalty=5.0, top_k=2, top_p=0.1, min_new_tokens=6)
    assert plain == leaking
    # The log-probabilities that it starts from are the policy's own, too.
    assert all(entry["val/ratio"] == pytest.approx(1, abs=1e-4) for entry in updates(trainer))


def updates(trainer):
    return [entry for entry in trainer.state.log_history if "objective/kl" in entry]


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_the_ratio_is_1_for_contexts_of_any_length_and_without_dropout(tmp_path, make, monkeypatch):
    tokenizer = make_tokenizer()
    system = make_system()
    system.tester = HFBackend(with_dropout(make, tokenizer), tokenizer, SAMPLING)
    sampler = ASTSampler(system, OPENINGS, 2, 1)
    args = ASTPPOConfig(
        str(tmp_path), trees_per_round=8, contexts_per_round=8, num_train_epochs=1, learning_rate=0.0,
        gradient_accumulation_steps=2, logging_steps=1, gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    trainer = ASTPPOTrainer(sampler, args)
    before = copy.deepcopy(system.tester.model).eval()
    seen = []
    forward = ppo_trainer.forward

    def watched(model, rows, pad):
        found = forward(model, rows, pad)
        if isinstance(found, tuple):  # of an update: the policy's output, and the values
            seen.append((rows, pad, found[0].logits.detach().clone()))  # TRL divides them in place
        return found

    monkeypatch.setattr(ppo_trainer, "forward", watched)
    trainer.train()
    assert len(seen) == 8
    for rows, pad, found in seen:
        for row, logits in zip(rows, found, strict=True):
            ids = row[row != pad]
            with torch.no_grad():
                torch.testing.assert_close(logits[row != pad], before(ids[None]).logits[0], atol=1e-3, rtol=0)
    assert updates(trainer)[0]["policy/approxkl_avg"] < 1e-6


def test_gradients_are_clipped(tmp_path):
    norms = []

    def trained(folder, **config):
        trainer = make_trainer(folder, num_train_epochs=1, optim="sgd", learning_rate=1e-2, **config)
        start = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.optimizer.optimizer.register_step_pre_hook(
            lambda *_: norms.append(
                torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
            )
        )
        trainer.train()
        moved = [(a - b).flatten() for a, b in zip(trainer.model.parameters(), start, strict=True)]
        return torch.cat(moved).norm().item()

    free = trained(tmp_path / "free", max_grad_norm=0.0)
    largest = max(norms)
    norms.clear()
    clipped = trained(tmp_path / "clipped", max_grad_norm=largest / 100)
    assert max(norms) == pytest.approx(largest / 100, rel=1e-3) and clipped < free / 10


def test_max_steps_ends_a_run(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1000, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3 and len(updates(trainer)) == 3


def test_log_lines_come_as_often_as_asked_for_and_are_means(tmp_path):
    every, second = (make_trainer(tmp_path / str(n), logging_steps=n) for n in (1, 2))
    every.train()
    second.train()
    scores = [entry["objective/scores"] for entry in updates(every)]
    assert [entry["step"] for entry in updates(second)] == [2, 4]
    assert [entry["objective/scores"] for entry in updates(second)] == pytest.approx(
        [fmean(scores[:2]), fmean(scores[2:])]
    )
    by_epoch = make_trainer(tmp_path / "epoch", logging_strategy="epoch")
    by_epoch.train()
    assert [entry["step"] for entry in updates(by_epoch)] == [2, 4]
    never = make_trainer(tmp_path / "no", logging_strategy="no", logging_first_step=True)
    never.train()
    assert [entry["step"] for entry in updates(never)] == [1]


def test_gradient_checkpointing_takes_effect_and_changes_nothing_else(tmp_path):
    plain = make_trainer(tmp_path / "plain", num_train_epochs=1)
    trainer = make_trainer(tmp_path / "on", num_train_epochs=1, gradient_checkpointing=True)
    assert trainer.model.policy.is_gradient_checkpointing
    plain.train()
    trainer.train()
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_probe_without_an_end_costs_the_penalty(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, num_train_epochs=1, missing_eos_penalty=10.0)
    seen = watch_scores(monkeypatch, trainer)
    trainer.train()
    late = 0
    for (row, score), line in zip(seen, lines(tmp_path / "exchanges.jsonl"), strict=True):
        ended = row[-1] in trainer.sampler.system.tester.eos
        late += not ended
        assert score == pytest.approx(line["reward"] - (0 if ended else 10), abs=1e-5)
    assert late > 3


def test_a_runs_own_settings_make_the_same_config_again(tmp_path):
    config = ASTPPOConfig(str(tmp_path), report_to="none", eval_strategy="epoch", eval_delay=1)
    known = {f.name for f in fields(ASTPPOConfig) if f.init and not f.name.endswith("_token")}  # those are masked
    again = ASTPPOConfig(**{name: value for name, value in config.to_dict().items() if name in known})
    assert again.to_dict() == config.to_dict()


def test_nothing_measured_stops_and_says_why(tmp_path):
    with pytest.raises(InputError, match="none of 8 exchanges has a reward"):
        make_trainer(tmp_path, make_system(lambda e: [math.nan] * len(e))).train()


@pytest.mark.parametrize("parts", [2, 64])
def test_a_batch_may_be_sampled_in_parts(tmp_path, parts):
    """Parts of which one ends early are padded by TRL, with an id that must be known to the model."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    system = make_system(tokenizer=tokenizer)
    trainer = make_trainer(tmp_path, system, local_rollout_forward_batch_size=parts, num_train_epochs=1)
    assert trainer.processing_class is tokenizer
    assert trainer.args.local_rollout_forward_batch_size == parts
    trainer.train()
    assert len(lines(tmp_path / "exchanges.jsonl")) == 16
    plain = make_trainer(tmp_path / "plain", local_rollout_forward_batch_size=parts, num_train_epochs=1)
    assert plain.args.local_rollout_forward_batch_size >= 8


def test_a_context_that_stands_in_a_round_again_is_answered_anew(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, depth=1, trees_per_round=1, max_trees_per_round=1)
    seeds, answer = [], ppo.answer_contexts
    monkeypatch.setattr(ppo, "answer_contexts", lambda *given: (seeds.extend(given[-1]), answer(*given))[1])
    trainer.train()
    assert len({record["prompt"] for record in trainer.folder.read_records(1)}) == 1
    assert len(seeds) == len(set(seeds)) == 32


def test_a_target_without_log_probabilities_is_read_by_the_baseline(tmp_path):
    tokenizer = make_tokenizer()
    target = ScriptedBackend(lambda texts, sibling: f"soup {len(texts)}", gives_logprobs=False)
    system = ASTPrompterSystem(
        HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING),
        target,
        HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING),
        hand_made,
    )
    make_trainer(tmp_path, system, num_train_epochs=1).train()
    exchanges = lines(tmp_path / "exchanges.jsonl")
    assert {line["response"] for line in exchanges} == {f"soup {1 + 2 * depth + 1}" for depth in (0, 1, 2)}
    assert all(math.isfinite(line["terms"]["likelihood"]) for line in exchanges)


def test_documented_defaults():
    config = ASTPPOConfig("tester")
    assert (config.learning_rate, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (
        1e-5,
        4,
        4,
    )
    assert (config.num_train_epochs, config.trees_per_round, config.lr_scheduler_type) == (1000, 2, "constant")
    assert (config.stop_token, config.num_sample_generations, config.temperature) == ("eos", 0, None)
    assert config.full_round(groups_per_tree=7, multiple=16)[0] == 16  # at least one
    assert config.full_round(groups_per_tree=21, multiple=16)[0] == 32  # of 42


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"contexts_per_round": 12}, "contexts_per_round=12 is not a multiple of the 8 contexts of a batch"),
        ({"temperature": 1.0}, "temperature=1.0, and the tester samples with temperature=0.7"),
        ({"response_length": 53}, "the tester samples with max_new_tokens=6"),
        ({"stop_token": None}, "stop_token=None: a probe ends where the tester ends it"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, kwargs, message):
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, **kwargs)


def test_training_the_target_by_mistake_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    one = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    with pytest.raises(InputError, match="training would change the target"):
        make_trainer(tmp_path, HFASTSystem(one, one, None, KeywordScorer(["soup"])))
