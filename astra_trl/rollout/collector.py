"""Collection of a round: trees grown from random openings by the tester as it is now, and the records in them."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from accelerate import PartialState
from torch.utils.data import Dataset

from astra_trl.backends.base import derive_seed
from astra_trl.conversation import Opening
from astra_trl.errors import InputError
from astra_trl.processes import share_out
from astra_trl.progress import ProgressBar
from astra_trl.rollout.parts import split
from astra_trl.rollout.records import Record
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.teaching import Teaching, teaching_records
from astra_trl.tree import Tree, exchanges_in_tree

T = TypeVar("T")


class RoundRecords(Dataset[Record]):
    """The current round's records. Its length never changes, so that one data loader serves every round."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.records: list[Record] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


class Draw(NamedTuple):
    """One draw of a round: its number in the round, the opening and the seed."""

    number: int
    opening: Opening
    seed: int


@dataclass(frozen=True)
class Draws:
    """Openings and seeds of a round's trees. They depend on the round's seed alone, not on the number of processes.

    Args:
        seed (`int`):
            Seed of the round.
        trees_at_a_time (`int`):
            Draws that all processes grow at the same time.
        max_trees (`int`):
            Draws after which a round that is not full gets no more trees.
        together (`int`, *optional*):
            Draws that one process grows in one batch; defaults to its share of `trees_at_a_time`.
        description (`str`, *optional*, defaults to `"collecting"`), disable_tqdm (`bool`, *optional*):
            The text of the progress bar, and if it is hidden; see [`ProgressBar`].
    """

    seed: int
    trees_at_a_time: int
    max_trees: int
    together: int | None = None
    description: str = "collecting"
    disable_tqdm: bool | None = None

    def batches(self, sampler: ASTSampler) -> Iterator[Sequence[Draw]]:
        """Yield the draws that are grown at the same time."""
        openings = sampler.draw(self.seed, self.max_trees)
        draws = [Draw(number, opening, derive_seed(self.seed, number)) for number, opening in enumerate(openings)]
        return iter(split(draws, self.trees_at_a_time))

    def share_out(self, batch: Sequence[Draw], work: Callable[[Sequence[Draw]], Sequence[T]]) -> list[T]:
        """Return the result of `work` for each draw of a batch, computed by all processes together."""
        together = self.together or math.ceil(self.trees_at_a_time / PartialState().num_processes)
        parts = share_out(split(batch, together), lambda mine: [work(part) for part in mine])
        return [result for part in parts for result in part]

    def bar(self, total: int) -> ProgressBar:
        """Return the progress bar of the round's exchanges."""
        return ProgressBar(self.description, total, disable=self.disable_tqdm)

    def fewest_left(self, drawn: int, missing: int, records_per_tree: int) -> int:
        """Return the number of further draws if each of them has as many records as a tree can have."""
        batches = math.ceil(max(0, missing) / (records_per_tree * self.trees_at_a_time))
        return min(self.max_trees - drawn, batches * self.trees_at_a_time)


def collect_trees(
    sampler: ASTSampler,
    draws: Draws,
    size: int,
    records_of: Callable[[Sequence[Tree]], Sequence[Record]],
    teaching: Teaching | None = None,
) -> tuple[list[Tree], list[Record]]:
    """Grow trees until they hold `size` records or no draw is left.

    Returns the trees, and the records of the draws that `teaching` took instead of a tree; these count too. Every
    process grows its share, and all return the same.
    """
    trees: list[Tree] = []
    lessons: list[Record] = []
    count = drawn = 0
    per_tree = exchanges_in_tree(sampler.tree_width, sampler.tree_depth)
    tree_share = 1 - (teaching.fraction if teaching else 0)

    def total() -> int:
        left = draws.fewest_left(drawn, size - count - len(lessons), sampler.groups_per_tree)
        return (len(trees) + round(left * tree_share)) * per_tree

    def grow_or_teach(batch: Sequence[Draw]) -> list[Tree | Record | None]:
        pairs = [teaching.draw(draw.seed) if teaching else None for draw in batch]
        forced = [(pair, draw.seed) for pair, draw in zip(pairs, batch, strict=True) if pair is not None]
        records = iter(teaching_records(sampler.system.tester, *zip(*forced, strict=True)) if forced else ())
        free = [draw for pair, draw in zip(pairs, batch, strict=True) if pair is None]
        openings, seeds = [draw.opening for draw in free], [draw.seed for draw in free]
        new_trees = iter(sampler.grow(openings, seeds, bar.update) if free else ())
        return [next(new_trees) if pair is None else next(records) for pair in pairs]

    with draws.bar(total()) as bar:
        for batch in draws.batches(sampler):
            outcomes = draws.share_out(batch, grow_or_teach)
            new = [outcome for outcome in outcomes if isinstance(outcome, Tree)]
            trees += new
            drawn += len(batch)
            lessons += [outcome for outcome in outcomes if isinstance(outcome, dict)]
            count += len(records_of(new))
            bar.total = total()
            bar.count_to(len(trees) * per_tree)  # with those of other processes
            if count + len(lessons) >= size:
                break
    return trees, lessons


def fill_round(records: Sequence[T], size: int, seed: int, reason: str) -> list[T]:
    """Return exactly `size` records: a random part if there are more, some of them repeated if there are fewer.

    Raises `InputError` with the reason if there are none.
    """
    if not records:
        raise InputError(reason)
    rng = random.Random(seed)
    if len(records) >= size:
        return [records[index] for index in sorted(rng.sample(range(len(records)), size))]
    copies = list(records) * (size // len(records) - 1) + rng.sample(list(records), size % len(records))
    return [*records, *copies]
