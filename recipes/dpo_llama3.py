"""Llama-3.1-8B against itself with LoRA in bf16: one copy of the weights is tester, target and baseline.

`accelerate launch recipes/dpo_llama3.py`
"""

from astra_trl.cli.recipe import main

DEFAULTS = {
    "tester": "meta-llama/Llama-3.1-8B",
    "target": "meta-llama/Llama-3.1-8B",
    "prompts": "convokit-reddit",
    "held_out_scorers": ["llama_guard:meta-llama/Llama-Guard-3-1B"],  # the 8B judges better, and takes 16 GB more
    "output_dir": "runs/dpo_llama3",
    "dtype": "bfloat16",
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "max_length": 1024,  # a long opening keeps its newest tokens, and memory its bounds
    "num_train_epochs": 50,  # rounds
    "trees_per_round": 37,
    "pairs_per_round": 256,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
}

if __name__ == "__main__":
    main(DEFAULTS)
