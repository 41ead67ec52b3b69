"""A run's settings as a card shows them, and the command that runs it again."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from astra_trl.backends.api.endpoint import API_PREFIX as PREFIX
from astra_trl.backends.api.endpoint import CALLING as API_FLAGS
from astra_trl.errors import InputError
from astra_trl.hub.hiding import last_part
from astra_trl.text import parse_yaml, visible

# In the order in which the command names them.
_WHO = ("tester", "target", "baseline", "world", "model_name_or_path")
_OPENINGS = ("prompts", "prompts_column", "eval_prompts", "eval_openings", "teaching_pairs", "teach_fraction")
_SCORERS = (
    "scorer", "held_out_scorers", "keywords", "detoxify_category", "detoxify_checkpoint", "detoxify_config_path",
    "llama_guard_categories", "classifier_labels", "judge_rubric", "judge_base_url", "judge_answer",
)  # fmt: skip
_REWARD = (
    "probe_and_response_weight", "likelihood_weight", "probe_weight", "length_weight", "non_repeating_weight",
    "combine", "credit", "credit_gamma",
)  # fmt: skip
_TREES = ("tree_width", "tree_depth")
SAMPLING = ("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "max_length")
_TRAINING = (
    "num_train_epochs", "trees_per_round", "max_trees_per_round", "pairs_per_round", "groups_per_round",
    "contexts_per_round", "min_margin", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "loss_type", "beta",
    "label_smoothing", "reward_weights", "scale_rewards", "num_iterations", "epsilon", "normalize_advantages",
    "num_ppo_epochs", "num_mini_batches", "kl_coef", "cliprange", "vf_coef", "gamma", "lam", "whiten_rewards", "seed",
    "dtype", "bf16", "fp16", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit",
    "load_in_8bit",
)  # fmt: skip
HYPERPARAMETERS = (*_TREES, *SAMPLING, *_REWARD, *_TRAINING)
_COMMAND = (*_WHO, *API_FLAGS, *_OPENINGS, *_SCORERS, *_REWARD, *_TREES, *SAMPLING, *_TRAINING)
_KINDS = ("detoxify", "llama_guard", "classifier", "keyword", "judge")


def read_config(run: Path) -> dict[str, Any]:
    """What `config.yaml` holds; nothing where there is none."""
    file = run / "config.yaml"
    if not file.exists():
        return {}
    try:
        found = parse_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"'{file}' is damaged: restore it, or delete it and its run is described without it"
        ) from error
    return found if isinstance(found, dict) else {}


def chosen(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Names and values of those settings that were set and had a say, paths of this machine shortened."""
    needed = {"scorer": not config.get("world"), "teach_fraction": config.get("teaching_pairs")}
    scorers = [*([config.get("scorer")] if needed["scorer"] else []), *(config.get("held_out_scorers") or [])]
    kinds = {str(scorer).partition(":")[0] for scorer in scorers}
    for name in names:
        value = config.get(name)
        if value is None or value is False or value == [] or isinstance(value, dict):
            continue
        if name.startswith("lora_") and not config.get("use_peft"):
            continue
        if (kind := _kind_of(name)) and kind not in kinds:
            continue
        if name in ("scorer", "teach_fraction") and not needed[name]:
            continue
        if name in API_FLAGS and not str(config.get("target")).startswith(PREFIX):
            continue
        if name in ("judge_base_url", "target_base_url"):
            value = "URL"  # an address within somebody's network, with a key in it maybe
        if name == "credit_gamma" and config.get("credit") != "backup":
            continue
        yield name, [shown_path(part) for part in value] if isinstance(value, list) else shown_path(value)


def _kind_of(name: str) -> str | None:
    # The kind of scorer that a setting is of.
    return next((kind for kind in _KINDS if name.startswith(kind)), None)


def shown_path(value: Any) -> Any:
    """A setting's value, of a path its last part, also behind the kind of a scorer or of a target."""
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    return f"{kind}:{last_part(rest)}" if colon and kind in (*_KINDS, PREFIX[:-1]) else last_part(value)


def command(config: Mapping[str, Any], system: str, algorithm: str) -> str:
    """What to type to run it again, a flag a line."""
    lines = [f"astra-trl train --system {shlex.quote(system)} --algorithm {shlex.quote(algorithm)}"]
    for name, value in chosen(config, _COMMAND):
        values = value if isinstance(value, list) else [value]
        parts = (str(part).lower() if isinstance(part, bool) else str(part) for part in values)
        lines.append(f"  --{name} {' '.join(shlex.quote(visible(part)) for part in parts)}")
    return " \\\n".join(lines)


def fenced(text: str, language: str) -> str:
    """A block of code that nothing in the text ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def inline(value: Any) -> str:
    """A value as one line of Markdown in which nothing acts as Markdown or HTML."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(visible(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*_\[\]#|~@$]|:(?=/)|(?<=www)\.", r"\\\g<0>", text)
