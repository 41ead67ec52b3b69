"""Supervised learning by TRL's SFTTrainer from the probes that made the target fail, on fresh trees each round."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, supervised_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.trainers.roles import tester_to_train
from astra_trl.trainers.rounds import RoundsConfig, RoundsMixin, placeholders
from astra_trl.tree import Tree


@dataclass
class ASTSFTConfig(RoundsConfig, SFTConfig):
    """TRL's `SFTConfig` with what a round is.

    > These parameters have default values different from [`~trl.SFTConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`, `max_length` `None`
    > (the system keeps conversations within the tester's window).
    """

    unit: ClassVar[str] = "case"

    cases_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Failing cases a round trains on. Default: one for each sibling group of trees_per_round trees."
        },
    )
    min_score: float = field(
        default=0.5, metadata={"help": "A probe is learned from where its response scores this much or more."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Leave it out: the system bounds conversations."})

    def __post_init__(self: Any) -> None:
        super().__post_init__()
        if not 0 < self.min_score <= 1:
            raise InputError(f"min_score must be above 0 and at most 1, got {self.min_score}")
        for name in ("packing", "padding_free", "max_length"):
            if getattr(self, name):
                raise InputError(f"{name} would rearrange what the trees hold: leave it out")


class ASTSFTTrainer(RoundsMixin, SFTTrainer):
    """Fine-tunes the tester of a system on its own probes that made the target fail, round by round.

    One round of it is the supervised method of Perez et al. (huggingface.co/papers/2202.03286), several are expert
    iteration.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTSFTConfig`, *optional*):
            Defaults to `ASTSFTConfig("tester")`.
        eval_dataset (`Sequence[Opening]`, `Dataset` or `str`, *optional*):
            Held-out openings for `evaluate` and `eval_strategy`; or a dictionary of several such.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the tokenizer of the system's tester.
        callbacks, optimizers, peft_config:
            As in TRL.
    """

    _tag_names = ["trl", "astra-trl", "sft"]
    found = "cases"

    def __init__(
        self,
        sampler: ASTSampler,
        args: ASTSFTConfig | None = None,
        *,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args or ASTSFTConfig("tester")
        tester = tester_to_train(sampler.system, peft_config)
        super().__init__(
            model=tester.model,
            args=args,
            **placeholders(eval_dataset),
            processing_class=processing_class or tester.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.start_rounds(sampler, *args.full_round(sampler.groups_per_tree), eval_dataset)

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        return supervised_records(trees, lambda nodes: self.sampler.system.failing(nodes, self.args.min_score))
