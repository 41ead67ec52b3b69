"""Parts of a run by name: a package's table, or a dotted path to the user's own Python code."""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from astra_trl.callables import call, check_callable, describe_error
from astra_trl.errors import InputError

_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")

# The argument of each kind of part that can be a function.
_ARGUMENTS = {"scorer": "exchanges", "reward term": "nodes", "target": "messages"}


def is_dotted_path(name: Any) -> bool:
    """`True` if a name is a dotted path, e.g. `"my_pkg.fn"`, and not a file or folder."""
    is_path = isinstance(name, str) and bool(_DOTTED_PATH.fullmatch(name))
    return is_path and not name.endswith(".py") and not os.path.exists(name)


def find(kind: str, name: str, table: Mapping[str, str] = {}) -> Any:
    """Import the object that a name stands for.

    Args:
        kind (`str`):
            Kind of the object, for messages, e.g. `"scorer"`.
        name (`str`):
            Name in the table, or a dotted path. As in TRL's `--reward_funcs`, the current directory is searched too.
        table (`Mapping[str, str]`):
            Dotted path of each name.

    Raises:
        InputError: the name is neither in the table nor a dotted path, or cannot be imported.
    """
    if name in table:
        module, _, attribute = table[name].rpartition(".")
        return getattr(importlib.import_module(module), attribute)
    if not is_dotted_path(name):
        raise unknown(kind, name, f"choose one of {', '.join(table)}, or ")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except InputError:
        raise
    # The boundary to the user's code, which can raise anything; a script without a guard may call sys.exit().
    except (Exception, SystemExit) as error:
        reason = f"module {module!r} {describe_error(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            reason = f"{error}: run from the folder of its module, or install it"
        raise InputError(f"{kind} {name!r} cannot be imported: {reason}") from error
    if not hasattr(found, attribute):
        close = difflib.get_close_matches(attribute, vars(found), 1)
        hint = f"; did you mean {module}.{close[0]}?" if close else ""
        file = getattr(found, "__file__", None) or "a folder without a file __init__.py"
        raise InputError(f"{kind} {name!r} cannot be imported: {file} has no {attribute!r}{hint}")
    return getattr(found, attribute)


def looks_like_code(name: str) -> bool:
    """`True` if a name is a Python file, or `"module:function"`, where a dotted path is needed."""
    return bool(re.fullmatch(r".+\.py(:.*)?|[\w.]+:\w+", name))


def unknown(kind: str, name: str, known: str = "") -> InputError:
    """Return the error of a name that stands for nothing, with the dotted path that it was probably meant to be."""
    file, _, attribute = name.partition(":")
    module = file.removesuffix(".py").removeprefix("./").replace("/", ".")
    meant = f"{module}.{attribute or 'my_function'}"
    example = meant if looks_like_code(name) and is_dotted_path(meant) else "e.g. my_pkg.my_function"
    return InputError(f"unknown {kind} {name!r}: {known}give the dotted path of your own code, {example}")


def build(kind: str, name: str, factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a class or function with keyword arguments from a configuration.

    Raises:
        InputError: an argument is missing, unknown or of the wrong type.
    """
    hints = _type_hints(factory)
    try:
        bound = inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        known = ", ".join(parameters(factory)) or "no arguments"
        raise InputError(f"{kind} {name!r}: {error}; it takes {known}") from error
    for key, value in bound.arguments.items():
        if key in hints and not _is_instance(value, hints[key]):
            raise InputError(f"{kind} {name!r}: {key} is {value!r:.80}, but must be {_type_text(hints[key])}")
    return call(f"{kind} {name!r}", factory, **kwargs)


def build_own(kind: str, name: str, kwargs: Mapping[str, Any]) -> Any:
    """Build a part from a dotted path: an instance of a class, or the function itself with its arguments bound."""
    what, found = f"{kind} {name!r}", find(kind, name)
    if isinstance(found, type):
        found, kwargs = build(kind, name, found, kwargs), {}
    check_callable(what, found, _ARGUMENTS[kind], kwargs, allow_async=kind == "target")
    return partial(found, **kwargs) if kwargs else found


def parameters(factory: Callable[..., Any]) -> list[str]:
    """Names of the keyword arguments of a class or function."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in inspect.signature(factory).parameters.items() if parameter.kind in named]


def _type_hints(factory: Any) -> dict[str, Any]:
    try:
        return get_type_hints(vars(factory).get("__init__", factory) if isinstance(factory, type) else factory)
    except (NameError, AttributeError, TypeError, SyntaxError):  # e.g. imported for type checkers only
        return {}


def _is_instance(value: Any, hint: Any) -> bool:
    # Only types that a configuration can hold are checked; objects such as a loaded model are the class's to check.
    if get_origin(hint) in (Union, UnionType):
        return any(_is_instance(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, NoneType):
        return isinstance(value, hint)
    if get_origin(hint) is Sequence:
        return not isinstance(value, str | int | float | Mapping)
    return not isinstance(value, int | float | str) if isinstance(hint, type) else True


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("NoneType", "null")
