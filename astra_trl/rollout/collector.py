"""Trees until a round is full: drawn openings, grown with the tester as it is, and the records in them."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from accelerate import PartialState

from astra_trl.backends.base import derive_seed
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.processes import shared_out
from astra_trl.rollout.records import Record
from astra_trl.rollout.sampler import ASTSampler, Context, OnExchanges, ignored
from astra_trl.rollout.teaching import Teaching, taught_records
from astra_trl.tree import Tree

T = TypeVar("T")


class Draw(NamedTuple):
    """One draw of a round: its number in it, the opening and the seed."""

    number: int
    opening: Opening
    seed: int


@dataclass(frozen=True)
class Draws:
    """Which openings a round's trees grow from, and with which seeds.

    The seed tells the opening of every draw of a round by its number, and what grows from it, in however many
    processes.

    Args:
        seed (`int`):
            Of the round.
        trees_at_a_time (`int`):
            Draws that are grown together, by all processes.
        max_trees (`int`):
            Draws after which filling the round is given up.
        together (`int`, *optional*):
            Of these, how many one process grows in one batch; defaults to its share.
    """

    seed: int
    trees_at_a_time: int
    max_trees: int
    together: int | None = None

    def batches(self, sampler: ASTSampler) -> Iterator[Sequence[Draw]]:
        """The draws, batch after batch."""
        openings = sampler.draw(self.seed, self.max_trees)
        draws = [Draw(number, opening, derive_seed(self.seed, number)) for number, opening in enumerate(openings)]
        yield from _parts(draws, self.trees_at_a_time)

    def shared_out(self, batch: Sequence[Draw], work: Callable[[Sequence[Draw]], Sequence[T]]) -> list[T]:
        """What `work` makes of each draw of a batch, by all processes together."""
        together = self.together or math.ceil(self.trees_at_a_time / PartialState().num_processes)
        parts = list(_parts(batch, together))
        done = shared_out(parts, lambda mine: [work(part) for part in mine])
        return [result for part in done for result in part]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def collect_trees(
    sampler: ASTSampler,
    draws: Draws,
    wanted: int,
    records_of: Callable[[Sequence[Tree]], Sequence[Record]],
    teaching: Teaching | None = None,
    on_exchanges: OnExchanges = ignored,
) -> tuple[list[Tree], list[Record]]:
    """Trees until `records_of` them are `wanted` in number, or no draw is left; and the records of the draws that
    `teaching` took in place of a tree, which count too. All processes grow their share and return the same."""
    trees: list[Tree] = []
    taught: list[Record] = []
    found = 0

    def outcomes_of(batch: Sequence[Draw]) -> list[Tree | Record | None]:
        # Of each draw; a lesson may come to nothing.
        forced = [teaching.drawn(draw.seed) if teaching else None for draw in batch]
        lessons = [(pair, draw.seed) for pair, draw in zip(forced, batch, strict=True) if pair is not None]
        learned = iter(taught_records(sampler.system.tester, *zip(*lessons, strict=True)) if lessons else ())
        free = [draw for pair, draw in zip(forced, batch, strict=True) if pair is None]
        openings, seeds = [draw.opening for draw in free], [draw.seed for draw in free]
        grown = iter(sampler.grow(openings, seeds, on_exchanges) if free else ())
        return [next(grown) if pair is None else next(learned) for pair in forced]

    for batch in draws.batches(sampler):
        outcomes = draws.shared_out(batch, outcomes_of)
        new = [outcome for outcome in outcomes if isinstance(outcome, Tree)]
        trees += new
        taught += [outcome for outcome in outcomes if isinstance(outcome, dict)]
        found += len(records_of(new))
        if found + len(taught) >= wanted:
            break
    return trees, taught


def collect_contexts(
    sampler: ASTSampler, draws: Draws, wanted: int, on_exchanges: OnExchanges = ignored
) -> list[Context]:
    """Contexts of fresh trees, their trees' numbers those of the draws, until they are `wanted` in number. All
    processes grow their share and return the same."""
    contexts: list[Context] = []

    def contexts_of(batch: Sequence[Draw]) -> list[list[Context]]:
        of_draws: list[list[Context]] = [[] for _ in batch]
        openings, seeds = [draw.opening for draw in batch], [draw.seed for draw in batch]
        for context in sampler.contexts(openings, seeds, on_exchanges):
            of_draws[context.tree].append(replace(context, tree=batch[context.tree].number))
        return of_draws

    for batch in draws.batches(sampler):
        contexts += [context for of_draw in draws.shared_out(batch, contexts_of) for context in of_draw]
        if len(contexts) >= wanted:
            break
    return contexts


def fill_round(records: Sequence[T], size: int, seed: int, reason: str) -> list[T]:
    """Exactly `size` records: a random part of them where there are more, some of them again where there are fewer.

    Raises `InputError` with the reason where there is none.
    """
    if not records:
        raise InputError(reason)
    rng = random.Random(seed)
    if len(records) >= size:
        return [records[index] for index in sorted(rng.sample(range(len(records)), size))]
    again = list(records) * (size // len(records) - 1) + rng.sample(list(records), size % len(records))
    return [*records, *again]
