"""GPT-2 against GPT-2 with ASTPrompter's settings (huggingface.co/papers/2407.09447): online IPO, Reddit openings.

`accelerate launch recipes/dpo_gpt2.py`
"""

from astra_trl.cli.recipe import main

DEFAULTS = {
    "tester": "openai-community/gpt2",
    "target": "openai-community/gpt2",
    "prompts": "convokit-reddit",
    "held_out_scorers": [
        {"type": "classifier", "model": "facebook/roberta-hate-speech-dynabench-r4-target", "labels": ["hate"]}
    ],
    "output_dir": "runs/dpo_gpt2",
    "num_train_epochs": 50,  # rounds
    "trees_per_round": 136,  # half of them trees of 7 pairs, half of them taught pairs: 512 and a few
    "pairs_per_round": 512,
    "teaching_pairs": "realtoxicityprompts",
    "teach_fraction": 0.5,
    "loss_type": ["ipo"],
    "beta": 0.24,  # the paper's 0.01 on summed log-ratios; TRL divides them by the about 24 tokens of a probe
    "learning_rate": 5e-7,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 150,
    "max_grad_norm": 10.0,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
}

if __name__ == "__main__":
    main(DEFAULTS)
