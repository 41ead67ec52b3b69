"""Thin subclasses of TRL's trainers: an epoch is a round. Import them from the package root."""

import importlib
from typing import Any

from astra_trl.errors import InputError

# Module, config and trainer of each algorithm; loaded when asked for.
TRAINERS = {
    "dpo": ("dpo", "ASTDPOConfig", "ASTDPOTrainer"),
    "grpo": ("grpo", "ASTGRPOConfig", "ASTGRPOTrainer"),
    "ppo": ("ppo", "ASTPPOConfig", "ASTPPOTrainer"),
    "rloo": ("rloo", "ASTRLOOConfig", "ASTRLOOTrainer"),
    "sft": ("sft", "ASTSFTConfig", "ASTSFTTrainer"),
}


def trainer_classes(algorithm: str) -> tuple[Any, Any]:
    """The config and the trainer class of an algorithm; `InputError` where there is none of that name."""
    if algorithm not in TRAINERS:
        raise InputError(f"there is no algorithm {algorithm!r}: choose one of {', '.join(TRAINERS)}")
    module, config, trainer = TRAINERS[algorithm]
    place = importlib.import_module(f"{__name__}.{module}")
    return getattr(place, config), getattr(place, trainer)
