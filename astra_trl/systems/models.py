"""The models of a system from what a user gives for them: Hub ids, folders, loaded models, backends."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args

from astra_trl.backends.base import Backend, SamplingParams
from astra_trl.backends.function import FunctionBackend, Reply
from astra_trl.errors import InputError

if TYPE_CHECKING:  # they take seconds to import, and systems are asked for their defaults by `--help` too
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Model: TypeAlias = Union[str, "PreTrainedModel", Backend]
Target: TypeAlias = Model | Reply

# Which sides talk through their chat template.
Chat = Literal["none", "tester", "target", "both"]


def load_models(
    tester: Model,
    target: Target,
    baseline: Model | None,
    *,
    sampling: SamplingParams,
    target_sampling: SamplingParams | None = None,
    chat: Chat = "none",
    chat_template_kwargs: dict[str, Any] | None = None,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    max_length: int | None = None,
    max_rows: int = 128,
    cache_bytes: int | None = None,
    device: str | None = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> tuple[Backend, Backend, Backend | None]:
    """Backends of tester, target and baseline.

    A model id that stands for both frozen roles is loaded once, where both talk in the same way. One loaded model may
    be given for all three roles: with PEFT the frozen ones are the same weights with the adapter off.

    Args:
        tester, target (`str`, `PreTrainedModel` or `Backend`):
            A Hub id or folder, a loaded model, or a backend with settings of its own. The target may be a function
            too: it is wrapped in a [`FunctionBackend`].
        baseline (`str`, `PreTrainedModel` or `Backend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        sampling (`SamplingParams`):
            How both sides sample.
        target_sampling (`SamplingParams`, *optional*):
            How the target samples, where that differs.
        chat (`str`, *optional*, defaults to `"none"`):
            Which side is a chat model, talked to through its chat template: `"tester"`, `"target"`, `"both"` or
            `"none"`. The baseline talks as the tester does.
        chat_template_kwargs (`dict`, *optional*):
            For the chat templates, as `{"enable_thinking": False}`.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tester's tokenizer; defaults to the one saved with the model.
        max_length (`int`, *optional*):
            Longest context plus utterance in tokens; defaults to each model's window.
        max_rows (`int`, *optional*, defaults to `128`):
            Conversations that pass through a model at a time.
        cache_bytes (`int`, *optional*):
            Memory for the keys and values of each side's conversations; see [`HFBackend`].
        device (`str`, *optional*):
            Where models are put; defaults to the device that accelerate gives this process.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained` of every model that is loaded here: `dtype` (float32 by default, as in TRL),
            `quantization_config`, `attn_implementation`, `revision`, ...; and `allow_pickle`, whether weights may be
            a pickle.

    Raises:
        InputError: a model cannot be loaded, or tester and baseline have different vocabularies.
    """
    import torch
    from transformers import PreTrainedModel

    from astra_trl.backends.hf import HFBackend

    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device!r}, but torch sees no CUDA device: pass device='cpu' or leave it out")
    if chat not in get_args(Chat):
        raise InputError(f"chat={chat!r}: choose one of {', '.join(get_args(Chat))}")
    talking: dict[str, Any] = {
        "sampling": sampling,
        "target_sampling": target_sampling,
        "chat": chat,
        "chat_template_kwargs": chat_template_kwargs,
        "max_length": max_length,
        "max_rows": max_rows,
        "cache_bytes": cache_bytes,
    }
    loaded: list[tuple[str, Any]] = []  # frozen models by id

    def backend(role: str, model: Target, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Backend:
        if isinstance(model, HFBackend):
            return replace(model)  # a role's own: training swaps its model and adapter
        if not isinstance(model, str | torch.nn.Module):
            return _given(role, model)
        if not isinstance(model, str):
            return HFBackend(
                model, tokenizer or HFBackend.saved_tokenizer(model, role), **role_fields(role, **talking)
            )
        for known, same in loaded:
            if known == model and role != "tester":
                return replace(same, **role_fields(role, **talking))
        new = HFBackend.from_pretrained(
            model,
            role=role,
            device=device,
            tokenizer=tokenizer,
            model_init_kwargs=model_init_kwargs,
            **role_fields(role, **talking),
        )
        if role != "tester":
            loaded.append((model, new))
        return new

    tester_backend = backend("tester", tester, processing_class)
    known_model, known_tokenizer = getattr(tester_backend, "model", None), getattr(tester_backend, "tokenizer", None)
    # A model that was given as the tester too has no other tokenizer.
    target_backend = backend("target", target, known_tokenizer if target is known_model else None)
    baseline_backend = None
    if baseline is not None and (isinstance(baseline, str) or baseline is not tester):
        baseline_backend = backend(
            "baseline", baseline, known_tokenizer if isinstance(baseline, PreTrainedModel) else None
        )
        _check_vocabularies(tester_backend, baseline_backend)
    return tester_backend, target_backend, baseline_backend


def role_fields(
    role: str,
    *,
    sampling: SamplingParams,
    target_sampling: SamplingParams | None = None,
    chat: Chat = "none",
    chat_template_kwargs: dict[str, Any] | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """Fields of the `HFBackend` that stands in a role: what [`load_models`] is given for all of them."""
    target = role == "target"
    talks = chat in ("both", "target" if target else "tester")
    own = {"sampling": target_sampling if target and target_sampling else sampling, "chat": talks}
    return {**limits, **own, "chat_template_kwargs": chat_template_kwargs if talks else None}


def _given(role: str, model: Any) -> Backend:
    if hasattr(model, "open"):
        return model
    if role == "target" and callable(model):
        return FunctionBackend(model)
    raise InputError(f"the {role} is a {type(model).__name__}: give a Hub id, a folder, a loaded model or a backend")


def _check_vocabularies(*backends: Backend) -> None:
    from astra_trl.backends.hf import HFBackend

    known: Sequence[HFBackend] = [backend for backend in backends if isinstance(backend, HFBackend)]
    sizes = {backend.model.config.get_text_config().vocab_size for backend in known}
    if len(sizes) > 1 or any(b.tokenizer.get_vocab() != known[0].tokenizer.get_vocab() for b in known):
        raise InputError(
            "tester and baseline have different vocabularies, so their log-probabilities cannot be compared: "
            "the baseline must be the tester before training (baseline=None) or share its tokenizer"
        )
