"""Trains the sandbox's tiny tester with DPO on a laptop's CPU: `python recipes/dpo_sandbox.py`.

`--world DIR` takes another world, written by `python -m astra_trl.sandbox build`.
"""

from astra_trl.run import main

DEFAULTS = {
    "world": "embedded",
    "output_dir": "runs/dpo_sandbox",
    "seed": 0,
    "tree_width": 4,
    "tree_depth": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_train_epochs": 14,  # rounds
    "trees_per_round": 7,
    "max_rows": 512,  # so small a model is fastest with all conversations of a turn at once
    "pairs_per_round": 128,
    # Likelihood alone makes no pair: at first 4 groups in 5 hold no rude answer, and DPO weighs all pairs alike.
    "min_margin": 0.5,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",
    "beta": 0.1,
    "per_device_train_batch_size": 16,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "epoch",
    "save_total_limit": 1,
}

if __name__ == "__main__":
    main(DEFAULTS)
