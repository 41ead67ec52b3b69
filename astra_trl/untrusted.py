"""Models of others: weights that are a pickle, which may run code where it is loaded, are refused unless the user
allows them, and what is wrong with a model is said in one line."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from astra_trl.errors import InputError

# Else transformers has a service of the Hub convert repositories without safetensors, by requests in the user's name.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def refuse_pickled_model(model_id: str, role: str, revision: str | None = None) -> None:
    """`InputError` where the weights of a model, of an adapter or of the base below it are a pickle alone, or where
    its config names one. Raises `OSError` where the Hub refuses the repository."""
    from transformers import PreTrainedConfig
    from transformers.utils import find_adapter_config_file, has_file

    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    if (adapter := find_adapter_config_file(model_id, **where)) is not None:
        refuse_pickled_adapter(model_id, role, revision)
        if not has_file(model_id, "config.json", **where):  # as transformers has it: else the base is here too
            base = json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path")
            role, model_id = f"{role}'s base", str(base)
    named = PreTrainedConfig.get_config_dict(model_id, **where)[0].get("transformers_weights")
    if named is not None and ".safetensors" not in str(named):
        raise _refused(model_id, role, str(named))
    _refuse(model_id, role, SAFE, PICKLED, where)


def refuse_pickled_adapter(model_id: str, role: str, revision: str | None = None) -> None:
    """The same for the weights of an adapter alone."""
    where = {} if revision is None else {"revision": revision}
    _refuse(model_id, role, ["adapter_model.safetensors"], ["adapter_model.bin"], where)


def refuse_pickled_embedder(model_id: str) -> None:
    """The same for every module of a model of sentence-transformers."""
    from transformers.utils import cached_file

    if "/" not in model_id and not os.path.isdir(model_id):
        model_id = f"sentence-transformers/{model_id}"  # as the library has it
    modules = cached_file(model_id, "modules.json", _raise_exceptions_for_missing_entries=False)
    listed = [] if modules is None else json.loads(Path(modules).read_text(encoding="utf-8"))
    for path in dict.fromkeys(["", *(str(module["path"]) for module in listed)]):
        inside = f"{path}/" if path else ""
        _refuse(model_id, "embedder", [inside + name for name in SAFE], [inside + name for name in PICKLED], {})


def _refuse(model_id: str, role: str, safe: Sequence[str], pickled: Sequence[str], where: dict[str, Any]) -> None:
    from transformers.utils import has_file

    if any(has_file(model_id, name, **where) for name in safe):
        return
    for name in pickled:
        if has_file(model_id, name, **where):
            raise _refused(model_id, role, name)


def _refused(model_id: str, role: str, name: str) -> InputError:
    return InputError(
        f"{role} {model_id!r} has its weights in a pickle, {name}, which may run code where it is loaded: convert "
        "them to safetensors, or allow it with allow_pickle (--allow_pickle)"
    )


@contextmanager
def told(role: str, model_id: str, mend: str) -> Iterator[None]:
    """Turns what goes wrong while a model is loaded into an `InputError` with a mend."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError, UnpicklingError) as error:
        # torch's own advice is to load a pickle whatever it holds.
        unpickled = isinstance(error, UnpicklingError)
        reason = "its pickle holds more than tensors" if unpickled else str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{role} {model_id!r} brings Python code of its own, which is not run: read it, then allow it with "
                "trust_remote_code (--trust_remote_code for tester, target and baseline)"
            ) from error
        raise InputError(f"{role} {model_id!r} could not be loaded: {mend} ({reason})") from error
