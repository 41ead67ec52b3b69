"""Training that diverges: it stops before a tester that computes nan is saved or samples."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from astra_trl.errors import NotFinite
from astra_trl.trainers.checkpoints import last_whole

MIN_LOSS_SCALE = 1e-4  # of float16: a step that overflows is skipped, and halves the scale of the loss


def check_weights(trainer: Any) -> None:
    """Raise `NotFinite` in every process if a trained weight has become nan or infinite.

    Weights say more than the loss: transformers logs a loss of nan as the mean of earlier ones, and in float16 a step
    that overflows is skipped and does no harm.
    """
    accelerator = trainer.accelerator
    trained = [weight.detach() for weight in trainer.model.parameters() if weight.requires_grad]
    shards = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained]
    total = torch.stack([shard.sum(dtype=torch.float32).to(accelerator.device) for shard in shards]).sum()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total)
    if not math.isfinite(total.item()):
        raise diverged(trainer, "weights of the tester are nan or infinite")
    if accelerator.scaler is not None and accelerator.scaler.get_scale() < MIN_LOSS_SCALE:
        raise diverged(trainer, "the gradients of one step after another are nan or overflow float16")


@contextmanager
def explain(trainer: Any) -> Iterator[None]:
    """Explain why the tester samples nan, if it does since it was trained."""
    try:
        yield
    except NotFinite as error:
        if error.backend is not trainer.sampler.system.tester or not trainer.state.global_step:
            raise
        raise diverged(trainer, "the tester computes nan instead of probabilities") from error


def diverged(trainer: Any, reason: str) -> NotFinite:
    """Return the error of a training that has diverged, with its round, the last good checkpoint and what to change.

    A resumed run has the optimizer and the learning rate of before: the way to continue is another run.
    """
    args, last = trainer.args, last_whole(Path(trainer.args.output_dir))
    limit = "" if args.max_grad_norm else ", set --max_grad_norm (1 is usual)"
    checkpoint = "" if last is None else f", or from the last checkpoint with finite weights (--tester {str(last)!r})"
    return NotFinite(
        f"training has diverged in round {trainer.round}: {reason}; neither target nor scorer is the cause. Lower "
        f"--learning_rate (now {args.learning_rate:g}){limit} and start in another --output_dir, from the same tester"
        f"{checkpoint}"
    )
