"""Evaluation of the tester in the course of training."""

from dataclasses import replace
from typing import Any

from astra_trl.backends.base import Backend
from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator
from astra_trl.trainers.roles import trainable_tester


def measure_tester(trainer: Any, openings: Any, prefix: str) -> dict[str, float]:
    """Return the figures of the tester as it is now on held-out openings, with the prefix before each name."""
    if openings is None:
        raise InputError("there are no held-out openings: give the trainer an eval_dataset, or pass them here")
    with trainer.current_tester():
        values = ASTEvaluator(trainer.sampler, openings, seed=trainer.args.seed).metrics(baseline_of(trainer))
    return {f"{prefix}_{name}": value for name, value in values.items()}


def baseline_of(trainer: Any) -> Backend | None:
    """Return the frozen reference of the tester: the system's, or the one that TRL holds instead. Returns `None` if
    there is none, or if TRL moves its reference after the tester (`sync_ref_model`)."""
    system, tester = trainer.sampler.system, trainable_tester(trainer.sampler.system)
    if system.baseline is not None:
        return system.baseline
    if getattr(trainer.args, "sync_ref_model", False):
        return None
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        return replace(tester, model=trainer.accelerator.unwrap_model(reference))
    return tester.before_training()
