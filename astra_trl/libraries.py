"""Errors of TRL, transformers, peft and accelerate as one line: what they say, and how to fix it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import UnpicklingError

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError

from astra_trl.errors import InputError

# What they raise for settings and files that they cannot use; anything else is a bug.
ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError, UnpicklingError),
)

# Causes, as they say them, and how to fix each.
FIXES = {
    r"trust_remote_code": (
        "it brings Python code of its own, which is not run: read it, then allow it with trust_remote_code "
        "(--trust_remote_code for tester, target and baseline)"
    ),
    r"does not recognize this architecture": "update transformers, or name another model",
    r"not compiled with CUDA|No CUDA|CUDA is not available": "choose a device that torch sees",
    r"out of memory": "choose a smaller model, a smaller dtype or fewer processes",
    r"^(Import|ModuleNotFound|PackageNotFound)Error|pip install|to be installed": (
        "install the package that is missing, or leave out the setting that needs it"
    ),
    r"attn_implementation|attention implementation|flex_attention": (
        "choose another attn_implementation (--attn_implementation), e.g. sdpa or eager"
    ),
    r"Unrecognized configuration class": "it is a model of another kind than is needed here",
    r"deserializing header": "its weights are cut off, or a Git LFS pointer in their place: download them again",
    r"no file named .*(safetensors|\.bin)": "its weights are missing: download them too",
}


@contextmanager
def explained(
    what: str, fix: str, fixes: Mapping[str, str] = {}, errors: tuple[type[Exception], ...] = ERRORS
) -> Iterator[None]:
    """Turn errors of libraries into an `InputError`: what failed, how to fix it, and what the library says.

    `fixes` are for causes beside those of `FIXES`, and `fix` is for any other. The library's error is the `__cause__`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # Tokenizers raises a bare `Exception` for everything.
        if not isinstance(error, errors) and type(error) is not Exception:
            raise
        said = f"{type(error).__name__}: {error}"
        found = next((known for cause, known in {**fixes, **FIXES}.items() if re.search(cause, said)), fix)
        raise InputError(f"{what}: {found} ({reason(error)})") from error


@contextmanager
def loading_errors(role: str, model_id: str, fix: str) -> Iterator[None]:
    """Turn errors of loading a model into an `InputError` that says how to fix it."""
    with explained(f"{role} {model_id!r} could not be loaded", fix):
        yield


def reason(error: BaseException) -> str:
    """Return the first line of an error that says something, with its type if the line alone is not clear."""
    if isinstance(error, UnpicklingError):  # its own message recommends loading the file regardless
        return "its pickle holds more than tensors"
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =-")]
    first = next((place for place, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    said = " ".join(lines[: first + 1])[:400]  # a heading such as "Validation error for ...:" and what follows it
    clear = isinstance(error, OSError | ValueError | TemplateError) and said
    return said if clear else f"{type(error).__name__}: {said}"
