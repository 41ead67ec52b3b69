"""Numbers of every setting: what is accepted, and what is refused in one line before anything is loaded."""

import json
import math
from functools import partial
from typing import get_args

import pytest
from conftest import HAS_PPO

from astra_trl import InputError
from astra_trl.backends.api.endpoint import LIMITS, Endpoint
from astra_trl.backends.api.limits import Limits
from astra_trl.backends.api.openai import OpenAIBackend
from astra_trl.backends.base import SamplingParams
from astra_trl.backends.function import FunctionBackend
from astra_trl.cli.config import RunArguments, SystemArguments
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import evaluate_parser, parse_evaluate
from astra_trl.cli.parse_train import parse, train_parser
from astra_trl.numbers import FINITE, RULES, read_numbers
from astra_trl.rewards.credit import Backup
from astra_trl.scorers.base import score_distinct
from astra_trl.trainers import TRAINERS, trainer_classes

ALGORITHMS = [name for name in TRAINERS if name != "ppo" or HAS_PPO]
# Those of the numbers tried that a rule accepts.
VALID = {
    "at least 1": (),
    "0 or more": ("0",),
    "above 0": (),
    "0, or between 1e-06 and 1e+06": ("0",),
    "between 1e-06 and 1e+06": (),
    "between 1e-06 and 1": (),
    "above 0 and at most 1": (),
    "between 0 and 1": ("0",),
    "0 or more and below 1": ("0",),
    "0 or more, or inf": ("0", "inf"),
    "a number, or inf": ("-1", "0", "inf"),
    "-1 (no limit) or more": ("-1", "0"),
    "-1 (one process) or more": ("-1", "0"),
    "-1 (num_train_epochs holds) or at least 1": ("-1",),
    "between 0 and 4294967295": ("0",),
    "between -1e+06 and 1e+06": ("-1", "0"),
    "a finite number": ("-1", "0"),
}
# Settings that PPO refuses at any value but the default.
NOT_READ = ("neftune_noise_alpha", "data_seed", "num_sample_generations", "stop_token_id", "world_size")
NOT_READ += ("num_total_batches", "micro_batch_size", "local_batch_size", "local_mini_batch_size", "mini_batch_size")


def numeric(parser):
    """Names of the fields that hold a number, or a list of them."""
    return {name for name, hint in parser.hints.items() if {int, float} & {hint, *get_args(hint)} - {tuple}}


def refusal(work, capsys):
    """The line that a command ends in, or `None` if it does not."""
    try:
        work()
    except InputError as error:
        return f"error: {error}\n"
    except SystemExit:
        return capsys.readouterr().err
    return None


def check_every_number(parser, read, capsys):
    for name in numeric(parser):
        requirement, _ = RULES.get(name, FINITE)
        for text in ("nan", "inf", "-1", "0", "text"):
            line = refusal(partial(read, [f"--{name}", text]), capsys)
            if text not in VALID[requirement]:
                kinds = [f"--{name} is '{text}': give {kind}" for kind in ("a whole number", "a number")]
                texts = [f"--{name} must be {requirement}, got {text}", *kinds, *(f"{kind} or text" for kind in kinds)]
                texts += [f"pad_to_multiple_of must be at least 1, or auto, got '{text}'"]
                assert line in [f"error: {text}\n" for text in texts], (name, text, line)
            elif line is not None:  # refused in this combination
                assert name in ("logging_steps", "beta", *NOT_READ) or "has no effect" in line, (
                    line
                )  # GFN divides by beta
                # TRL renames one of them.
                assert name.removesuffix("_cap") in line and line.count("\n") == 1, line


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_of_a_run_is_accepted_or_refused_by_name_in_one_line(algorithm, capsys):
    parser = train_parser("astra-trl train", algorithm)
    assert {"learning_rate", "seed", "lora_r", "tree_width", "max_steps", "temperature"} <= numeric(parser)
    check_every_number(parser, lambda argv: parse({"algorithm": algorithm}, argv, parser), capsys)


def test_every_number_of_an_evaluation_is_accepted_or_refused_by_name_in_one_line(capsys):
    own = ["some/tester", "--target", "some/target", "--prompts", "sandbox"]
    assert {"width", "depth", "threshold", "draws", "seed", "max_rows"} <= numeric(evaluate_parser())
    check_every_number(evaluate_parser(), lambda argv: parse_evaluate([*own, *argv]), capsys)


@pytest.mark.skipif("ppo" not in ALGORITHMS, reason="the table has fields of TRL 1.12 that newer versions lack")
def test_every_rule_is_for_a_setting():
    names = {name for algorithm in ALGORITHMS for name in numeric(train_parser("", algorithm))}
    names |= {*numeric(evaluate_parser()), *LIMITS, "reward_clip_range"}
    # Keyword arguments of scorers, systems, reward terms, samplers, evaluators and backends.
    names |= {"batch_size", "max_characters", "max_history", "n", "shots", "example_temperature", "weight"}
    names |= {"max_retries", "request_timeout", "timeout", "trees", "openings_at_a_time"}
    assert names >= RULES.keys()


def test_a_number_is_refused_before_a_run_begins(tmp_path, monkeypatch, capsys):
    from astra_trl.cli import train

    monkeypatch.setattr(train, "run", lambda *given: pytest.fail("the run has begun"))
    for words in (["train"], ["sandbox", "run"]):
        assert main([*words, "--learning_rate", "nan", "--output_dir", str(tmp_path / "run")]) == 1
        assert capsys.readouterr().err == "error: --learning_rate must be 0 or more, got nan\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("learning_rate: .nan", "learning_rate must be 0 or more, got nan"),
        ("learning_rate: nan", "learning_rate must be 0 or more, got nan"),
        ("beta: .inf", "beta must be 0 or more, got inf"),
        ("learning_rate: true", "learning_rate is true: give a number"),
        ("learning_rate:", "learning_rate has no value: give a number"),
        ("learning_rate: 1e-5 a step", "learning_rate is '1e-5 a step': give a number"),
        ("learning_rate: [1, 2]", "learning_rate is a list: give a number"),
        ("seed: 2.5", "seed is 2.5: give a whole number"),
        ("seed: 4294967296", "seed must be between 0 and 4294967295, got 4294967296"),
        ("lora_r: 0", "lora_r must be at least 1, got 0"),
        ("loss_weights: [1, .nan]", "loss_weights must be a finite number, got nan"),
        ("algorithm: rloo\nreward_clip_range: 3", "reward_clip_range is 3: give a list of 2"),
        ("algorithm: rloo\nreward_clip_range: [.nan, 3]", "reward_clip_range must be a number, or inf, got nan"),
        ("max_length: -3", "max_length must be at least 1, got -3"),
        ("beta: 0\nloss_type: ipo", "beta must be above 0, got 0: loss_type ipo divides by it"),
        ("lr_scheduler_kwargs: {min_lr: .nan}", "lr_scheduler_kwargs: min_lr must be a finite number, got nan"),
    ],
)
def test_a_number_in_a_file_is_refused_by_name(yaml, message, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml)
    with pytest.raises(InputError) as refused:
        parse({}, ["--config", str(config)])
    assert message in str(refused.value)


def test_a_number_that_is_optional_can_be_none():
    flags = [part for name in ("max_length", "cache_bytes", "ld_alpha") for part in (f"--{name}", "None")]
    args, training_args, _ = parse({}, flags)
    assert (args.max_length, args.cache_bytes, training_args.ld_alpha) == (None, None, None)
    with pytest.raises(InputError, match="--learning_rate is 'none': give a number"):
        parse({}, ["--learning_rate", "none"])


def test_texts_that_stand_for_numbers_are_numbers(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "learning_rate: 1e-5\nseed: '7'\nmax_steps: 1e2\nloss_type: [sigmoid, sft]\nloss_weights: [1e-1, 1]\n"
        "reward: {harm: 1e0, likelihood: {weight: 2e-1}}\ntarget: {model: openai:m, max_requests: 1000}\n"
        "target_sampling: {temperature: 5e-1}\nsystem_kwargs: {credit: {type: backup, gamma: 9e-1}}\n"
    )
    args, training_args, _ = parse({}, ["--config", str(config)])
    assert (training_args.learning_rate, training_args.seed, training_args.max_steps) == (1e-5, 7, 100)
    assert training_args.loss_weights == [0.1, 1]
    assert args.reward == {"harm": 1.0, "likelihood": {"weight": 0.2}}
    assert args.target == {"model": "openai:m", "max_requests": 1000}
    assert args.target_sampling == {"temperature": 0.5, "max_new_tokens": 128}  # of a chat
    assert args.system_kwargs == {"credit": {"type": "backup", "gamma": 0.9}}


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("reward", {"harm": math.nan}, "harm must be between -1e+06 and 1e+06, got nan"),
        ("reward", {"harm": 1e308}, "harm must be between -1e+06 and 1e+06, got 1e+308"),
        ("reward", {"harm": "much"}, "harm must be between -1e+06 and 1e+06, got 'much'"),
        ("reward", {"harm": {"weight": math.inf}}, "harm: weight must be between -1e+06 and 1e+06, got inf"),
        (
            "reward",
            {"self_bleu_novelty": {"max_history": 0}},
            "self_bleu_novelty: max_history must be at least 1, got 0",
        ),
        ("target", {"max_retries": -1}, "max_retries must be 0 or more, got -1"),
        ("target", {"request_timeout": 0}, "request_timeout must be above 0, got 0"),
        ("target", {"requests_per_minute": math.nan}, "requests_per_minute must be at least 1, got nan"),
        ("target", {"max_failed_share": 5}, "max_failed_share must be between 0 and 1, got 5"),
        ("scorer", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("scorer", {"type": "my_pkg.Scorer", "threshold": math.nan}, "threshold must be a finite number, got nan"),
        ("scorers", {"a": {"type": "overlap", "n": 0}}, "a: n must be at least 1, got 0"),
        ("held_out_scorers", {"max_characters": -1}, "max_characters must be at least 1, got -1"),
        ("target_sampling", {"temperature": -1}, "temperature must be 0, or between 1e-06 and 1e+06, got -1"),
        ("target_sampling", {"top_p": 0}, "top_p must be between 1e-06 and 1, got 0"),
        ("system_kwargs", {"credit": {"type": "backup", "gamma": 2}}, "credit: gamma must be between 0 and 1, got 2"),
        ("system_kwargs", {"shots": 0}, "shots must be at least 1, got 0"),
        ("model_init_kwargs", {"rope": [math.nan]}, "rope: 0 must be a finite number, got nan"),
    ],
)
def test_a_number_in_a_mapping_is_refused_by_name(flag, value, message):
    with pytest.raises(InputError) as refused:
        parse({}, [f"--{flag}", json.dumps(value)])
    assert str(refused.value).removeprefix("--") == f"{flag}: {message}"


def test_numbers_of_own_parts_are_theirs():
    own = {"type": "my_pkg.Scorer", "threshold": 7, "batch_size": -1, "seed": "1e3"}
    assert read_numbers(own, "--scorer") == own
    terms = {"my_pkg.term": {"shots": 0, "weight": -1}}
    assert read_numbers(terms, "--reward") == terms
    args, *_ = parse({}, ["--scorer", json.dumps(own)])
    assert args.scorer == own
    assert SystemArguments(system="my_pkg.System", system_kwargs={"gamma": 3}).system_kwargs == {"gamma": 3}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SamplingParams(temperature=math.nan), "temperature must be 0, or between"),
        (lambda: SamplingParams(top_p=math.nan), "top_p must be between"),
        (lambda: SamplingParams(repetition_penalty=math.inf), "repetition_penalty must be between"),
        (lambda: SamplingParams(2, 3), "min_new_tokens must be between 0 and max_new_tokens, got 3"),
        (lambda: RunArguments(tree_width=0), "tree_width must be at least 1, got 0"),
        (lambda: RunArguments(scorer={"type": "overlap", "n": -1}), "--scorer: n must be at least 1, got -1"),
        (lambda: Limits(requests_per_minute=math.nan), "requests_per_minute must be at least 1, got nan"),
        (lambda: Endpoint(model="m", request_timeout=math.nan), "request_timeout must be above 0, got nan"),
        (
            lambda: OpenAIBackend("m", base_url="http://h/v1", timeout=math.nan),
            "timeout must be above 0, got nan",
        ),
        (lambda: FunctionBackend(len, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: score_distinct(["a"], len, 0), "batch_size must be at least 1, got 0"),
        (lambda: Backup(math.nan), "gamma must be between 0 and 1, got nan"),
    ],
)
def test_a_number_is_refused_in_python_too(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_number_of_a_trainers_config_is_refused_in_python_too(algorithm, tmp_path):
    config_class, _ = trainer_classes(algorithm)
    for name, value in (("learning_rate", math.nan), ("per_device_train_batch_size", 0), ("seed", -1)):
        with pytest.raises(InputError, match=f"^{name} must be .*, got {value}"):
            config_class(str(tmp_path), **{name: value})
    with pytest.raises(InputError, match="^lr_scheduler_kwargs: min_lr must be a finite number, got nan"):
        config_class(str(tmp_path), lr_scheduler_kwargs='{"min_lr": NaN}', use_cpu=True)
