"""Models, adapters and tokenizers from the Hub or a folder, on the device of this process.

Code that comes with them is not run unless the user allows it.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from astra_trl.untrusted import loading_errors, refuse_pickled_adapter, refuse_pickled_model


def place(device: str | torch.device | None) -> torch.device:
    """Return the device; by default the one that accelerate gives this process."""
    actual = PartialState().device if device is None else torch.device(device)
    # With several processes on a CPU it is "cpu:0", which torch cannot load a checkpoint onto.
    return torch.device("cpu") if actual.type == "cpu" else actual


def load_pretrained(
    auto_class: Any,
    model_id: str,
    role: str,
    device: str | torch.device | None,
    init_kwargs: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model by `auto_class.from_pretrained` from a Hub id or a folder, and its tokenizer if none is given.

    `init_kwargs` can also hold `allow_pickle`, whether weights may be in a pickle; torch then reads its tensors only.

    Raises:
        InputError: one of them cannot be loaded, the weights are in a pickle, or code would have to be run that
            `trust_remote_code` does not allow. The message names `role`.
    """
    actual = place(device)
    # Without a value, transformers would ask on the terminal.
    init_kwargs = {"trust_remote_code": False, **init_kwargs}
    if actual.type != "cpu":
        init_kwargs = {"device_map": actual, **init_kwargs}
    with loading_errors(role, model_id, "name a Hub id or a folder with its tokenizer"):
        if not init_kwargs.pop("allow_pickle", False):
            hub_kwargs = {key: init_kwargs[key] for key in ("revision", "cache_dir", "token") if key in init_kwargs}
            refuse_pickled_model(model_id, role, **hub_kwargs)
            init_kwargs["use_safetensors"] = True
        model = auto_class.from_pretrained(model_id, **init_kwargs)
        shared = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
        return model, tokenizer or AutoTokenizer.from_pretrained(model_id, **shared)


def adapter_base(model_id: str, role: str, revision: str | None = None) -> str | None:
    """Return the id of the base model of an adapter in a Hub id or a folder; `None` if it holds a whole model."""
    hub_kwargs = {} if revision is None else {"revision": revision}
    if find_adapter_config_file(model_id, **hub_kwargs) is None or (Path(model_id) / "config.json").exists():
        return None
    with loading_errors(role, model_id, "name a Hub id or a folder with an adapter"):
        return PeftConfig.from_pretrained(model_id, **hub_kwargs).base_model_name_or_path


def load_adapter(
    model: Any,
    model_id: str,
    role: str,
    allow_pickle: bool = False,
    *,
    trainable: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """Load the adapter of a Hub id or a folder on top of its base. Raises `InputError` as `load_pretrained` does.

    On a base in half precision its weights are float32, so that a `trainable` one can be trained further.
    """
    hub_kwargs = {} if revision is None else {"revision": revision}
    with loading_errors(role, model_id, "name a Hub id or a folder with an adapter for that base"):
        if not allow_pickle:
            refuse_pickled_adapter(model_id, role, **hub_kwargs)
        return PeftModel.from_pretrained(model, model_id, is_trainable=trainable, **hub_kwargs)
