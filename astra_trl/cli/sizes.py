"""Sizes of models, from their configs alone: no weights are loaded."""

import copy
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from astra_trl.backends.hf.loading import adapter_base
from astra_trl.errors import InputError
from astra_trl.libraries import loading_errors

FIX = "name a Hub id or a folder, and check the network"


@dataclass(frozen=True)
class Loading:
    """Loading of models: `dtype` by name or "auto", bits of quantized weights, revision."""

    dtype: str
    bits: int | None = None
    revision: str = "main"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Role:
    """Description of a role's model, and the bytes of its weights: 0 if they are another role's."""

    text: str
    size_bytes: float = 0


def size_of(source: str, role: str, loading: Loading, classifies: bool = False) -> Role:
    """Return the role of a model, with its parameters and the bytes of its weights."""
    model = empty_model(source, role, loading.revision, loading.trust_remote_code, classifies)
    dtype = model.config.dtype or torch.float32 if loading.dtype == "auto" else getattr(torch, loading.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype {loading.dtype!r} is not a dtype of torch: give float32, bfloat16, float16 or auto")
    total, quantized, head = _parameters(model), 0, model.get_output_embeddings()
    if loading.bits is not None:
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
        quantized = sum(module.weight.numel() for module in linear if module is not head)
    size = (total - quantized) * dtype.itemsize + quantized * (loading.bits or 0) / 8
    precision = str(dtype).removeprefix("torch.") + (f" and {loading.bits} bits" if loading.bits else "")
    return Role(f"{source}, {total:,} parameters in {precision}, {size_text(size)}", size)


@cache
def empty_model(
    source: str, role: str, revision: str = "main", trust_remote_code: bool = False, classifies: bool = False
) -> PreTrainedModel:
    """Return the model of a Hub id or a folder without weights, on torch's meta device.

    Raises:
        InputError: its config cannot be read; the message names `role`.
    """
    auto_class = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    with loading_errors(f"the config of the {role}", source, FIX):
        base = adapter_base(source, role, revision)  # an adapter alone has no config
        config = AutoConfig.from_pretrained(base or source, **where)
        with torch.device("meta"):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def adapter_config(source: str, loading: Loading) -> PeftConfig:
    """Return the config of the adapter of a Hub id or a folder."""
    with loading_errors("the adapter of the tester", source, FIX):
        config = PeftConfig.from_pretrained(source, revision=loading.revision)
    config.inference_mode = False  # it is saved as True, and nothing would count as trained
    return config


def adapter_parameters(tester: str, peft_config: Any, loading: Loading) -> int:
    """Return the number of trained parameters of an adapter.

    Raises:
        InputError: the adapter does not fit the tester.
    """
    model = copy.deepcopy(empty_model(tester, "tester", loading.revision, loading.trust_remote_code))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown again when it is trained
            adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        raise InputError(f"no adapter fits {tester!r}: {' '.join(str(error).split())}") from error
    return _parameters(adapted) - _parameters(adapted, trained=False)


def _parameters(model: torch.nn.Module, trained: bool = True) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if trained or not parameter.requires_grad)


def tokenizer_of(source: str, role: str, loading: Loading) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hub id or a folder."""
    with loading_errors(f"the tokenizer of the {role}", source, FIX):
        return AutoTokenizer.from_pretrained(
            source, revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )


def size_text(size_bytes: float) -> str:
    """Return a number of bytes in MB or GB."""
    unit, name = (1e9, "GB") if size_bytes >= 1e9 else (1e6, "MB")
    return f"{size_bytes / unit:.1f} {name}"
