"""Training passes in which a context that several rows of a batch share passes through the model once."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model

from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.masks import attention_windows, complete_mask, takes_complete_masks
from astra_trl.backends.hf.model import base_of
from astra_trl.libraries import reason
from astra_trl.trainers.gathering import gather_weights
from astra_trl.trainers.packing import Packed, pack
from astra_trl.trainers.roles import dropouts, trainable_tester

logger = logging.getLogger(__name__)

# Mean difference of log-probabilities computed in both ways. A mask or positions that are not used make it about 1.
MAX_DIFFERENCE = 1e-3
MAX_DIFFERENCE_OF_HALF = 0.1  # with 16 bits


def shared_context_field() -> Any:
    """Return the field `shared_context` of a trainer's config."""
    return field(
        default=True,
        metadata={
            "help": "Whether the context that siblings share passes through the model once per batch instead of once "
            "per sibling. Gradients are the same. Models and settings that cannot do it use TRL's own pass."
        },
    )


@dataclass
class SharedContext:
    """Makes the models of a trainer compute packed rows.

    TRL calls a model with the last token of each context and the probes alone. Its decoder, the model without the
    output layer, is given the packed rows instead, and returns the hidden states of the tokens that TRL asked for.
    Both are hooks, so every wrapper of the model (PEFT, DDP, FSDP, DeepSpeed) and gradient checkpointing work as they
    do without.
    """

    models: InitVar[list[Any]]  # not kept: a copy of a model, with its hooks, would be one of all
    packed: Packed | None = field(default=None, init=False)
    is_confirmed: bool = field(default=False, init=False)
    hidden: int = field(init=False)  # the hidden size of the first model

    def __post_init__(self, models: list[Any]) -> None:
        self.hidden = base_of(models[0]).config.get_text_config().hidden_size
        for model in models:
            decoder = base_of(model).base_model
            # The windows are found once, as that takes a millisecond.
            feed = partial(self._feed_packed, attention_windows(decoder.config))
            decoder.register_forward_pre_hook(feed, with_kwargs=True)
            decoder.register_forward_hook(self._select_asked)

    def pack(
        self, ids: torch.Tensor, mask: torch.Tensor, starts: torch.Tensor, count: int
    ) -> tuple[Packed, torch.Tensor]:
        """Pack a batch of TRL's.

        Args:
            ids (`torch.Tensor`), mask (`torch.Tensor`):
                Token ids (rows, columns), and 0 for the columns of padding, on either side.
            starts (`torch.Tensor`):
                Number of tokens in each context (rows,).
            count (`int`):
                Tokens after a context, in the longest row.

        Returns:
            The packed rows, and ids (rows, 1 + `count`) of the last token of each context and of those after it.
        """
        rows = [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu().bool(), strict=True)]
        packed = pack(rows, starts.tolist(), count, self.hidden)
        asked = packed.input_ids.flatten()[packed.places]
        on_device = {name: value.to(ids.device) for name, value in vars(packed).items()}
        return Packed(**on_device), asked.to(ids.device)

    @contextmanager
    def computing(self, packed: Packed) -> Iterator[None]:
        """Replace what decoders are given by packed rows, and what they return by the asked tokens."""
        self.packed = packed
        try:
            yield
        finally:
            self.packed = None

    def _feed_packed(
        self, windows: frozenset[int | None], decoder: Any, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if (packed := self.packed) is None:
            return None
        positions = packed.position_ids
        dtype = next(decoder.parameters()).dtype
        mask = complete_mask(decoder.config, packed.allowed_keys, positions, positions, dtype, windows)
        return (), {**kwargs, "input_ids": packed.input_ids, "position_ids": positions, "attention_mask": mask}

    def _select_asked(self, decoder: Any, args: Any, output: Any) -> Any:
        if (packed := self.packed) is None:
            return output
        hidden = output[0]
        places = packed.places.to(hidden.device)  # of a model over several GPUs, the last one's
        asked = hidden.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)
        if isinstance(output, tuple):
            return (asked, *output[1:])
        output["last_hidden_state"] = asked
        return output


def share_context(trainer: Any) -> SharedContext | None:
    """Return the shared pass of a trainer; `None` if it is switched off, or if its settings or models cannot do it,
    which is logged with the reason."""
    if not trainer.args.shared_context:
        return None
    wrapped = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    models = [trainer.accelerator.unwrap_model(model, keep_torch_compile=False) for model in wrapped]
    reasons = [_unsupported_setting(trainer), *map(_unsupported_model, models)]
    if dropouts(models[0]):
        reasons.append("dropout is on, and siblings would share what it drops")
    return _without_reasons(trainer, SharedContext(models) if not any(reasons) else None, reasons)


def confirm_shared_context(trainer: Any) -> SharedContext | None:
    """Return the shared pass of a trainer; `None` if one of its models gives other numbers with it, which is logged.

    Once in a run, each model computes a few tokens in both ways: that it takes a mask and positions does not mean that
    it uses them.
    """
    shared: SharedContext | None = trainer._shared
    if shared is None or shared.is_confirmed:
        return shared
    shared.is_confirmed = True
    tester = trainable_tester(trainer.sampler.system)
    half = trainer.accelerator.mixed_precision != "no" or bool(trainer.args.tf32)
    with gather_weights(trainer.accelerator, trainer.model_wrapped, trainer.ref_model) as models:
        reasons = [_difference(shared, replace(tester, model=model), half) for model in models if model is not None]
    return _without_reasons(trainer, shared, gather_object(reasons))  # one process decides for all


def _without_reasons(trainer: Any, shared: SharedContext | None, reasons: list[str | None]) -> SharedContext | None:
    first = next(filter(None, reasons), None)
    if first is not None and trainer.is_world_process_zero():
        logger.warning("in training, each sibling's context passes through the model again, as %s", first)
    return None if first is not None else shared


def _unsupported_setting(trainer: Any) -> str | None:
    args, fsdp = trainer.args, getattr(trainer.accelerator.state, "fsdp_plugin", None)
    reasons = {
        "use_liger_kernel may compute the loss in its own way": args.use_liger_kernel,
        "neftune_noise_alpha adds noise that siblings would share": args.neftune_noise_alpha,
        "FSDP's activation checkpointing may run the whole decoder again": getattr(
            fsdp, "activation_checkpointing", False
        ),
        "torch_compile would compile every shape anew": args.torch_compile,
        "the loss of a router depends on the tokens of every row": getattr(trainer, "aux_loss_enabled", False),
        "several GPUs share one process (start one process per GPU)": args.n_gpu > 1,
    }
    return next((text for text, is_set in reasons.items() if is_set), None)


def _unsupported_model(model: Any) -> str | None:
    base = base_of(model)
    takes = inspect.signature(type(base.base_model).forward).parameters
    name = type(base).__name__
    adapters = model.peft_config.values() if is_peft_model(model) else ()
    if any(config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None) for config in adapters):
        return "the adapter depends on the beginning of each row"
    if not {"position_ids", "attention_mask"} <= takes.keys():
        return f"{name} takes no positions"
    if not takes_complete_masks(base.config):
        return f"{name} with {base.config._attn_implementation} attention takes no 4-D mask"
    return None


def _difference(shared: SharedContext, tester: HFBackend, half: bool) -> str | None:
    """Return a reason if two short rows have other log-probabilities in the shared than in the separate way. `half`
    says that models compute with 16 bits, which their weights and logits do not show."""
    model, device = tester.model, tester.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(tester.vocabulary, (3, 12), generator=generator).to(device)
    rows = torch.cat([ids[:1].expand(2, -1), ids[1:, :4]], dim=1)
    mask = torch.ones_like(rows)
    packed, asked = shared.pack(rows, mask, torch.tensor([12, 12]), 4)
    try:
        with tester.inference():
            separate = model(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, 11:]
            with shared.computing(packed):
                together = model(input_ids=asked, attention_mask=mask, use_cache=False).logits
            mean = (together.float().log_softmax(-1) - separate.float().log_softmax(-1)).abs().mean().item()
    except torch.OutOfMemoryError:  # says nothing about packed rows
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"{type(base_of(model)).__name__} cannot compute packed rows ({reason(error)})"
    limit = MAX_DIFFERENCE_OF_HALF if half or torch.finfo(model.dtype).bits == 16 else MAX_DIFFERENCE
    if mean <= limit:  # nan is not
        return None
    return f"{type(base_of(model)).__name__} gives other log-probabilities for packed rows (by {mean:.2g})"
