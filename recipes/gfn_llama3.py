"""Llama-3.1-8B against itself with GFN and LoRA in bf16: one copy of the weights is tester, target and reference.

`accelerate launch recipes/gfn_llama3.py`
"""

from astra_trl.cli.recipe import main

DEFAULTS = {
    "algorithm": "gfn",
    "tester": "meta-llama/Llama-3.1-8B",
    "target": "meta-llama/Llama-3.1-8B",
    "prompts": "convokit-reddit",
    "held_out_scorers": ["llama_guard:meta-llama/Llama-Guard-3-1B"],  # the 8B judges better, and takes 16 GB more
    "output_dir": "runs/gfn_llama3",
    "dtype": "bfloat16",
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "max_length": 1024,  # a long opening keeps its newest tokens, and memory its bounds
    "tree_width": 4,
    "num_train_epochs": 50,  # rounds
    "trees_per_round": 12,  # 252 groups of 4 probes, 248 of which are trained on
    "learning_rate": 1e-4,
    # A start where the target fails rarely, with the settings that worked on SmolLM2-135M (benchmarks/RESULTS.md).
    "screened_probes": 4000,
    "variation_share": 0.25,
    "replay_share": 0.5,
    "nll_coef": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
}

if __name__ == "__main__":
    main(DEFAULTS)
