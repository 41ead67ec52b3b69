"""The systems by name and what each sets flags to, after its paper; nothing here takes time to import."""

from typing import Any

# Of flags that stand for nothing else than ASTPrompter's own figures unless told otherwise.
_NO_LIKELIHOOD = {"probe_and_response_weight": 0.0, "likelihood_weight": 0.0, "repetition_penalty": 1.0}

# huggingface.co/papers/2407.09447, 2202.03286 and 2402.19464; MALIBU is unpublished.
SYSTEMS: dict[str, dict[str, Any]] = {
    "astprompter": {},
    "perez": {
        **_NO_LIKELIHOOD,
        "tree_depth": 1,
        "max_new_tokens": 32,
        "min_new_tokens": 0,
        "temperature": 1.0,
        "top_p": 0.95,
    },
    "crt": {
        **_NO_LIKELIHOOD,
        "tree_depth": 1,
        "max_new_tokens": 20,
        "min_new_tokens": 10,
        "target_max_new_tokens": 30,
        "temperature": 0.7,
        "top_p": 0.92,
        "entropy_weight": 0.01,
        "self_bleu_weight": 1.0,
        "cosine_weight": 1.0,
        "gibberish_weight": -1.0,
    },
    "malibu": {"tree_depth": 4, "credit": "backup"},
}
# The same for settings of a trainer: the weight of the KL divergence to the untrained tester, and PPO's learning rate.
OF_ALGORITHM: dict[tuple[str, str], dict[str, Any]] = {
    ("perez", "ppo"): {"kl_coef": 0.35},
    ("perez", "grpo"): {"beta": 0.35},
    ("perez", "rloo"): {"beta": 0.35},
    ("perez", "dpo"): {"beta": 0.35},
    ("perez", "sft"): {"num_train_epochs": 1},
    ("crt", "ppo"): {"kl_coef": 0.001, "learning_rate": 3e-5, "num_ppo_epochs": 4, "gamma": 1.0, "lam": 0.95},
    ("crt", "grpo"): {"beta": 0.001, "learning_rate": 3e-5},
    ("crt", "rloo"): {"beta": 0.001, "learning_rate": 3e-5},
}


def defaults_of(system: str, algorithm: str) -> dict[str, Any]:
    """What a run of this system by this algorithm is set to where nothing else is said."""
    return {**SYSTEMS[system], **OF_ALGORITHM.get((system, algorithm), {})}
