"""A clock of the parts of a training run: seconds of model passes and of everything between them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from astra_trl.backends.hf.model import base_of
from benchmarks.workloads import synchronize

# Parts of a round. Each second counts for the innermost one, so that they add up to the whole.
COLLECTING = "collecting: sampling, masks, tokens, files"
ROLLOUT_PASSES = "collecting: forward passes"
SCORES = "collecting: scores and rewards"
TRAINING = "training: batches, loss, masks"
REFERENCE = "training: reference passes"
FORWARD = "training: forward passes"
BACKWARD = "training: backward passes"
OPTIMIZER = "training: optimizer"
CHECKPOINT = "checkpoint"
REST = "everything else"
PARTS = (ROLLOUT_PASSES, SCORES, COLLECTING, FORWARD, REFERENCE, BACKWARD, OPTIMIZER, TRAINING, CHECKPOINT, REST)
MODEL_PASSES = (ROLLOUT_PASSES, FORWARD, REFERENCE, BACKWARD, OPTIMIZER)
TRAINING_PASS = (FORWARD, REFERENCE, BACKWARD, TRAINING)  # the time of `training_step`


class Clock(TrainerCallback):
    """Seconds by part. As a callback of a trainer it times the optimizer's steps, too."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0
        self._open: list[str] = []
        self._last = 0.0

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the time inside for this part, except for that of other parts within it."""
        self._begin(part)
        try:
            yield
        finally:
            self._end()

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the calls of a method of this object for a part."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timing(part):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def watch(self, model: Any) -> None:
        """Count the forward passes of a model. Passes of its decoder or its head alone count, too."""
        model = base_of(model)
        for module in (model, model.base_model, model.get_output_embeddings()):
            module.register_forward_pre_hook(lambda *_: self._begin(self._pass()))
            module.register_forward_hook(lambda *_: self._end())

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._begin(OPTIMIZER)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._end()
        self.steps += 1

    def _pass(self) -> str:
        if COLLECTING in self._open:
            return ROLLOUT_PASSES
        return FORWARD if torch.is_grad_enabled() else REFERENCE

    def _begin(self, part: str) -> None:
        self._count()
        self._open.append(part)

    def _end(self) -> None:
        self._count()
        self._open.pop()

    def _count(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now
