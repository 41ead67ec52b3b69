"""Settings without effect: each is refused in one line, and every field of TRL's configs is read or refused."""

import contextlib
import json
import shlex
from dataclasses import fields
from fnmatch import fnmatch

import pytest
import yaml

from astra_trl import InputError
from astra_trl.cli.config import EvaluateArguments, LoadArguments, RunArguments
from astra_trl.cli.main import main
from astra_trl.cli.parse_evaluate import parse_evaluate
from astra_trl.cli.parse_train import parse, train_parser
from astra_trl.cli.unused_flags import RULES
from astra_trl.errors import MissingExtra
from astra_trl.sandbox import load_world
from astra_trl.trainers import TRAINERS, trainer_classes

WORLD = load_world()
QUIET = {"report_to": "none", "output_dir": "out"}


def algorithms() -> list[str]:
    known = []
    for name in TRAINERS:
        with contextlib.suppress(MissingExtra):  # PPO's, with a newer TRL
            known += [name for _ in [trainer_classes(name)]]
    return known


def train(*flags: str) -> None:
    parse(QUIET, flags)


def evaluate(*flags: str) -> None:
    parse_evaluate(["some/model", *flags])


# For each rule the beginning of its message, flags that it refuses, and flags with which the setting has an effect.
TRAINING = [
    ("model_name_or_path beside --tester", "--model_name_or_path a --tester b", "--model_name_or_path a"),
    (
        "model_revision on models that are folders",
        "--model_revision v2 --tester WORLD",
        "--model_revision v2 --tester a",
    ),
    ("dtype beside dtype", '--dtype bfloat16 --model_init_kwargs \'{"dtype": "float32"}\'', "--dtype bfloat16"),
    (
        "attn_implementation beside",
        '--attn_implementation sdpa --model_init_kwargs \'{"attn_implementation": "eager"}\'',
        "--attn_implementation sdpa",
    ),
    ("lora_r without --use_peft", "--lora_r 8", "--lora_r 8 --use_peft"),
    (
        "lora_target_modules without --use_peft",
        "--lora_target_modules all-linear",
        "--lora_target_modules all-linear --use_peft",
    ),
    ("use_dora without --use_peft", "--use_dora", "--use_dora --use_peft"),
    (
        "bnb_4bit_quant_type without --load_in_4bit",
        "--bnb_4bit_quant_type fp4",
        "--bnb_4bit_quant_type fp4 --load_in_4bit",
    ),
    ("chat on a --target behind an API", "--chat target --target openai:m", "--chat both --target openai:m"),
    (
        "target_sampling on a --target that is a function",
        "--target my.fn --target_sampling '{\"temperature\": 0}'",
        "--target openai:m --target_sampling '{\"temperature\": 0}'",
    ),
    (
        "target_sampling on a --target behind an API",
        "--target openai:m --target_sampling '{\"top_k\": 5}'",
        "--target a --target_sampling '{\"top_k\": 5}'",
    ),
    (
        "top_p with --temperature 0",
        "--top_p 0.9 --temperature 0",
        "--top_p 0.9 --temperature 0 --target_sampling '{\"temperature\": 1}'",
    ),
    ("top_k with --temperature 0", "--top_k 9 --temperature 0", "--top_k 9"),
    (
        "target_sampling by its top_p",
        '--target_sampling \'{"top_p": 0.5, "temperature": 0}\'',
        "--target_sampling '{\"top_p\": 0.5}'",
    ),
    ("prompts with --system perez", "--system perez --prompts sandbox", "--prompts sandbox"),
    ("eval_prompts without --prompts", "--eval_prompts a.txt", "--eval_prompts a.txt --prompts sandbox"),
    (
        "prompts_column without --prompts",
        "--prompts_column a --world embedded",
        "--prompts_column a --prompts sandbox",
    ),
    (
        "teaching_pairs with --algorithm grpo",
        "--teaching_pairs a --algorithm grpo",
        "--teaching_pairs a --teach_fraction 0.5",
    ),
    ("teaching_pairs without --teach_fraction", "--teaching_pairs a", "--teaching_pairs a --teach_fraction 0.5"),
    ("teach_fraction without --teaching_pairs", "--teach_fraction 0.5", "--teach_fraction 0"),
    (
        "goal with --system perez",
        "--goal a --system perez",
        '--goal a --system perez --scorer \'{"type": "judge", "model": "openai:m"}\'',
    ),
    ("scorer with --world", "--world embedded --scorer nonsense:xyz", "--scorer keyword:a.txt"),
    (
        "scorers with --world",
        '--world embedded --scorers \'{"a": {"type": "keyword"}}\'',
        '--scorers \'{"a": {"type": "keyword"}}\'',
    ),
    (
        "scorer beside --scorers",
        '--scorer detoxify --scorers \'{"a": {"type": "keyword"}}\'',
        "--held_out_scorers detoxify",
    ),
    (
        "system_kwargs by shots",
        "--system perez --system_kwargs '{\"shots\": 3}'",
        '--system perez --system_kwargs \'{"instruction": "a"}\'',
    ),
    (
        "num_generations beside --tree_width",
        "--algorithm grpo --num_generations 3",
        "--algorithm grpo --num_generations 2",
    ),
    (
        "max_completion_length beside --max_new_tokens",
        "--algorithm rloo --max_completion_length 9",
        "--algorithm rloo --max_completion_length 24",
    ),
    (
        "warmup_steps with --lr_scheduler_type constant",
        "--warmup_steps 9",
        "--warmup_steps 9 --lr_scheduler_type linear",
    ),
    (
        "logging_steps without --logging_strategy steps",
        "--logging_steps 9 --logging_strategy epoch",
        "--logging_steps 9",
    ),
    (
        "save_steps without --save_strategy steps",
        "--save_steps 9 --save_strategy no",
        "--save_steps 9 --save_strategy steps",
    ),
    ("save_total_limit with --save_strategy no", "--save_total_limit 9 --save_strategy no", "--save_total_limit 9"),
    ("eval_steps without --eval_strategy steps", "--eval_steps 9", "--eval_steps 9 --eval_strategy steps"),
    ("eval_delay without --eval_strategy", "--eval_delay 1", "--eval_delay 1 --eval_strategy epoch"),
    ("push_transcripts without --push_to_hub", "--push_transcripts", "--push_transcripts false"),
]
EVALUATION = [
    ("prompts with --system perez", "--target a --system perez --prompts sandbox", "--target a --prompts sandbox"),
    (
        "prompts_column without --prompts",
        "--target a --world embedded --prompts_column a",
        "--target a --prompts sandbox --prompts_column a",
    ),
    ("scorer with --world", "--world embedded --scorer detoxify", "--world embedded --held_out_scorers detoxify"),
    (
        "use_bnb_nested_quant without --load_in_4bit",
        "--target a --prompts sandbox --use_bnb_nested_quant",
        "--target a --prompts sandbox --use_bnb_nested_quant --load_in_4bit",
    ),
    (
        "examples without few_shot",
        "--target a --prompts sandbox --examples a",
        '--target a --system perez --system_kwargs \'{"method": "few_shot"}\' --examples a',
    ),
    (
        "system_kwargs by shots",
        "--target a --system perez --system_kwargs '{\"shots\": 3}'",
        '--target a --system perez --system_kwargs \'{"shots": 3, "method": "few_shot"}\'',
    ),
    (
        "response_cache without",
        "--target a --prompts sandbox --response_cache a",
        '--target a --prompts sandbox --response_cache a --scorer \'{"type": "judge", "model": "openai:m"}\'',
    ),
]


@pytest.mark.parametrize(
    ("command", "message", "refused", "allowed"),
    [(train, *case) for case in TRAINING] + [(evaluate, *case) for case in EVALUATION],
)
def test_a_setting_without_effect_is_refused_in_one_line_that_names_both(command, message, refused, allowed):
    with pytest.raises(InputError) as stopped:
        command(*shlex.split(refused.replace("WORLD", WORLD.tester)))
    name, _, because = message.partition(" ")
    assert str(stopped.value).startswith(f"--{name} has no effect {because}") and ": " in str(stopped.value)
    command(*shlex.split(allowed))


def test_an_adapter_that_is_trained_further_keeps_its_settings(tmp_path):
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(InputError, match="^--lora_r has no effect on --tester, an adapter that is trained further"):
        train("--tester", str(tmp_path), "--use_peft", "--lora_r", "8")


def test_every_rule_has_a_case_and_names_settings_that_exist():
    cases = [message.split(" ", 1) for message, *_ in (*TRAINING, *EVALUATION)]
    known = {f.name for cls in (RunArguments, EvaluateArguments, LoadArguments) for f in fields(cls)}
    known |= {name for algorithm in algorithms() for name in train_parser("astra-trl", algorithm).hints}
    elsewhere = ("without --use_liger_kernel", "on --tester, an adapter")  # needs the package; has a test of its own
    for rule in RULES:
        assert set(rule.names) <= known | {"response_length"}
        because = rule.because.replace("{s.system}", "perez").replace("{s.algorithm}", "grpo")
        tested = any(name in rule.names and because.startswith(start) for name, start in cases)
        assert tested or because.startswith(elsewhere), because


def test_settings_of_a_file_are_refused_by_their_names_in_it_and_defaults_never(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora-r: 8\nuse_peft: no\n")
    with pytest.raises(InputError, match=rf"^config '{file}': lora_r has no effect without --use_peft"):
        parse(QUIET, ["--config", str(file)])
    file.write_text("prompts_column:\nteach_fraction: 0\npush_transcripts: no\nworld: embedded\n")
    parse(QUIET, ["--config", str(file)])
    file.write_text("lora_r:\n")
    with pytest.raises(InputError, match="lora_r has no value: give a whole number"):
        parse(QUIET, ["--config", str(file)])
    recipe = {**QUIET, "lora_r": 8, "teaching_pairs": "a", "world": "embedded", "scorer": "detoxify"}
    parse(recipe, [])


def test_what_a_run_or_a_dry_run_wrote_starts_again_whatever_it_holds(tmp_path):
    # A recipe's settings of an adapter and of pairs, which its flags have switched off.
    recipe = {**QUIET, "lora_r": 8, "use_peft": True, "teaching_pairs": "a", "teach_fraction": 0.5}
    args, training_args, model_args = parse(
        recipe, ["--use_peft", "false", "--teach_fraction", "0", "--world", "embedded"]
    )
    settings = {**training_args.to_dict(), **vars(model_args), **vars(args)}
    settings = {key: value for key, value in settings.items() if not key.endswith("_token")}
    file = tmp_path / "config.yaml"
    for wanted in (settings, {key: value for key, value in settings.items() if value is not None}):
        file.write_text(yaml.safe_dump(wanted))
        assert parse(QUIET, ["--config", str(file)])[0].teaching_pairs == "a"
        with pytest.raises(InputError, match="^--scorer has no effect with --world"):
            parse(QUIET, ["--config", str(file), "--scorer", "detoxify"])
    file.write_text(yaml.safe_dump({name: settings[name] for name in ("teaching_pairs", "world")}))
    with pytest.raises(InputError, match="teaching_pairs has no effect without --teach_fraction above 0"):
        parse(QUIET, ["--config", str(file)])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", algorithms())
def test_the_settings_of_a_sandbox_run_start_it_again(algorithm, tmp_path, capsys):
    small = ["--num_train_epochs", "1", "--trees_per_round", "2", "--eval_openings", "2", "--report_to", "none"]
    small += {"dpo": ["--pairs_per_round", "16"], "sft": ["--cases_per_round", "8"]}.get(algorithm, [])
    small += ["--per_device_train_batch_size", "8"]
    assert main(["sandbox", "run", "--algorithm", algorithm, *small, "--output_dir", str(tmp_path / "run")]) == 0
    again = ["train", "--config", str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0
    first, second = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("run", "again"))
    assert {key for key in first if first[key] != second[key]} <= {"output_dir", "logging_dir", "run_name"}
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "again")]
    assert [{**summary, "seconds": 0} for summary in figures[:1]] == [
        {**summary, "seconds": 0} for summary in figures[1:]
    ]


# -- fields of TRL's configs

# Read by transformers' Trainer or one of its callbacks, by accelerate, or by this package. `do_train` is true of every
# run, and `local_rank` is what torch's old launcher passes.
TRANSFORMERS = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "average_tokens_across_devices",
    "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "tf32", "activation_checkpointing",
    "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "use_cache",
    "neftune_noise_alpha", "torch_empty_cache_steps", "auto_find_batch_size", "logging_strategy", "logging_steps",
    "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "include_num_input_tokens_seen", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_only_model",
    "save_strategy", "save_steps", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub",
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "full_determinism", "seed", "data_seed", "use_cpu",
    "accelerator_config", "parallelism_config", "dataloader_drop_last", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "remove_unused_columns", "label_names",
    "train_sampling_strategy", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "debug",
    "skip_memory_metrics", "do_train", "do_eval", "resume_from_checkpoint", "local_rank",
}  # fmt: skip
OWN = {"trees_per_round", "max_trees_per_round", "trees_together", "push_transcripts"}
OWN |= {"model_init_kwargs", "trust_remote_code"}  # read as models are loaded
# Read by the trainers of TRL, or of this package before them: some are refused by what they are set to.
PAIRS = {
    "pairs_per_round", "min_margin", "teach_fraction", "router_aux_loss_coef", "disable_dropout", "max_length",
    "padding_free", "pad_to_multiple_of", "precompute_ref_log_probs", "loss_type", "loss_weights", "ld_alpha",
    "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing", "beta", "use_weighting", "discopop_tau",
    "activation_offloading", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "pad_token",
    "shared_context",
}  # fmt: skip
CASES = {
    "cases_per_round", "min_score", "router_aux_loss_coef", "chat_template_path", "eos_token", "max_length", "packing",
    "padding_free", "pad_to_multiple_of", "completion_only_loss", "loss_type", "activation_offloading", "pad_token",
}  # fmt: skip
GROUPS = TRANSFORMERS - {"train_sampling_strategy"} | OWN | {
    "groups_per_round", "min_margin", "num_generations", "temperature", "top_p", "top_k", "repetition_penalty",
    "max_completion_length", "disable_dropout", "router_aux_loss_coef", "shuffle_dataset", "pad_to_multiple_of",
    "generation_batch_size", "steps_per_generation", "beta", "num_iterations", "epsilon", "epsilon_high",
    "reward_weights", "mask_truncated_completions", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps",
    "log_completions", "num_completions_to_print", "log_unique_prompts", "shared_context",
}  # fmt: skip
READ = {
    "dpo": TRANSFORMERS | OWN | PAIRS,
    "sft": TRANSFORMERS | OWN | CASES,
    "rloo": GROUPS | {"normalize_advantages", "reward_clip_range"},
    "gfn": GROUPS - {
        "epsilon", "epsilon_high", "mask_truncated_completions", "router_aux_loss_coef", "sync_ref_model",
        "ref_model_mixup_alpha", "ref_model_sync_steps",
    } | {"replay_share", "replay_size", "screened_probes", "variation_share", "nll_coef"},
    "grpo": GROUPS | {
        "cast_lm_head_to_fp32", "delta", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos",
        "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg", "importance_sampling_level",
        "multi_objective_aggregation", "scale_rewards", "loss_type", "top_entropy_quantile", "entropy_coef",
        "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
        "off_policy_mask_threshold", "use_bias_correction_kl", "log_completions_hub_repo",
    },
    "ppo": OWN | {
        "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
        "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps",
        "max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
        "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
        "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay", "save_only_model", "save_strategy",
        "save_steps", "save_on_each_node", "save_total_limit", "push_to_hub", "hub_token", "hub_private_repo",
        "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end",
        "metric_for_best_model", "greater_is_better", "seed", "use_cpu", "dataloader_persistent_workers",
        "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "do_train", "do_eval",
        "resume_from_checkpoint", "local_rank", "num_mini_batches", "total_episodes",
        "local_rollout_forward_batch_size", "response_length", "stop_token", "temperature", "missing_eos_penalty",
        "num_ppo_epochs", "whiten_rewards", "kl_coef", "kl_estimator", "cliprange", "vf_coef", "cliprange_value",
        "gamma", "lam", "ds3_gather_for_generation", "contexts_per_round",
        # Of work that there is none of, and no result depends on: they may be in a file that other algorithms share.
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_in_order",
        "dataloader_multiprocessing_context", "skip_memory_metrics",
    },
}  # fmt: skip
# What transformers refuses by itself on a machine without a GPU, or without other settings or packages.
NEEDS_MORE = {
    "bf16_full_eval", "fp16_full_eval", "parallelism_config", "enable_jit_checkpoint", "use_liger_kernel",
}  # fmt: skip
VALUES = {
    "vllm_gpu_memory_utilization": 0.5, "ref_model_mixup_alpha": 0.5,
    "accelerator_config": {"split_batches": True}, "include_for_metrics": ["inputs"], "label_names": ["x"],
    "include_num_input_tokens_seen": "all", "train_sampling_strategy": "sequential", "log_level": "info",
    "log_level_replica": "info", "debug": "underflow_overflow", "liger_kernel_config": {"rope": True},
    "generation_kwargs": {"min_p": 0.1}, "chat_template_kwargs": {"a": 1}, "dataset_kwargs": {"a": 1},
    "transformers_continuous_batching_config": {"a": 1}, "vllm_importance_sampling_cap": 2.0,
}  # fmt: skip
# What TRL sets in place of a field of an old name.
RENAMED = {
    "use_transformers_paged": "use_transformers_continuous_batching",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
}


@pytest.mark.parametrize("algorithm", algorithms())
def test_every_field_is_read_or_refused(algorithm, tmp_path):
    config_class, _ = trainer_classes(algorithm)
    for field in fields(config_class):
        name = field.name
        refused = any(fnmatch(name, pattern) for pattern in config_class.unread)
        assert refused != (name in READ[algorithm]), name
        if not refused or name in NEEDS_MORE:
            continue
        default = getattr(config_class(str(tmp_path), report_to="none"), name)
        other = VALUES.get(name)
        if other is None:
            other = (
                "x" if isinstance(default, str) else not default if isinstance(default, bool) else (default or 0) + 1
            )
        known_as = RENAMED.get(name, name)
        with pytest.raises(InputError, match=f"^{known_as}=.* has no effect, as .*: leave it out"):
            config_class(str(tmp_path), report_to="none", **{name: other})
