"""Wrong arguments in Python: one line at construction, and never an error of another line of code."""

import pytest
from test_dpo import PROMPTS, make_config, make_system
from trl import DPOConfig

from astra_trl import ASTDPOConfig, ASTDPOTrainer, ASTGRPOTrainer, ASTSampler, InputError
from astra_trl.backends.base import SamplingParams
from astra_trl.backends.function import FunctionBackend
from astra_trl.prompts import load_prompts
from astra_trl.rewards.credit import Backup
from astra_trl.systems.goals import Goal


def make_sampler(**kwargs):
    return ASTSampler(make_system(), PROMPTS, **kwargs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_sampler(tree_depth=1.5), "tree_depth must be a whole number, got 1.5"),
        (lambda: make_sampler(tree_width=2.0), "tree_width must be a whole number, got 2.0"),
        (lambda: make_sampler(tree_width="2"), "tree_width must be at least 1, got '2'"),
        (lambda: make_sampler(tree_width=True), "tree_width must be at least 1, got True"),
        (lambda: make_sampler().collect(trees="3"), "trees must be at least 1, got '3'"),
        (lambda: SamplingParams(temperature="hot"), "temperature must be 0, or between .*, got 'hot'"),
        (lambda: SamplingParams(max_new_tokens=1.5), "max_new_tokens must be a whole number, got 1.5"),
        (lambda: Backup(gamma="0.9"), "gamma must be between 0 and 1, got '0.9'"),
        (lambda: ASTSampler(None, PROMPTS), "the first argument must be a system, .*, got None"),
        (lambda: ASTSampler(PROMPTS, make_system()), "the first argument must be a system, .*, got an object of type"),
        (lambda: FunctionBackend(len, batch_size="8"), "batch_size must be at least 1, got '8'"),
        (lambda: Goal(5), "a goal has no text"),
        (lambda: load_prompts(None), "a prompt set is named by a text or a path, got null"),
        (lambda: load_prompts(["Hello there"]), "a prompt set is named by a text or a path, got list"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda args: ASTDPOTrainer(make_system(), args),
            "first argument of ASTDPOTrainer must be an ASTSampler, got",
        ),
        (lambda args: ASTDPOTrainer(None, args), "first argument of ASTDPOTrainer must be an ASTSampler, got None"),
        (
            lambda args: ASTDPOTrainer(make_sampler(), "out"),
            "args of ASTDPOTrainer must be an ASTDPOConfig, got 'out'",
        ),
        (lambda args: ASTDPOTrainer(make_sampler(), DPOConfig("out", bf16=False)), "must be an ASTDPOConfig, got"),
        (lambda args: ASTGRPOTrainer(make_sampler(), args), "args of ASTGRPOTrainer must be an ASTGRPOConfig, got"),
        (
            lambda args: ASTDPOTrainer(make_sampler(), args, train_dataset=[1]),
            "no argument 'train_dataset': the",
        ),
        (lambda args: ASTDPOTrainer(make_sampler(), args, model="gpt2"), "takes no argument 'model': the model is"),
    ],
)
def test_a_wrong_argument_of_a_trainer_is_named(build, message, tmp_path):
    with pytest.raises(InputError, match=message):
        build(make_config(tmp_path))


def test_pairs_to_teach_are_pairs(tmp_path):
    config = ASTDPOConfig(str(tmp_path), teach_fraction=0.5, report_to="none", use_cpu=True)
    for pairs in ("realtoxicityprompts", ["a text"], [("one", 2)]):
        with pytest.raises(InputError, match=r"must be pairs of texts: give load_teaching_pairs\(...\)"):
            ASTDPOTrainer(make_sampler(), config, teaching_pairs=pairs)


def test_steps_between_checkpoints_need_their_strategy(tmp_path):
    with pytest.raises(InputError, match="save_steps=100 has no effect unless save_strategy is 'steps'"):
        ASTDPOConfig(str(tmp_path), save_steps=100)
    assert ASTDPOConfig(str(tmp_path), save_steps=100, save_strategy="steps", use_cpu=True).save_steps == 100
    assert ASTDPOConfig(str(tmp_path), use_cpu=True).save_strategy == "epoch"
