"""Supervised learning by TRL's SFTTrainer from probes that made the target fail, on fresh trees each round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import SFTConfig, SFTTrainer

from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, supervised_records
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.rounds import RoundsMixin
from astra_trl.trainers.unread import BY_ALL, BY_SFT
from astra_trl.tree import Tree


@dataclass
class ASTSFTConfig(RoundsConfig, SFTConfig):
    """TRL's `SFTConfig` with the settings of a round.

    > These parameters have default values different from [`~trl.SFTConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`, `max_length` `None`
    > (the system keeps conversations within the tester's window).
    """

    unit: ClassVar[str] = "case"
    unread: ClassVar[Mapping[str, str]] = {**BY_ALL, **BY_SFT}

    cases_per_round: int | None = field(
        default=None,
        metadata={"help": "Failing cases a round trains on. Default: one per sibling group of trees_per_round trees."},
    )
    min_score: float = field(
        default=0.5, metadata={"help": "A probe is learned from if its response scores this much or more."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Leave it out: the system bounds conversations."})

    def __post_init__(self: Any) -> None:
        super().__post_init__()
        for name in ("packing", "padding_free", "max_length"):
            if getattr(self, name):
                raise InputError(f"{name} would rearrange what the trees hold: leave it out")


class ASTSFTTrainer(RoundsMixin, SFTTrainer):
    """Fine-tunes the tester of a system on its own probes that made the target fail, round by round.

    One round is the supervised method of Perez et al. (huggingface.co/papers/2202.03286), several are expert
    iteration. The arguments are those of [`RoundsMixin`], with an [`ASTSFTConfig`].
    """

    _tag_names = ["trl", "astra-trl", "sft"]
    config_class = ASTSFTConfig
    records_figure = "cases"

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        return supervised_records(trees, lambda nodes: self.sampler.system.failing(nodes, self.args.min_score))
