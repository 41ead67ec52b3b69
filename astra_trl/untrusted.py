"""Models of others: weights that are a pickle, which may run code where it is loaded, are refused unless the user
allows them, and what is wrong with a model is said in one line."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from astra_trl.errors import InputError
from astra_trl.parsing import parse_json

# Else transformers has a service of the Hub convert repositories without safetensors, by requests in the user's name.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# What transformers, peft and torch raise of files that are in another shape than they expect.
_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError, UnpicklingError),
)


def refuse_pickled_model(model_id: str, role: str, folder: str = "", **hub_kwargs: Any) -> None:
    """`InputError` where the weights of a model, of an adapter or of the base below it are a pickle alone, or where
    its config or its index of shards names one: transformers would load that even if told to use safetensors.

    `folder`, with a slash behind it, is within the repository; `hub_kwargs` are `revision`, `cache_dir` and `token`.
    Raises `OSError` where the Hub refuses the repository, and `ValueError` where a file is no JSON object.
    """
    from transformers.utils import has_file

    adapter = _object(model_id, f"{folder}adapter_config.json", hub_kwargs)
    if adapter is not None:
        refuse_pickled_adapter(model_id, role, folder, **hub_kwargs)
        if not has_file(model_id, f"{folder}config.json", **hub_kwargs):  # else the base is here too
            role, model_id, folder = f"{role}'s base", str(adapter.get("base_model_name_or_path")), ""
    named = (_object(model_id, f"{folder}config.json", hub_kwargs) or {}).get("transformers_weights")
    if named is not None:
        _refuse(model_id, role, folder, [str(named)], hub_kwargs)
    else:
        _refuse(model_id, role, folder, [SAFE, INDEX, *PICKLED], hub_kwargs)


def refuse_pickled_adapter(model_id: str, role: str, folder: str = "", **hub_kwargs: Any) -> None:
    """The same for the weights of an adapter alone."""
    _refuse(model_id, role, folder, ["adapter_model.safetensors", "adapter_model.bin"], hub_kwargs)


def refuse_pickled_embedder(model_id: str) -> None:
    """The same for every module of a model of sentence-transformers."""
    if "/" not in model_id and not os.path.isdir(model_id):
        model_id = f"sentence-transformers/{model_id}"  # as the library has it
    for module in [{"path": ""}, *(_json(model_id, "modules.json", {}) or [])]:
        refuse_pickled_model(model_id, "embedder", folder=f"{module['path']}/" if module["path"] else "")


@contextmanager
def told(role: str, model_id: str, mend: str) -> Iterator[None]:
    """Turns what goes wrong while a model is loaded into an `InputError` with a mend."""
    try:
        yield
    except InputError:
        raise
    except _ERRORS as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{role} {model_id!r} brings Python code of its own, which is not run: read it, then allow it with "
                "trust_remote_code (--trust_remote_code for tester, target and baseline)"
            ) from error
        raise _not_loaded(role, model_id, mend, error) from error
    except Exception as error:
        if type(error) is not Exception:  # as which tokenizers raises all of its own
            raise
        raise _not_loaded(role, model_id, mend, error) from error


def _not_loaded(role: str, model_id: str, mend: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0]
    if isinstance(error, UnpicklingError):  # whose own advice is to load it whatever it holds
        reason = "its pickle holds more than tensors"
    elif not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return InputError(f"{role} {model_id!r} could not be loaded: {mend} ({reason})")


def _refuse(model_id: str, role: str, folder: str, names: Sequence[str], hub_kwargs: dict[str, Any]) -> None:
    # Names of weights in the order in which they are looked for: the first that is there is loaded.
    from transformers.utils import has_file

    for name in names:
        if not has_file(model_id, folder + name, **hub_kwargs):
            continue
        shards = [name]
        if name.endswith(INDEX.removeprefix("model")):
            shards = list(((_object(model_id, folder + name, hub_kwargs) or {}).get("weight_map") or {}).values())
        for shard in shards:
            if not str(shard).endswith(".safetensors"):
                raise InputError(
                    f"{role} {model_id!r} has its weights in a pickle, {shard}, which may run code where it is "
                    "loaded: convert them to safetensors, or allow it with allow_pickle (--allow_pickle)"
                )
        return


def _object(model_id: str, name: str, hub_kwargs: dict[str, Any]) -> dict[str, Any] | None:
    data = _json(model_id, name, hub_kwargs)
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"{name} is no JSON object")
    return data


def _json(model_id: str, name: str, hub_kwargs: dict[str, Any]) -> Any:
    # What a file of a repository or a folder holds; None where there is none.
    from transformers.utils import cached_file, has_file

    if not has_file(model_id, name, **hub_kwargs):
        return None
    try:
        return parse_json(Path(cached_file(model_id, name, **hub_kwargs)).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
