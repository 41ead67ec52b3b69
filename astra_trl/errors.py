"""The error classes for what a user can mend."""

from astra_trl.plain import visible


class InputError(ValueError):
    """Something that was given cannot be used: the message says in one line what is wrong and how to mend it.

    The recipes print this error without a traceback; every other exception is a fault of the program and keeps its
    traceback. What a message quotes of files and models is made harmless to a terminal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(visible(message).split()))


class RunStopped(InputError):
    """What stops a run that could otherwise go on, as a spent budget: a trainer writes a checkpoint first."""


class BudgetSpent(RunStopped):
    """The calls or tokens that a run may take of an endpoint are used up."""


class TooManyFailed(RunStopped):
    """More calls failed for good than a run may leave out."""


class MissingExtra(InputError, ImportError):
    """A package that only some users need is not installed; the message names the extra that brings it."""
