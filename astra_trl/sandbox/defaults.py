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
}
SANDBOX = {name: {**_ALL, "output_dir": f"runs/{name}_sandbox", **own} for name, own in _OWN.items()}
