"""Models, adapters and tokenizers from the Hub or a folder, on the device of this process. Nothing that comes with
them is run, unless the user allows it."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from astra_trl.untrusted import refuse_pickled_adapter, refuse_pickled_model, told


def place(device: str | torch.device | None) -> torch.device:
    """The device; without one, that which accelerate gives this process."""
    placed = PartialState().device if device is None else torch.device(device)
    # Of several processes on a CPU each has "cpu:0", which torch cannot load a checkpoint onto.
    return torch.device("cpu") if placed.type == "cpu" else placed


def load_pretrained(
    auto_class: Any,
    model_id: str,
    role: str,
    device: str | torch.device | None,
    init_kwargs: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """What `auto_class.from_pretrained` makes of a Hub id or a folder, and its tokenizer where none is given.

    Besides what that takes, `init_kwargs` may hold `allow_pickle`, whether weights may be a pickle; torch then reads
    no more than tensors of it. Raises `InputError` with `role` in its message where one cannot be loaded, where the
    weights are a pickle, and where code would have to be run that `trust_remote_code` does not allow.
    """
    placed = place(device)
    # Without a word on it, transformers would ask on the terminal.
    init_kwargs = {"trust_remote_code": False, **init_kwargs}
    if placed.type != "cpu":
        init_kwargs = {"device_map": placed, **init_kwargs}
    with told(role, model_id, "name a Hub id or a folder with its tokenizer"):
        if not init_kwargs.pop("allow_pickle", False):
            hub_kwargs = {key: init_kwargs[key] for key in ("revision", "cache_dir", "token") if key in init_kwargs}
            refuse_pickled_model(model_id, role, **hub_kwargs)
            init_kwargs["use_safetensors"] = True
        model = auto_class.from_pretrained(model_id, **init_kwargs)
        where = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
        return model, tokenizer or AutoTokenizer.from_pretrained(model_id, **where)


def adapter_base(model_id: str, role: str, revision: str | None = None) -> str | None:
    """The id of the base model of a Hub id or a folder that holds an adapter; `None` if it holds a whole model."""
    where = {} if revision is None else {"revision": revision}
    if find_adapter_config_file(model_id, **where) is None or (Path(model_id) / "config.json").exists():
        return None
    with told(role, model_id, "name a Hub id or a folder with an adapter"):
        return PeftConfig.from_pretrained(model_id, **where).base_model_name_or_path


def load_adapter(
    model: Any,
    model_id: str,
    role: str,
    allow_pickle: bool = False,
    *,
    trainable: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """The adapter of a Hub id or a folder on top of its base; `InputError` as `load_pretrained` has it.

    Its weights are float32 on a base in half precision, so that it can be trained further if it is `trainable`.
    """
    where = {} if revision is None else {"revision": revision}
    with told(role, model_id, "name a Hub id or a folder with an adapter for that base"):
        if not allow_pickle:
            refuse_pickled_adapter(model_id, role, **where)
        return PeftModel.from_pretrained(model, model_id, is_trainable=trainable, **where)
