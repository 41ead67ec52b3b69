"""Whole weights for sampling, in every process, of models that training shards over them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from trl.models import unwrap_model_for_generation

from astra_trl.errors import InputError


@contextmanager
def gathered(accelerator: Accelerator, *models: Any) -> Iterator[list[Any]]:
    """The models (`None` stays that) out of what they are wrapped in. A forward pass then waits for no other process,
    as theirs differ in number; it takes the memory of the whole weights."""
    zero = getattr(accelerator.state, "deepspeed_plugin", None)
    with ExitStack() as stack:
        if zero is not None and zero.zero_stage == 3:  # the way TRL gathers for its own generation
            yield [
                model if model is None else stack.enter_context(unwrap_model_for_generation(model, accelerator))
                for model in models
            ]
            return
        # Not TRL's function here: it switches gradient checkpointing off, needless in evaluation mode, and on again
        # without the kwargs it had.
        for model in models:
            if isinstance(model, FullyShardedDataParallel) and accelerator.num_processes > 1:
                raise InputError(
                    "FSDP 1 cannot gather a tester to be sampled: set fsdp_version: 2, or use DDP or ZeRO"
                )
            if isinstance(model, FullyShardedDataParallel):
                stack.enter_context(FullyShardedDataParallel.summon_full_params(model, recurse=False))
            if isinstance(model, FSDPModule):
                stack.enter_context(unsharded(model, bool(accelerator.state.fsdp_plugin.reshard_after_forward)))
        yield [None if model is None else accelerator.unwrap_model(model) for model in models]


@contextmanager
def unsharded(model: FSDPModule, reshard_after_forward: bool = True) -> Iterator[None]:
    """While it lasts, every process holds all weights of a model sharded by FSDP 2, through any number of forward
    passes; then they are sharded again, as they are after each forward pass from there on where asked for."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.set_reshard_after_forward(False)
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        model.set_reshard_after_forward(reshard_after_forward)
        for module in sharded:
            module.reshard()
