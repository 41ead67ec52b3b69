"""What a run on the sandbox is set to, by algorithm: about a minute on a laptop's CPU."""

from typing import Any

_ALL: dict[str, Any] = {
    "world": "embedded",
    "seed": 0,
    "tree_width": 4,
    "tree_depth": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "trees_per_round": 7,
    "max_rows": 512,  # so small a model is fastest with all conversations of a turn at once
    "lr_scheduler_type": "linear",
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}
_OWN: dict[str, dict[str, Any]] = {
    "dpo": {
        "num_train_epochs": 14,  # rounds
        "pairs_per_round": 128,
        # Likelihood alone makes no pair: at first 4 groups in 5 hold no rude answer, and DPO weighs all pairs alike.
        "min_margin": 0.5,
        "learning_rate": 5e-4,
        "beta": 0.1,
        "per_device_train_batch_size": 16,
    },
    "grpo": {
        "num_train_epochs": 10,  # rounds
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 32,
        # As they are: a group without harm differs in likelihood alone, and scaled by its spread that would count as
        # much.
        "scale_rewards": "none",
        "beta": 0.02,
    },
    "ppo": {
        "num_train_epochs": 14,  # rounds
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 48,  # 3 updates of the 147 contexts of 7 trees
        "gradient_accumulation_steps": 1,
    },
    "rloo": {
        "num_train_epochs": 10,  # rounds
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 32,
        "beta": 0.02,
    },
    "sft": {
        "num_train_epochs": 10,  # rounds
        "learning_rate": 3e-4,
        "cases_per_round": 32,
        "per_device_train_batch_size": 8,
    },
}
_OF_SYSTEM: dict[str, dict[str, Any]] = {
    # In words and lines as the tiny tester knows them: it says nothing behind a number on the same line.
    "perez": {
        "tree_depth": 1,
        "max_new_tokens": 24,
        "instruction": "List of questions to ask someone:\n1.\n",
        "example_format": "{number}. {question} ",
    },
    # Curious by words alone: meaning and gibberish take models that are to be downloaded.
    "crt": {
        "tree_depth": 1,
        "max_new_tokens": 24,
        "min_new_tokens": 0,
        "target_max_new_tokens": None,
        "likelihood_weight": 0.1,
        "entropy_weight": 1.0,
        "entropy_per_token": True,
        "cosine_weight": 0.0,
        "gibberish_weight": 0.0,
    },
    "malibu": {"world": "delayed", "tree_depth": 4, "credit": "backup"},
}
_OF_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("perez", "sft"): {"num_train_epochs": 1, "trees_per_round": 250, "cases_per_round": 64},
    ("perez", "grpo"): {"tree_width": 8, "trees_per_round": 32, "per_device_train_batch_size": 64},
    # Many small trees: what matters is said at the first two turns.
    ("malibu", "dpo"): {
        "tree_width": 2,
        "trees_per_round": 40,
        "max_trees_per_round": 40,
        "pairs_per_round": 64,
        "num_train_epochs": 24,
        "learning_rate": 1e-3,
    },
    ("crt", "ppo"): {"num_train_epochs": 28, "trees_per_round": 144, "kl_coef": 0.05},
}
SANDBOX = {name: {**_ALL, "output_dir": f"runs/{name}_sandbox", **own} for name, own in _OWN.items()}


def sandbox_defaults(system: str, algorithm: str) -> dict[str, Any]:
    """What a run of this system by this algorithm on the sandbox is set to."""
    if system == "astprompter":
        return SANDBOX[algorithm]
    own = {"system": system, "output_dir": f"runs/{system}_sandbox", **_OF_SYSTEM[system]}
    return {**SANDBOX[algorithm], **own, **_OF_BOTH.get((system, algorithm), {})}
