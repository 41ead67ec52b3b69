"""Work shared by the processes that accelerate has started, one or several."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from astra_trl.errors import RunStopped

T = TypeVar("T")
R = TypeVar("R")


def stop_together(work: Callable[[], R]) -> R:
    """Run `work` in every process and return its result, or raise the `RunStopped` of any process in all of them, so
    that they can write a checkpoint together. Any other error ends its own process, and the launcher then ends those
    that wait for it."""
    stopped: RunStopped | None = None
    try:
        result = work()
    except RunStopped as error:
        stopped = error
    for reason in gather_object([stopped]):
        if reason is not None:
            raise reason
    return result


def share_out(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """Return the results of `work` for all items, in every process. Each process works on its share of the items."""
    state = PartialState()
    mine = range(len(items))[state.process_index :: state.num_processes]
    results = stop_together(lambda: work([items[index] for index in mine]) if mine else [])
    everything = gather_object(list(zip(mine, results, strict=True)))
    return [result for _, result in sorted(everything, key=lambda pair: pair[0])]
