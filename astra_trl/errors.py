"""Errors that a user can fix."""

import os
import traceback
from typing import Any

from astra_trl.text import visible


class InputError(ValueError):
    """An input cannot be used. The message says in one line what is wrong and how to fix it.

    The recipes print this error without a traceback. Every other exception is a bug and keeps its traceback. Text of
    files and models that a message quotes is made safe for a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(visible(message).split()))


def final_line(error: InputError) -> str:
    """Return the line that a command ends in. If the environment variable `ASTRA_TRL_TRACEBACK` is set, print the
    traceback."""
    if os.environ.get("ASTRA_TRL_TRACEBACK"):
        traceback.print_exception(error)
    return f"error: {error}"


class RunStopped(InputError):
    """A run has to stop but can be resumed, e.g. after its budget was raised: trainers save a checkpoint first."""


class NotFinite(InputError):
    """A model computes nan. `backend` is the one that it was sampled by, if it was."""

    def __init__(self, message: str, backend: Any = None) -> None:
        super().__init__(message)
        self.backend = backend


class BudgetSpent(RunStopped):
    """The calls or tokens that a run may use of an endpoint are used up."""


class TooManyFailed(RunStopped):
    """More calls have failed for good than `max_failed_share` allows."""


class MissingExtra(InputError, ImportError):
    """An optional package is not installed. The message names the extra that installs it."""
