"""One piece of work in the processes that accelerate has started, one or several."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from astra_trl.errors import RunStopped

T = TypeVar("T")
R = TypeVar("R")


def stopped_together(work: Callable[[], R]) -> R:
    """What `work` returns, once every process has done its own; to be called in all of them. A `RunStopped` in one is
    raised in all, so that they can write a checkpoint together; any other error ends its process, and the launcher
    ends those that wait for it."""
    stopped: RunStopped | None = None
    try:
        result = work()
    except RunStopped as error:
        stopped = error
    for reason in gather_object([stopped]):
        if reason is not None:
            raise reason
    return result


def shared_out(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """What `work` makes of each item, in every process, where each has done its part of them."""
    state = PartialState()
    mine = range(len(items))[state.process_index :: state.num_processes]
    done = stopped_together(lambda: work([items[index] for index in mine]) if mine else [])
    gathered = gather_object(list(zip(mine, done, strict=True)))
    return [result for _, result in sorted(gathered, key=lambda one: one[0])]
