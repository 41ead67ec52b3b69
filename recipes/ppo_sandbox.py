"""Trains the sandbox's tiny tester with PPO on a laptop's CPU: `python recipes/ppo_sandbox.py`.

`--world DIR` takes another world, written by `python -m astra_trl.sandbox build`.
"""

from astra_trl.run import main

DEFAULTS = {
    "world": "embedded",
    "output_dir": "runs/ppo_sandbox",
    "seed": 0,
    "tree_width": 4,
    "tree_depth": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_train_epochs": 14,  # rounds
    "trees_per_round": 7,
    "max_rows": 512,  # so small a model is fastest with all conversations of a turn at once
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 48,  # 3 updates of the 147 contexts of 7 trees
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}

if __name__ == "__main__":
    main(DEFAULTS, algorithm="ppo")
