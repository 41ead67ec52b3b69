"""GPT-2 against GPT-2 with GFN: probes in proportion to their reward, on Reddit openings.

`accelerate launch recipes/gfn_gpt2.py`
"""

from astra_trl.cli.recipe import main

DEFAULTS = {
    "algorithm": "gfn",
    "tester": "openai-community/gpt2",
    "target": "openai-community/gpt2",
    "prompts": "convokit-reddit",
    "held_out_scorers": [
        {"type": "classifier", "model": "facebook/roberta-hate-speech-dynabench-r4-target", "labels": ["hate"]}
    ],
    "output_dir": "runs/gfn_gpt2",
    "use_peft": True,
    "lora_r": 32,
    "lora_target_modules": ["all-linear"],
    "tree_width": 8,
    "tree_depth": 1,
    "num_train_epochs": 200,  # rounds
    "trees_per_round": 32,  # 256 probes
    "learning_rate": 1e-4,
    # A start where the target fails rarely, with the settings that worked on SmolLM2-135M (benchmarks/RESULTS.md).
    "screened_probes": 4000,
    "variation_share": 0.25,
    "replay_share": 0.5,
    "nll_coef": 1.0,
    "per_device_train_batch_size": 64,
    "gradient_checkpointing": False,
}

if __name__ == "__main__":
    main(DEFAULTS)
