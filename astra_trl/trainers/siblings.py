"""Siblings as TRL's trainers get them: one row each, the rows of a group together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from astra_trl.rollout.collector import RoundRecords
from astra_trl.rollout.records import Record

PER_SIBLING = ("probe", "response", "reward", "probe_ids", "sampling_logprobs")


class GroupRecords(RoundRecords):
    """The round's groups with one row per sibling: row `i` is sibling `i % width` of group `i // width`."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__(groups * width)
        self.width = width

    def __getitem__(self, index: int) -> Record:
        group, sibling = divmod(index, self.width)
        return {key: value[sibling] if key in PER_SIBLING else value for key, value in self.records[group].items()}


class SiblingSampler(Sampler[int]):
    """Rows of `GroupRecords`, from TRL's sampler, which repeats the number of a group once per sibling."""

    def __init__(self, groups: Sampler[int], width: int) -> None:
        self.groups, self.width = groups, width

    def __iter__(self) -> Iterator[int]:
        for position, group in enumerate(self.groups):
            yield group * self.width + position % self.width

    def __len__(self) -> int:
        return len(self.groups)


def tree_reward(reward: Sequence[float | None], **columns: Any) -> list[float | None]:
    """TRL's reward function of a tree: the credit of each probe, `None` if it could not be measured."""
    return list(reward)


def shuffle_groups(batch: dict[str, Any], width: int) -> dict[str, Any]:
    """Shuffle the groups of a batch, whose values have one entry per row or none, with torch's global generator.

    TRL shuffles rows, which would spread siblings over batches: none could share their context.
    """
    rows = len(next(values for values in batch.values() if values is not None))
    groups = torch.randperm(rows // width)
    order = (groups[:, None] * width + torch.arange(width)).flatten()

    def ordered(values: Any) -> Any:
        if values is None or (isinstance(values, torch.Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, torch.Tensor) else [values[row] for row in order]

    return {name: ordered(values) for name, values in batch.items()}
