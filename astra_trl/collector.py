"""Trees until a round is full: drawn openings, grown with the tester as it is, and the records in them."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from astra_trl.backends.base import derive_seed
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.records import Record
from astra_trl.sampler import ASTSampler, Context, OnExchanges, ignored
from astra_trl.teaching import Teaching, taught_records
from astra_trl.tree import Tree

T = TypeVar("T")


@dataclass(frozen=True)
class Draws:
    """Which openings a round's trees grow from, and with which seeds.

    The seed tells the opening of every draw of a round by its number, and what grows from it; those with the numbers
    `first`, `first + step`, ... are made here, the others by the other processes.

    Args:
        seed (`int`):
            Of the round.
        trees_at_a_time (`int`):
            Draws that are grown together.
        max_trees (`int`):
            Draws after which filling the round is given up.
    """

    seed: int
    trees_at_a_time: int
    max_trees: int
    first: int = 0
    step: int = 1

    def batches(self, sampler: ASTSampler) -> Iterator[list[tuple[int, Opening, int]]]:
        """Number, opening and seed of each draw, batch after batch."""
        openings = sampler.draw(self.seed, self.step * self.max_trees)
        numbers = range(self.first, len(openings), self.step)
        for start in range(0, len(numbers), self.trees_at_a_time):
            batch = numbers[start : start + self.trees_at_a_time]
            yield [(number, openings[number], derive_seed(self.seed, number)) for number in batch]


def collect_trees(
    sampler: ASTSampler,
    draws: Draws,
    wanted: int,
    records_of: Callable[[Sequence[Tree]], Sequence[Record]],
    teaching: Teaching | None = None,
    on_exchanges: OnExchanges = ignored,
) -> tuple[list[Tree], list[Record]]:
    """Trees until `records_of` them are `wanted` in number, or no draw is left; and the records of the draws that
    `teaching` took in place of a tree, which count too."""
    trees: list[Tree] = []
    taught: list[Record] = []
    found = 0
    for batch in draws.batches(sampler):
        forced = [teaching.drawn(seed) if teaching else None for _, _, seed in batch]
        lessons = [(pair, seed) for pair, (_, _, seed) in zip(forced, batch, strict=True) if pair is not None]
        if lessons:
            taught += taught_records(sampler.system.tester, *zip(*lessons, strict=True))
        free = [(opening, seed) for pair, (_, opening, seed) in zip(forced, batch, strict=True) if pair is None]
        if free:
            openings, seeds = zip(*free, strict=True)
            grown = sampler.grow(openings, seeds, on_exchanges)
            found += len(records_of(grown))
            trees += grown
        if found + len(taught) >= wanted:
            break
    return trees, taught


def collect_contexts(
    sampler: ASTSampler, draws: Draws, wanted: int, on_exchanges: OnExchanges = ignored
) -> list[Context]:
    """Contexts of fresh trees, their trees' numbers those of the draws, until they are `wanted` in number."""
    contexts: list[Context] = []
    for batch in draws.batches(sampler):
        numbers, openings, seeds = zip(*batch, strict=True)
        found = sampler.contexts(openings, seeds, on_exchanges)
        contexts += [replace(context, tree=numbers[context.tree]) for context in found]
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
