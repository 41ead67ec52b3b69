"""Untrusted models: weights in a pickle are refused unless the user allows them.

A pickle can run code when it is loaded.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_trl.errors import InputError
from astra_trl.text import parse_json

# Otherwise transformers asks a service of the Hub, in the user's name, to convert repositories without safetensors.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# Names of weights in the order in which they are looked for: the first one that exists is loaded.
INDEX = ".safetensors.index.json"
MODEL_WEIGHTS = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def refuse_pickled_model(model_id: str, role: str, folder: str = "", **hub_kwargs: Any) -> None:
    """Raise `InputError` if the weights of a model, of an adapter or of its base exist only as a pickle.

    So it does if a config or an index of shards names a pickle, which transformers loads even if it is to use
    safetensors.

    Args:
        model_id (`str`):
            A Hub id or a folder.
        role (`str`):
            The name of the model in the message.
        folder (`str`, *optional*, defaults to `""`):
            A folder within the repository, with a slash at its end.
        hub_kwargs:
            `revision`, `cache_dir` and `token`.

    Raises:
        OSError: the Hub refuses the repository.
        ValueError: a file is not a JSON object.
    """
    from transformers.utils import has_file

    adapter = _read_object(model_id, f"{folder}adapter_config.json", hub_kwargs)
    if adapter is not None:
        refuse_pickled_adapter(model_id, role, folder, **hub_kwargs)
        if not has_file(model_id, f"{folder}config.json", **hub_kwargs):  # else the base is in this repository
            role, model_id, folder = f"{role}'s base", str(adapter.get("base_model_name_or_path")), ""
    weights = (_read_object(model_id, f"{folder}config.json", hub_kwargs) or {}).get("transformers_weights")
    _refuse_pickle(model_id, role, folder, MODEL_WEIGHTS if weights is None else [str(weights)], hub_kwargs)


def refuse_pickled_adapter(model_id: str, role: str, folder: str = "", **hub_kwargs: Any) -> None:
    """Raise `InputError` if the weights of an adapter exist only as a pickle."""
    _refuse_pickle(model_id, role, folder, ADAPTER_WEIGHTS, hub_kwargs)


def refuse_pickled_embedder(model_id: str) -> None:
    """Raise `InputError` if any module of a sentence-transformers model has its weights only in a pickle."""
    if "/" not in model_id and not os.path.isdir(model_id):
        model_id = f"sentence-transformers/{model_id}"  # the library's own rule
    for module in [{"path": ""}, *(_read_json(model_id, "modules.json", {}) or [])]:
        refuse_pickled_model(model_id, "embedder", folder=f"{module['path']}/" if module["path"] else "")


def _refuse_pickle(model_id: str, role: str, folder: str, names: Sequence[str], hub_kwargs: dict[str, Any]) -> None:
    from transformers.utils import has_file

    name = next((name for name in names if has_file(model_id, folder + name, **hub_kwargs)), None)
    if name is None:
        return
    shards = [name]
    if name.endswith(INDEX):
        shards = list(((_read_object(model_id, folder + name, hub_kwargs) or {}).get("weight_map") or {}).values())
    for shard in shards:
        if not str(shard).endswith(".safetensors"):
            raise InputError(
                f"{role} {model_id!r} has its weights in a pickle, {shard}, which can run code when it is loaded: "
                "convert them to safetensors, or allow it with allow_pickle (--allow_pickle)"
            )


def _read_object(model_id: str, name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any] | None:
    data = _read_json(model_id, name, hub_kwargs)
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"{name} is not a JSON object")
    return data


def _read_json(model_id: str, name: str, hub_kwargs: dict[str, Any]) -> Any:
    """Return the content of a file of a repository or a folder, `None` if the file does not exist."""
    from transformers.utils import cached_file, has_file

    if not has_file(model_id, name, **hub_kwargs):
        return None
    try:
        return parse_json(Path(cached_file(model_id, name, **hub_kwargs)).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
