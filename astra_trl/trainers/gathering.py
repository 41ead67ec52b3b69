"""Whole weights, in every process, of models that training shards over the processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from trl.models import unwrap_model_for_generation

from astra_trl.errors import InputError


@contextmanager
def gather_weights(accelerator: Accelerator, *models: Any) -> Iterator[list[Any]]:
    """Yield the models (or `None`) without their wrappers and with whole weights.

    A forward pass then does not wait for other processes, whose numbers of passes differ. It takes the memory of the
    whole weights. Raises `InputError` under FSDP 1 in several processes.
    """
    zero = getattr(accelerator.state, "deepspeed_plugin", None)
    with ExitStack() as stack:
        if zero is not None and zero.zero_stage == 3:  # as TRL does for its own generation
            yield [
                model if model is None else stack.enter_context(unwrap_model_for_generation(model, accelerator))
                for model in models
            ]
            return
        # Not TRL's function here: it switches gradient checkpointing off, which evaluation mode makes needless, and on
        # again without its kwargs.
        for model in models:
            if isinstance(model, FullyShardedDataParallel):
                if accelerator.num_processes > 1:
                    raise InputError(
                        "FSDP 1 cannot gather a tester to be sampled: set fsdp_version: 2, or use DDP or ZeRO"
                    )
                stack.enter_context(FullyShardedDataParallel.summon_full_params(model, recurse=False))
            if isinstance(model, FSDPModule):
                stack.enter_context(unshard(model, bool(accelerator.state.fsdp_plugin.reshard_after_forward)))
        yield [
            None if model is None else accelerator.unwrap_model(model, keep_torch_compile=False) for model in models
        ]


@contextmanager
def unshard(model: FSDPModule, reshard_after_forward: bool = True) -> Iterator[None]:
    """Hold all weights of a model sharded by FSDP 2 in every process, through any number of forward passes, and shard
    them again at the end."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.set_reshard_after_forward(False)
    for module in shards:
        module.unshard()
    try:
        yield
    finally:
        model.set_reshard_after_forward(reshard_after_forward)
        for module in shards:
            module.reshard()
