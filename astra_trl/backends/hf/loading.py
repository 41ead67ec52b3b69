"""Models, adapters and tokenizers from the Hub or a folder, on the device of this process.

Code that comes with them is not run unless the user allows it.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from astra_trl.errors import InputError
from astra_trl.libraries import loading_errors
from astra_trl.untrusted import refuse_pickled_adapter, refuse_pickled_model


def place(device: str | torch.device | None) -> torch.device:
    """Return the device; by default the one that accelerate gives this process."""
    actual = PartialState().device if device is None else torch.device(device)
    # With several processes on a CPU it is "cpu:0", which torch cannot load a checkpoint onto.
    return torch.device("cpu") if actual.type == "cpu" else actual


def check_source(model_id: str, role: str) -> None:
    """Raise `InputError` unless it is a Hub id, or a folder with the config of a model or of an adapter."""
    if not os.path.isdir(model_id):
        try:
            validate_repo_id(model_id)
            is_file = os.path.isfile(model_id)
        except HFValidationError:
            is_file = True
        if is_file:
            raise InputError(
                f"{role} {model_id!r} could not be loaded: it is neither a folder nor a Hub id, so check the path"
            )
    elif not {"config.json", "adapter_config.json"} & (names := set(os.listdir(model_id))):
        holds = ", ".join(sorted(names)[:3]) if names else "nothing"
        raise InputError(
            f"{role} {model_id!r} could not be loaded: the folder has no config.json (it holds {holds}), so give one "
            "that a model was saved to, with all its files"
        )


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
        InputError: one of them cannot be loaded, the weights are in a pickle, code would have to be run that
            `trust_remote_code` does not allow, or weights are missing or of other shapes than the config's. The
            message names `role`.
    """
    check_source(model_id, role)
    actual = place(device)
    # Without a value, transformers would ask on the terminal.
    init_kwargs = {"trust_remote_code": False, **init_kwargs}
    if actual.type != "cpu":
        init_kwargs = {"device_map": actual, **init_kwargs}
    with loading_errors(role, model_id, "name a Hub id or a folder that a model was saved to"):
        if not init_kwargs.pop("allow_pickle", False):
            hub_kwargs = {key: init_kwargs[key] for key in ("revision", "cache_dir", "token") if key in init_kwargs}
            refuse_pickled_model(model_id, role, **hub_kwargs)
            init_kwargs["use_safetensors"] = True
        # Mismatches are reported below, as transformers' error names none.
        checks = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = auto_class.from_pretrained(model_id, **init_kwargs, **checks)
    _check_weights(model, info, f"{role} {model_id!r}")
    if tokenizer is None:
        with loading_errors(f"the tokenizer of the {role}", model_id, "save the model's tokenizer in its place"):
            shared = {key: init_kwargs[key] for key in ("revision", "trust_remote_code") if key in init_kwargs}
            tokenizer = AutoTokenizer.from_pretrained(model_id, **shared)
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # What transformers makes of a model's config alone.
        raise InputError(
            f"{role} {model_id!r} has no tokenizer: save the model's there (tokenizer.save_pretrained), or copy its "
            "tokenizer.json and tokenizer_config.json"
        )
    return model, tokenizer


def _check_weights(model: Any, info: dict[str, Any], name: str) -> None:
    # Buffers may be missing, as models compute them; transformers counts no tied weights.
    if lacking := sorted(set(info["missing_keys"]) & {key for key, _ in model.named_parameters()}):
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        raise InputError(
            f"{name} could not be loaded: as a {type(model).__name__}, it lacks {shown}, which would get random "
            "weights; name a model that was trained as one, with all its files"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, saved, wanted = mismatched[0]
        raise InputError(
            f"{name} could not be loaded: {key} has shape {tuple(saved)} in its weights and {tuple(wanted)} by its "
            "config.json; take both files from one checkpoint"
        )


def adapter_base(model_id: str, role: str, revision: str | None = None) -> str | None:
    """Return the id of the base model of an adapter in a Hub id or a folder; `None` if it holds a whole model."""
    check_source(model_id, role)
    hub_kwargs = {} if revision is None else {"revision": revision}
    with loading_errors(role, model_id, "name a Hub id or a folder, and check the network"):
        if find_adapter_config_file(model_id, **hub_kwargs) is None or (Path(model_id) / "config.json").exists():
            return None
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
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, model_id, is_trainable=trainable, **hub_kwargs)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise InputError(
                f"the adapter {model_id!r} of the {role} lacks weights, which would get random ones: name an adapter "
                f"of this base, with all its files ({str(warning.message).splitlines()[0]:.200})"
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return adapted
