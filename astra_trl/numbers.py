"""Numbers that settings may have: one table for flags, files and Python."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from astra_trl.errors import InputError
from astra_trl.lookup import is_dotted_path

Rule = tuple[str, Callable[[float], bool]]

WEIGHT: Rule = ("between -1e+06 and 1e+06", lambda x: abs(x) <= 1e6)  # of a term of the reward
FINITE: Rule = ("a finite number", lambda x: -math.inf < x < math.inf)
# Names of settings by the numbers that they may have. TRL's and transformers' fields are here as far as their code
# fails, or trains on something else, with other numbers. Every number that is not named only has to be finite.
_NAMES: tuple[tuple[Rule, str], ...] = (
    (
        ("at least 1", lambda x: 1 <= x < math.inf),
        """
        tree_width tree_depth width depth draws eval_openings openings_at_a_time trees trees_per_round
        trees_together max_trees_per_round pairs_per_round groups_per_round cases_per_round contexts_per_round
        max_new_tokens max_length max_rows cache_bytes batch_size max_characters max_history n shots
        replay_size max_concurrency requests_per_minute tokens_per_minute max_requests max_total_tokens
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps steps_per_generation
        generation_batch_size num_generations num_generations_eval num_iterations num_ppo_epochs
        num_mini_batches local_rollout_forward_batch_size total_episodes response_length max_completion_length
        precompute_ref_batch_size ref_model_sync_steps pad_to_multiple_of lora_r lora_alpha
        torch_empty_cache_steps eval_accumulation_steps dataloader_prefetch_factor
        """,
    ),
    (
        ("0 or more", lambda x: 0 <= x < math.inf),
        """
        min_new_tokens top_k min_margin max_retries learning_rate num_train_epochs beta weight_decay
        warmup_steps logging_steps eval_steps save_steps eval_delay dataloader_num_workers
        dataset_num_proc neftune_noise_alpha kl_coef vf_coef cliprange cliprange_value epsilon entropy_coef_delta
        nll_coef screened_probes router_aux_loss_coef num_completions_to_print max_tool_calling_iterations
        """,
    ),
    (
        ("above 0", lambda x: 0 < x < math.inf),
        """
        adam_epsilon example_temperature request_timeout timeout ddp_timeout ddp_bucket_cap_mb discopop_tau
        sapo_temperature_neg sapo_temperature_pos
        """,
    ),
    # Logits are float32: beyond these they overflow, or nothing is left of them.
    (("0, or between 1e-06 and 1e+06", lambda x: x == 0 or 1e-6 <= x <= 1e6), "temperature"),
    (("between 1e-06 and 1e+06", lambda x: 1e-6 <= x <= 1e6), "repetition_penalty"),
    (("between 1e-06 and 1", lambda x: 1e-6 <= x <= 1), "top_p"),
    (("above 0 and at most 1", lambda x: 0 < x <= 1), "threshold min_score vllm_gpu_memory_utilization"),
    (
        ("between 0 and 1", lambda x: 0 <= x <= 1),
        """
        gamma lam teach_fraction replay_share variation_share max_failed_share label_smoothing label_smoothing_factor
        ld_alpha min_p ref_model_mixup_alpha top_entropy_quantile
        """,
    ),
    (("0 or more and below 1", lambda x: 0 <= x < 1), "adam_beta1 adam_beta2 lora_dropout"),
    # An infinite bound is none.
    (("0 or more, or inf", lambda x: x >= 0), "max_grad_norm delta epsilon_high"),
    (("a number, or inf", lambda x: x == x), "reward_clip_range"),
    (("-1 (no limit) or more", lambda x: -1 <= x < math.inf), "save_total_limit"),
    (("-1 (one process) or more", lambda x: -1 <= x < math.inf), "local_rank"),
    (("-1 (num_train_epochs holds) or at least 1", lambda x: x == -1 or 1 <= x < math.inf), "max_steps"),
    (("between 0 and 4294967295", lambda x: 0 <= x < 2**32), "seed"),  # numpy's
    (WEIGHT, "weight"),
)
# Settings of this package that count something.
_WHOLE = {
    "tree_width", "tree_depth", "width", "depth", "draws", "eval_openings", "openings_at_a_time", "trees",
    "batch_size", "max_characters", "max_rows", "max_new_tokens", "min_new_tokens", "top_k", "n", "shots",
    "max_history",
}  # fmt: skip
RULES: Mapping[str, Rule] = {name: rule for rule, names in _NAMES for name in names.split()}


def check_number(name: str, value: Any, label: str | None = None, rule: Rule | None = None) -> None:
    """Raise `InputError` if a value is not a number that the setting of that name may have."""
    requirement, is_valid = rule or RULES.get(name, FINITE)
    if not is_number(value) or not is_valid(value):
        raise InputError(f"{label or name} must be {requirement}, got {value!r:.80}")


def require_numbers(**settings: Any) -> None:
    """Raise `InputError` if a setting is not a number that it may have; `None` is one that is not given."""
    for name, value in settings.items():
        if value is not None:
            check_number(name, value)
            if name in _WHOLE and not isinstance(value, int):
                raise InputError(f"{name} must be a whole number, got {value!r}")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise `InputError` if a number among the values, or in a list of them, is not one that its setting may have.
    Numbers in a mapping only have to be finite: its keys are names of another library."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            read_numbers(value, name, {})
        for number in value if isinstance(value, list | tuple) else [value]:
            if is_number(number):
                check_number(name, number)


def read_numbers(settings: Mapping[Any, Any], label: str, rules: Mapping[Any, Rule] = RULES) -> dict[Any, Any]:
    """Return settings in which texts that stand for numbers are numbers, as YAML reads 1e-5 as a text.

    Raises `InputError`, which begins with the label, if a number is not one that its setting may have. Numbers of a
    part of the user's own, which a dotted path names, only have to be finite.
    """
    rules = {} if is_dotted_path(settings.get("type")) else rules
    return {key: _read(value, key, label, rules) for key, value in settings.items()}


def _read(value: Any, name: Any, label: str, rules: Mapping[Any, Rule]) -> Any:
    label = f"{label}: {name}"
    if isinstance(value, Mapping):
        return read_numbers(value, label, {} if is_dotted_path(name) else rules)
    if isinstance(value, list):
        return [_read(part, number, label, {} if is_number(part) else rules) for number, part in enumerate(value)]
    if name in rules:
        value = as_number(value)
    if is_number(value) or (name in rules and isinstance(value, str)):
        check_number(name, value, label, rules.get(name, FINITE))
    return value


def as_number(value: Any) -> Any:
    """Return the number that a text stands for, or the value itself if it is not such a text."""
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def is_number(value: Any) -> bool:
    """`True` for an int or a float; a bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
