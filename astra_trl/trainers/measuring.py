"""Evaluation of the tester while it is trained."""

from typing import Any

from transformers import Trainer

from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator
from astra_trl.progress import bars_within


def measure_held_out(trainer: Any, openings: Any, prefix: str) -> dict[str, float]:
    """Return the figures of a trainer's tester on held-out openings, and log them.

    Args:
        openings (`Sequence[Opening]`, `Dataset`, `str` or a `dict` of these, *optional*):
            Defaults to the trainer's. The names of a dictionary follow the prefix, as in transformers.
        prefix (`str`): Of the names of the figures.

    Raises:
        InputError: no openings are given, and the trainer has none.
    """
    openings = trainer.eval_dataset if openings is None else openings
    if isinstance(openings, dict):
        of_all: dict[str, float] = {}
        for name, some in openings.items():
            of_all |= trainer.evaluate(some, None, f"{prefix}_{name}")
        return of_all
    if openings is None:
        raise InputError("the trainer has no held-out openings: give it an eval_dataset, or pass them here")
    with trainer.current_tester(), bars_within(trainer.args.disable_tqdm):
        values = ASTEvaluator(trainer.sampler, openings, seed=trainer.args.seed).metrics(trainer.baseline())
    metrics = {f"{prefix}_{name}": value for name, value in values.items()}
    Trainer.log(trainer, metrics)  # TRL's own would add the running means of the training steps to this line
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics
