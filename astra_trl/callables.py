"""Functions of the user's own: checked before the first call, and their errors and wrong results fit in one line."""

import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

from astra_trl.errors import InputError

T = TypeVar("T")

_PACKAGE = __name__.partition(".")[0]
# Files that the user did not write: of this package, of Python and of installed packages.
_NOT_OWN = re.compile(
    "|".join([*map(re.escape, map(os.path.dirname, (__file__, os.__file__))), r"(site|dist)-packages"])
)
MAX_REASON = 500  # characters of an error's own message


def is_own(function: Any) -> bool:
    """Return `True` if a function, or an instance's class, is not part of this package."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", "")).partition(".")[0] != _PACKAGE


def check_callable(
    what: str, function: Any, argument: str, kwargs: Mapping[str, Any] = {}, allow_async: bool = False
) -> None:
    """Raise `InputError` unless a function can be called with one argument, and with these keyword arguments.

    Args:
        what (`str`):
            Its kind and name, for messages, e.g. `"scorer 'my_pkg.fn'"`.
        function (`Callable`):
            The function, or an instance of a class with `__call__`.
        argument (`str`):
            Name of the argument, for messages, e.g. `"exchanges"`.
        kwargs (`Mapping[str, Any]`):
            Keyword arguments that will be bound.
        allow_async (`bool`, *optional*, defaults to `False`):
            Whether an `async` function can be used.
    """
    if isinstance(function, type):
        raise InputError(f"{what} is the class {function.__name__}: give an instance, {function.__name__}(...)")
    if not callable(function):
        raise InputError(
            f"{what} is {describe(function)}: give a function of the {argument}, or an object that has __call__"
        )
    if not allow_async and any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise _async_error(what)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C tell nothing
        return
    try:
        signature.bind(None, **kwargs)
    except TypeError as error:
        given = ", ".join([argument, *(f"{key}=..." for key in kwargs)])
        raise InputError(f"{what} takes {signature}, but is called with ({given}): {error}") from error


def call(what: str, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call a function. An error of the user's own is an `InputError` that names it and its place."""
    try:
        return function(*args, **kwargs)
    except InputError:
        raise
    # The boundary to the user's code, which can raise anything. `sys.exit()` would end the run as if it were finished.
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and not is_own(function):
            raise  # a bug of this package keeps its traceback
        raise InputError(f"{what} {describe_error(error)}") from error


def call_for_numbers(
    what: str, function: Callable[[Sequence[Any]], Any], items: Sequence[Any], item: str
) -> list[float]:
    """Call a function of a batch and return its numbers as floats, one per item.

    Raises:
        InputError: it raised an error, or returned something else than a list, array or tensor of as many numbers.
    """
    result = call(what, function, list(items))  # a copy, which the function may sort or empty
    fix = f"return one number per {item}, in a list, nan for one that could not be measured"
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        getattr(result, "close", lambda: None)()  # Python would warn that it was never awaited
        raise _async_error(what)
    unordered = isinstance(result, str | bytes | Mapping | Set)
    if unordered or not isinstance(result, Iterable) or len(getattr(result, "shape", (0,))) != 1:
        raise InputError(f"{what} returned {describe(result)}: {fix}")
    values = call(what, getattr(result, "tolist", partial(list, result)))  # a generator runs here
    if len(values) != len(items):
        raise InputError(f"{what} returned {len(values)} values for {len(items)} {item}s: {fix}")
    return [_number(what, value, number, fix) for number, value in enumerate(values, 1)]


def _number(what: str, value: Any, number: int, fix: str) -> float:
    try:
        if isinstance(value, str | bytes) or len(getattr(value, "shape", [])):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} returned {describe(value)} as value {number}: {fix}") from error


def describe(value: Any) -> str:
    """Describe a value that should have been another, in a few words."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, str | bytes | bool | int | float):
        return f"{value!r:.40}, of type {kind}"
    shape = getattr(value, "shape", None)
    return f"an object of type {kind}" + (f" and shape {tuple(shape)}" if shape is not None else "")


def describe_error(error: BaseException) -> str:
    """Describe an error of the user's code in one line: its type, its message and its place."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)  # the place follows
    reason, place = " ".join(message.split())[:MAX_REASON], _place(error)
    text = f"raised {type(error).__name__}" + (f": {reason}" if reason else "")
    if isinstance(error, SystemExit):
        text = f"called sys.exit({reason}), which ends the whole run: let it raise an error instead"
    return f"{text} ({place})" if place else text


def _place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if not _NOT_OWN.search(os.path.abspath(frame.filename))]
    # The line of the user's that failed; of an installed function, the line below that of this file.
    below = [frame for frame in frames if os.path.abspath(frame.filename) != os.path.abspath(__file__)]
    for frame in own[-1:] or below[:1]:
        return f"{_short(frame.filename)}:{frame.lineno}"
    return None


def _short(filename: str) -> str:
    # Relative to the current folder, or the name alone: errors of targets are published with transcripts.
    relative = os.path.relpath(filename)
    is_elsewhere = relative.startswith(os.pardir) or _NOT_OWN.search(os.path.abspath(filename))
    return os.path.basename(filename) if is_elsewhere else relative


def _async_error(what: str) -> InputError:
    return InputError(f"{what} is an async function: give a function that runs it with asyncio.run")
