"""Thin subclasses of TRL's trainers: an epoch is a round. Import them from the package root."""

import importlib
from typing import Any

from astra_trl.errors import InputError

# Module, config and trainer of each algorithm; loaded when first asked for.
TRAINERS = {
    "dpo": ("dpo", "ASTDPOConfig", "ASTDPOTrainer"),
    "gfn": ("gfn", "ASTGFNConfig", "ASTGFNTrainer"),
    "grpo": ("grpo", "ASTGRPOConfig", "ASTGRPOTrainer"),
    "ppo": ("ppo", "ASTPPOConfig", "ASTPPOTrainer"),
    "rloo": ("rloo", "ASTRLOOConfig", "ASTRLOOTrainer"),
    "sft": ("sft", "ASTSFTConfig", "ASTSFTTrainer"),
}


def trainer_classes(algorithm: str) -> tuple[Any, Any]:
    """Return the config and the trainer class of an algorithm. Raises `InputError` if the name is unknown."""
    if algorithm not in TRAINERS:
        raise InputError(f"unknown algorithm {algorithm!r}: choose one of {', '.join(TRAINERS)}")
    module, config, trainer = TRAINERS[algorithm]
    package = importlib.import_module(f"{__name__}.{module}")
    return getattr(package, config), getattr(package, trainer)
