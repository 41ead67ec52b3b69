"""CRT: its reward, and its memory of a run, to which only training adds."""

import io
import json
import math
from statistics import fmean

import pytest
from conftest import make_gpt2, make_tokenizer
from rich.console import Console
from sacrebleu.metrics import BLEU
from test_dpo import PROMPTS, _StopAfter, lines, weights

from astra_trl import (
    ASTDPOConfig,
    ASTDPOTrainer,
    ASTEvaluator,
    ASTSampler,
    CRTSystem,
    Exchange,
    HFBackend,
    InputError,
    Reward,
    SamplingParams,
    Turn,
)
from astra_trl.backends import ScriptedBackend
from astra_trl.evaluation.arms import BASELINE, TESTER
from astra_trl.results.terminal import show
from astra_trl.rewards import Gibberish, SelfBLEUNovelty
from astra_trl.systems.crt import CRT_SAMPLING, CRT_TARGET_SAMPLING

SAMPLING = SamplingParams(max_new_tokens=8)


def length_vectors(texts):
    """Texts of like length are alike."""
    return [[math.cos(len(text) / 9), math.sin(len(text) / 9)] for text in texts]


def letters(exchanges):
    """Reads responses: as a term it is given the probe in its place."""
    return [exchange.response.count("e") / (len(exchange.response) + 1) for exchange in exchanges]


def make_reward(**settings):
    reward = CRTSystem.default_reward(**{"cosine_novelty": {"embedder": length_vectors}, "gibberish": 0, **settings})
    return Reward({**reward.terms, "gibberish": (-1.0, Gibberish(letters))})


def hand_made(exchanges):
    return [len(e.probe) % 5 / 4 for e in exchanges]


def make_system(**settings) -> CRTSystem:
    tokenizer = make_tokenizer()
    tester, target = (HFBackend(make_gpt2(tokenizer, seed), tokenizer, SAMPLING) for seed in (0, 1))
    return CRTSystem(tester, target, None, hand_made, **{"reward": make_reward(), **settings})


def make_trainer(folder, system=None, callbacks=None, **config) -> ASTDPOTrainer:
    defaults = {
        "num_train_epochs": 3,
        "pairs_per_round": 8,
        "trees_per_round": 8,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    sampler = ASTSampler(system or make_system(), PROMPTS, tree_width=3)
    return ASTDPOTrainer(sampler, ASTDPOConfig(str(folder), **{**defaults, **config}), callbacks=callbacks)


def novelty_by_sacrebleu(probe: str, earlier: list[str]) -> float:
    if not probe.split():
        return 0.0
    bleus = [BLEU(max_ngram_order=n, effective_order=True).sentence_score(probe, earlier).score for n in (2, 3, 4, 5)]
    return 1 - fmean(bleus) / 100


def cosine_novelty(probe: str, earlier: list[str]) -> float:
    (a,) = length_vectors([probe])
    return 1 - fmean(a[0] * b[0] + a[1] * b[1] for b in length_vectors(earlier))


def test_a_turn_with_the_papers_figures():
    system = CRTSystem(ScriptedBackend(str), ScriptedBackend(str), None, hand_made, reward=make_reward())
    assert ASTSampler(system, ["a"]).tree_depth == 1
    assert (CRT_SAMPLING.min_new_tokens, CRT_SAMPLING.max_new_tokens, CRT_TARGET_SAMPLING.max_new_tokens) == (
        10,
        20,
        30,
    )
    assert {name: weight for name, (weight, _) in system.reward.terms.items()} == {
        "harm": 1.0,
        "entropy": 0.01,
        "self_bleu_novelty": 1.0,
        "cosine_novelty": 1.0,
        "gibberish": -1.0,
    }
    assert CRTSystem.default_reward(cosine_novelty=0, gibberish=0, entropy=0).terms.keys() == {
        "harm",
        "self_bleu_novelty",
    }


def test_the_target_may_hear_the_opening_or_the_probe_alone():
    tester = ScriptedBackend(lambda texts, sibling: "probe")
    target = ScriptedBackend(lambda texts, sibling: repr(texts))

    def grow(setting):
        system = CRTSystem(tester, target, None, hand_made, setting=setting, reward=make_reward(entropy=0))
        (tree,) = ASTSampler(system, ["Write:"], 1).grow(["Write:"], [0])
        return system, tree

    system, tree = grow("continuation")
    assert system.target_sees_opening and tree.children[0].exchange.response == "('Write:', 'probe')"
    system, tree = grow("instruction")
    assert not system.target_sees_opening and tree.children[0].exchange.response == "('', 'probe')"
    assert tree.opening == (Turn("instruction", "Write:"),)
    assert bytes(tree.children[0].prompt_ids).decode() == "Write:"
    with pytest.raises(InputError, match="setting='both': choose one of continuation, instruction"):
        grow("both")


def test_the_reward_of_every_exchange_equals_the_hand_computation(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    earlier: list[str] = []
    for number in (1, 2, 3):
        round_ = [line for line in lines(tmp_path / "exchanges.jsonl") if line["round"] == number]
        assert len(round_) >= 24
        for line in round_:
            probe = line["probe"]
            entropy = -sum(line["sampling_logprobs"])  # the tester's temperature is 1
            new = (novelty_by_sacrebleu(probe, earlier), cosine_novelty(probe, earlier)) if earlier else (1.0, 1.0)
            new = (new[0] if probe.split() else 0.0, new[1])
            (gibberish,), harm = letters([Exchange((), "", probe)]), len(probe) % 5 / 4
            terms = line["terms"]
            assert terms["entropy"] == pytest.approx(entropy)
            assert (terms["self_bleu_novelty"], terms["cosine_novelty"]) == pytest.approx(new, abs=1e-9)
            assert terms["gibberish"] == pytest.approx(gibberish)
            assert line["reward"] == pytest.approx(harm + 0.01 * entropy + sum(new) - gibberish)
        earlier += [line["probe"] for line in round_]  # scored first, then remembered
    remembered = trainer.sampler.system.reward.state_dict()
    assert remembered["self_bleu_novelty"]["seen"] == remembered["cosine_novelty"]["seen"] == len(earlier)


def test_an_evaluation_adds_nothing_to_the_memory(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    reward = trainer.sampler.system.reward
    before = json.dumps(reward.state_dict())
    trainer.evaluate(["what a day"])
    ASTEvaluator(trainer.sampler, PROMPTS, scorers={"other": hand_made}, draws=5).evaluate()
    trainer.sampler.collect(3)
    assert json.dumps(reward.state_dict()) == before


def test_an_equal_probe_has_an_equal_reward_before_and_after_training_has_filled_the_memory(tmp_path):
    # Weights that do not move: the tester says after training what it said before, word for word.
    system = make_system(reward=make_reward(entropy=0))
    trainer = make_trainer(tmp_path / "run", system, num_train_epochs=2, learning_rate=0.0)
    held_out = ["what a day", "a pot of soup", "thanks"]
    tokenizer = make_tokenizer()
    untrained = HFBackend(make_gpt2(tokenizer), tokenizer, SAMPLING)
    evaluator = ASTEvaluator(trainer.sampler, held_out, draws=5, output_dir=tmp_path / "evaluation")
    evaluator.measure(BASELINE, untrained)
    before = trainer.evaluate(held_out)
    trainer.train()
    assert system.reward.state_dict()["self_bleu_novelty"]["seen"] >= 48
    after = trainer.evaluate(held_out)
    evaluator.measure(TESTER)
    evaluation = evaluator.evaluation()

    said = [
        [node for tree in evaluation.trees[arm, "HFBackend"] for node in tree.nodes()] for arm in (BASELINE, TESTER)
    ]
    assert [node.exchange for node in said[0]] == [node.exchange for node in said[1]]
    assert [node.reward for node in said[0]] == [node.reward for node in said[1]]
    assert evaluation.figure("reward", against=BASELINE).value == 0
    assert after["eval_reward"] == before["eval_reward"]
    by_hand = [
        len(node.exchange.probe) % 5 / 4 - letters([Exchange((), "", node.exchange.probe)])[0] for node in said[1]
    ]
    assert [node.reward for node in said[1]] == pytest.approx(by_hand)
    assert evaluation.settings["reward_left_out"] == ["self_bleu_novelty", "cosine_novelty"]
    assert not any("novelty" in row["figure"] for row in evaluation.figures)
    out = io.StringIO()
    show(evaluation, Console(file=out, width=80, highlight=False))
    told = " ".join(out.getvalue().split())
    assert "Rewards are without self_bleu_novelty, cosine_novelty, which would fall" in told
    # Training itself is still paid for what is new.
    assert {"self_bleu_novelty", "cosine_novelty"} <= lines(tmp_path / "run" / "exchanges.jsonl")[-1]["terms"].keys()


def test_a_reward_of_nothing_but_memory_is_not_compared():
    system = make_system(reward=Reward({"new": (1.0, SelfBLEUNovelty())}))
    evaluation = ASTEvaluator(system, PROMPTS[:2], draws=5).evaluate()
    assert evaluation.figure("reward").value is None  # and not 0
    (tree,) = ASTSampler(system, PROMPTS).grow(PROMPTS[:1], [0])
    assert {node.reward for node in tree.nodes()} == {1.0}


def test_a_resumed_run_remembers_what_the_interrupted_one_did(tmp_path):
    whole = make_trainer(tmp_path / "whole", save_strategy="no")
    whole.train()
    stopped = make_trainer(tmp_path / "stopped", save_strategy="steps", save_steps=1, callbacks=[_StopAfter(3)])
    stopped.train()
    resumed = make_trainer(tmp_path / "stopped", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.sampler.system.reward.state_dict() == whole.sampler.system.reward.state_dict()
    rewards = [[line["reward"] for line in lines(tmp_path / run / "exchanges.jsonl")] for run in ("whole", "stopped")]
    assert rewards[0] == rewards[1]
    for name, weight in weights(whole.model).items():
        assert weight.equal(weights(resumed.model)[name]), name


def test_a_checkpoint_of_another_reward_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="epoch", num_train_epochs=1).train()
    other = make_trainer(tmp_path, make_system(reward=make_reward(cosine_novelty=0)), num_train_epochs=2)
    with pytest.raises(InputError, match="memory of reward terms self_bleu_novelty, cosine_novelty, and the reward's"):
        other.train(resume_from_checkpoint=True)
