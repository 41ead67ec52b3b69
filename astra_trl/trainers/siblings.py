"""Siblings as TRL's trainers get them (one row each, the rows of a group together), and checks of their settings."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from astra_trl.errors import InputError
from astra_trl.rollout.collector import RoundRecords
from astra_trl.rollout.records import Record
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.systems.base import System
from astra_trl.trainers.roles import trainable_tester

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


def check_siblings(sampler: ASTSampler, args: Any, whole_groups: bool) -> None:
    """Check the settings of TRL's trainer against a sampler, and set those that follow it.

    Args:
        whole_groups (`bool`): Whether a forward pass needs whole groups.

    Raises:
        InputError: a setting does not fit the sampler's trees or the trainers of groups.
    """
    width = sampler.tree_width
    if width < 2:
        raise InputError("siblings are compared, and tree_width=1 gives none: set tree_width to 2 or more")
    if args.num_generations not in (None, width):
        raise InputError(
            f"num_generations={args.num_generations}, and a tree's siblings are the group: leave it out, or set "
            f"tree_width={args.num_generations}"
        )
    if args.generation_batch_size % width:
        raise InputError(
            f"a generation batch of {args.generation_batch_size} probes does not hold whole groups of tree_width="
            f"{width}: make per_device_train_batch_size a multiple of {width}"
        )
    if whole_groups and args.per_device_train_batch_size % width:
        raise InputError(
            f"per_device_train_batch_size={args.per_device_train_batch_size} splits groups of siblings, which are "
            f"compared with each other: make it a multiple of tree_width={width}"
        )
    tester = trainable_tester(sampler.system)
    ends = {tester.tokenizer.eos_token_id, tester.tokenizer.pad_token_id}
    shortens = type(sampler.system).probe_in is not System.probe_in
    if args.mask_truncated_completions and (shortens or tester.sampling.stop_strings or tester.eos - ends):
        raise InputError(
            "mask_truncated_completions leaves out probes without the tokenizer's end of sequence, and these end in "
            "other ways too: leave it out"
        )
    if args.remove_unused_columns:
        raise InputError("remove_unused_columns would remove what the trees hold: leave it out")
    args.num_generations = width
    args.round_of(sampler)
