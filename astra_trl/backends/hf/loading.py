"""Models and tokenizers from the Hub or a folder, on the device of this process."""

from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from astra_trl.errors import InputError


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

    Raises `InputError` with `role` in its message where one cannot be loaded.
    """
    placed = place(device)
    if placed.type != "cpu":
        init_kwargs = {"device_map": placed, **init_kwargs}
    try:
        model = auto_class.from_pretrained(model_id, **init_kwargs)
        where = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
        return model, tokenizer or AutoTokenizer.from_pretrained(model_id, **where)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{role} {model_id!r} could not be loaded: name a Hub id or a folder with its tokenizer ({reason})"
        ) from error
