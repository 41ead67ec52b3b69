"""Models of a system from Hub ids, folders, loaded models, functions or backends."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args

from astra_trl.backends.base import CHAT_PROBE_TOKENS, CHAT_RESPONSE_TOKENS, Backend, SamplingParams
from astra_trl.backends.function import FunctionBackend, Reply
from astra_trl.callables import describe
from astra_trl.errors import InputError

if TYPE_CHECKING:  # they take seconds to import, and `--help` needs the defaults of systems
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model: TypeAlias = Union[str, "PreTrainedModel", Backend]
Target: TypeAlias = Model | Reply

# The sides that talk through their chat template.
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
    """Return the backends of tester, target and baseline.

    If target and baseline have the same model id, the model is loaded once. One loaded model may be given for all
    three roles: with PEFT, target and baseline use the same weights with the adapter off.

    Args:
        tester, target (`str`, `PreTrainedModel` or `Backend`):
            A Hub id or folder, a loaded model, or a backend with its own settings. The target may also be a function,
            which is wrapped in a [`FunctionBackend`].
        baseline (`str`, `PreTrainedModel` or `Backend`, *optional*):
            The frozen reference of the tester; `None` means the tester before training.
        sampling (`SamplingParams`):
            Sampling parameters of both sides.
        target_sampling (`SamplingParams`, *optional*):
            Sampling parameters of the target, if they differ.
        chat (`str`, *optional*, defaults to `"none"`):
            Side that is a chat model and uses its chat template: `"tester"`, `"target"`, `"both"` or `"none"`. The
            baseline follows the tester.
        chat_template_kwargs (`dict`, *optional*):
            For the chat templates, e.g. `{"enable_thinking": False}`.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tester's tokenizer; defaults to the one saved with the model.
        max_length (`int`, *optional*):
            Largest number of tokens of context and utterance; defaults to each model's window.
        max_rows (`int`, *optional*, defaults to `128`):
            Conversations per forward pass.
        cache_bytes (`int`, *optional*):
            Bytes of memory for the keys and values of each side's conversations; see [`HFBackend`].
        device (`str`, *optional*):
            Device of the models; defaults to accelerate's for this process.
        model_init_kwargs (`dict`, *optional*):
            For `from_pretrained` of every model that is loaded: `dtype` (float32 by default, as in TRL),
            `quantization_config`, `attn_implementation`, `revision`, ...; and `allow_pickle`: `True` if weights may
            be a pickle.

    Raises:
        InputError: a model cannot be loaded, or tester and baseline have different vocabularies.
    """
    import torch
    from transformers import PreTrainedModel

    from astra_trl.backends.hf import HFBackend
    from astra_trl.backends.hf.checks import check_model
    from astra_trl.backends.hf.loading import check_source

    given: dict[str, Any] = {"tester": tester, "target": target, "baseline": baseline}
    for role, source in given.items():
        if isinstance(source, str):  # before any is loaded
            check_source(source, role)
    for name, params in (("sampling", sampling), ("target_sampling", target_sampling)):
        if not isinstance(params, SamplingParams | None):
            raise InputError(f"{name} must be SamplingParams(...), got {describe(params)}")
    if device is not None:
        _check_device(device)
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
    frozen: dict[str, Any] = {}  # models of target and baseline by id

    def make_backend(role: str, model: Target, tokenizer: "PreTrainedTokenizerBase | None" = None) -> Backend:
        fields = role_fields(role, **talking)
        if isinstance(model, HFBackend):
            return replace(model)  # not shared between roles: training swaps its model and adapter
        if isinstance(model, torch.nn.Module):
            return HFBackend(model, tokenizer or HFBackend.saved_tokenizer(model, role), **fields)
        if not isinstance(model, str):
            return _as_backend(role, model)
        if role != "tester" and model in frozen:
            return replace(frozen[model], **fields)
        loading: dict[str, Any] = {"device": device, "tokenizer": tokenizer, "model_init_kwargs": model_init_kwargs}
        backend = HFBackend.from_pretrained(model, role=role, **loading, **fields)
        if role != "tester":
            frozen[model] = backend
        return backend

    tester_backend = make_backend("tester", tester, processing_class)
    model, tokenizer = getattr(tester_backend, "model", None), getattr(tester_backend, "tokenizer", None)
    # A loaded model may have no saved tokenizer: then it is the tester's.
    target_backend = make_backend("target", target, tokenizer if target is model else None)
    baseline_backend = None
    if baseline is not None and (isinstance(baseline, str) or baseline is not tester):
        is_loaded = isinstance(baseline, PreTrainedModel)
        baseline_backend = make_backend("baseline", baseline, tokenizer if is_loaded else None)
        _check_vocabularies(tester_backend, baseline_backend)
    for (role, source), backend in zip(given.items(), (tester_backend, target_backend, baseline_backend), strict=True):
        if isinstance(source, torch.nn.Module) and isinstance(backend, HFBackend):
            check_model(backend, role)
    return tester_backend, target_backend, baseline_backend


def chat_sampling(
    sampling: SamplingParams | None,
    target_sampling: SamplingParams | None,
    chat: Chat | None,
    default: SamplingParams,
    target_default: SamplingParams | None = None,
) -> tuple[SamplingParams, SamplingParams]:
    """Return the sampling parameters of tester and target: those that are given, else the defaults, in which a side
    that is a chat has a `max_new_tokens` of 64 (tester) or 128 (target).

    The target follows the tester's parameters if they are given, unless it has a default of its own.
    """
    if target_sampling is None and (sampling is None or target_default is not None):
        target_sampling = target_default or default
        if chat in ("target", "both"):
            target_sampling = replace(target_sampling, max_new_tokens=CHAT_RESPONSE_TOKENS)
    if sampling is None:
        sampling = replace(default, max_new_tokens=CHAT_PROBE_TOKENS) if chat in ("tester", "both") else default
    return sampling, target_sampling or sampling


def role_fields(
    role: str,
    *,
    sampling: SamplingParams,
    target_sampling: SamplingParams | None = None,
    chat: Chat = "none",
    chat_template_kwargs: dict[str, Any] | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """Return the fields of a role's `HFBackend`, from the arguments of [`load_models`]."""
    is_chat = chat in ("both", "target" if role == "target" else "tester")
    if role == "target" and target_sampling:
        sampling = target_sampling
    kwargs = chat_template_kwargs if is_chat else None
    return {**limits, "sampling": sampling, "chat": is_chat, "chat_template_kwargs": kwargs}


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:  # its message lists every kind that torch knows
        raise InputError(f"device={device!r} is not a device: give e.g. 'cuda', 'cuda:0' or 'cpu'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={device!r}, but torch sees no CUDA device: pass device='cpu' or leave it out")


def _as_backend(role: str, model: Any) -> Backend:
    if hasattr(model, "open"):
        return model
    if role == "target" and callable(model):
        return FunctionBackend(model)
    raise InputError(f"the {role} is a {type(model).__name__}: give a Hub id, a folder, a loaded model or a backend")


def _check_vocabularies(*backends: Backend) -> None:
    from astra_trl.backends.hf import HFBackend

    local: Sequence[HFBackend] = [backend for backend in backends if isinstance(backend, HFBackend)]
    sizes = {backend.model.config.get_text_config().vocab_size for backend in local}
    if len(sizes) > 1 or any(b.tokenizer.get_vocab() != local[0].tokenizer.get_vocab() for b in local):
        raise InputError(
            "tester and baseline have different vocabularies, so their log-probabilities cannot be compared: "
            "the baseline must be the tester before training (leave it out), or share its tokenizer"
        )
