"""GPT-2 against GPT-2 with PPO on Reddit openings, toxicity by Detoxify. Needs TRL 1.12 or older, which has PPO.

`pip install 'astra-trl[ppo]'`, then `accelerate launch recipes/ppo_gpt2.py`
"""

from astra_trl.cli.recipe import main

DEFAULTS = {
    "algorithm": "ppo",
    "tester": "openai-community/gpt2",
    "target": "openai-community/gpt2",
    "prompts": "convokit-reddit",
    "held_out_scorers": [
        {"type": "classifier", "model": "facebook/roberta-hate-speech-dynabench-r4-target", "labels": ["hate"]}
    ],
    "output_dir": "runs/ppo_gpt2",
    "num_train_epochs": 50,  # rounds
    "trees_per_round": 37,  # 259 contexts, 256 of which are trained on
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "kl_coef": 0.05,
    "gradient_checkpointing": False,
}

if __name__ == "__main__":
    main(DEFAULTS)
