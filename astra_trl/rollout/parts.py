"""Work on many conversations in parts: few enough for the memory, and of similar length."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from astra_trl.backends.base import CachingSession, OutOfMemory, Session
from astra_trl.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Bytes that could be read in the time of a call to an endpoint, as every part waits for its slowest call.
CALL_BYTES = 2**33
# Times that a step reads each key and value: heads that share them get copies before attention.
KEY_VALUE_READS = 2


class Parts:
    """Splits work on many items, and remembers how many of them fit after memory has run out."""

    def __init__(self) -> None:
        self._items_that_fit: int | None = None

    def work(
        self,
        items: Sequence[T],
        open_sessions: Callable[[Sequence[T]], Sequence[Session]],
        work: Callable[[Sequence[T], Sequence[Session]], list[R]],
        max_items: int | None = None,
        row_of: Callable[[T], int] | None = None,
    ) -> list[R]:
        """Return the results of `work` for all items, in their order.

        All items are worked on at once unless they are more than `max_items`, more than their sessions take, too many
        for the memory, or of lengths that differ too much. Then they are split, and each part is finished, with
        everything that grows from it, before the next one is opened.

        Args:
            open_sessions (`Callable`):
                Returns the sessions of a part, with one row per item, or with rows that `row_of` finds.
            row_of (`Callable`, *optional*):
                Returns the row that an item branches from.
        """
        if not items:
            return []
        parts = even_parts(len(items), _smallest(max_items, self._items_that_fit, len(items)))
        if len(parts) < 2:
            sessions = open_sessions(items)
            rows = range(len(items)) if row_of is None else [row_of(item) for item in items]
            parts = parts_of_similar_size(sessions, rows)
            if len(parts) < 2:
                try:
                    return work(items, sessions)
                except OutOfMemory as error:
                    reason = str(error).strip().split("\n")[0]
                    if len(items) == 1:
                        raise InputError(f"not even one conversation fits in memory: {reason}") from error
                parts = even_parts(len(items), math.ceil(len(items) / 2))
                self._reduce_items(len(items) // 2, reason)
            del sessions  # the parts need their memory
        results: list[tuple[int, R]] = []
        for part in parts:
            done = self.work([items[index] for index in part], open_sessions, work, max_items, row_of)
            results += zip(part, done, strict=True)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def _reduce_items(self, count: int, reason: str) -> None:
        if self._items_that_fit is None:
            logger.warning("out of memory, so conversations are grown %d at a time from now on: %s", count, reason)
        self._items_that_fit = count


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split items into parts of `size`, in their order; the last part may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def even_parts(count: int, limit: int) -> list[Sequence[int]]:
    """Split `count` items into the fewest parts of at most `limit`, in their order."""
    parts = math.ceil(count / limit)
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def parts_of_similar_size(sessions: Sequence[Session], rows: Sequence[int]) -> list[Sequence[int]]:
    """Split items that branch from these rows into the parts that take the least time together.

    The time of a forward pass is about that of reading all it needs: the weights, and keys and values of every row,
    padded to the longest. So one more part costs one more reading of the weights, and saves padding.
    """
    limit = _smallest(*(session.max_rows for session in sessions), len(rows))
    known = [sizes for s in sessions if isinstance(s, CachingSession) and (sizes := s.sizes()) is not None]
    taken = [np.array([sizes.row_bytes[row] for row in rows]) for sizes in known]
    free = [math.inf if sizes.free_bytes is None else sizes.free_bytes for sizes in known]
    if all(len(set(each.tolist())) == 1 for each in taken):
        fitting = [
            int(max(1, most // max(1, each[0]))) for each, most in zip(taken, free, strict=True) if most < math.inf
        ]
        return even_parts(len(rows), _smallest(*fitting, limit))
    pass_bytes = sum(sizes.pass_bytes for sizes in known) + CALL_BYTES * (len(known) < len(sessions))
    order = np.argsort(sum(taken), kind="stable")
    taken = [each[order] for each in taken]
    # The cheapest way to split the first `stop` rows, for each `stop`: where its last part starts, and its cost.
    costs, starts = np.zeros(len(rows) + 1), [0] * (len(rows) + 1)
    for stop in range(1, len(rows) + 1):
        first = max(0, stop - limit)
        counts = np.arange(stop - first, 0, -1)
        cost = costs[first:stop] + pass_bytes
        for each, most in zip(taken, free, strict=True):
            padded = counts * np.maximum.accumulate(each[first:stop][::-1])[::-1]
            cost += np.where((padded > most) & (counts > 1), math.inf, KEY_VALUE_READS * padded)
        best = int(cost.argmin())
        costs[stop], starts[stop] = cost[best], first + best
    parts, stop = [], len(rows)
    while stop:
        parts.append(order[starts[stop] : stop].tolist())
        stop = starts[stop]
    return parts


def _smallest(*numbers: int | None) -> int:
    return min(number for number in numbers if number is not None)
