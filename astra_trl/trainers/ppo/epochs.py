"""Epochs and evaluations for TRL's PPO loop, which has neither."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy


class TrainingStopped(Exception):
    """A callback asked to stop the training. TRL's loop does not read its request."""


class Epochs:
    """A data loader for TRL's loop, which iterates over it again and again: each iteration is an epoch."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        trainer = self.trainer
        if trainer.control.should_training_stop:
            raise TrainingStopped
        trainer.control = trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        for batch in trainer.batches(trainer.state.global_step % trainer.updates_per_epoch):
            if trainer.control.should_training_stop:
                raise TrainingStopped
            yield batch


class EpochEvents(TrainerCallback):
    """Restores a resumed run's state, and sends the events that TRL's loop does not send."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.end_update()
        if state.global_step % trainer.updates_per_epoch == 0:
            trainer.control = trainer.callback_handler.on_epoch_end(args, state, control)


class Evaluations(TrainerCallback):
    """Runs the evaluations that are due."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_evaluate:
            better = self.trainer._determine_best_metric(self.trainer.evaluate(), trial=None)
            if args.save_strategy == SaveStrategy.BEST:
                control.should_save = better
