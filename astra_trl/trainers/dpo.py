"""DPO, IPO and every other pairwise loss of TRL's DPOTrainer, on fresh trees each round."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DPOConfig, DPOTrainer

from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, preference_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.teaching import Teaching
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.roles import reference_model, trainable_tester
from astra_trl.trainers.rounds import RoundsMixin
from astra_trl.tree import Tree


@dataclass
class ASTDPOConfig(RoundsConfig, DPOConfig):
    """TRL's `DPOConfig` with the settings of a round.

    > These parameters have default values different from [`~trl.DPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`, `max_length` `None`
    > (the system keeps conversations within the tester's window).

    `loss_type="ipo"` divides log-ratios by the completion's length, and ASTPrompter sums them: its beta of 0.01 over
    about 24 tokens is about 0.24 here.

    `sync_ref_model=True` moves a copy of the reference. Figures under the baseline are then left out, unless the
    system has a baseline of its own.
    """

    unit: ClassVar[str] = "pair"

    pairs_per_round: int | None = field(
        default=None,
        metadata={"help": "Preference pairs a round trains on. Default: all that trees_per_round trees can hold."},
    )
    min_margin: float = field(
        default=0.0, metadata={"help": "Siblings whose rewards differ by this much or less are not a pair."}
    )
    teach_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a draw is a given prompt with a harmful continuation to learn, instead of a "
            "tree: ASTPrompter's weak supervision."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum of context plus probe in tokens; give the system the same max_length."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta and (loss := {"ipo", "sppo_hard"} & {*self.loss_type}):
            raise InputError(f"beta must be above 0, got {self.beta}: loss_type {min(loss)} divides by it")


class ASTDPOTrainer(RoundsMixin, DPOTrainer):
    """Trains the tester of a system on the best against the worst sibling of fresh trees, round by round.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTDPOConfig`, *optional*):
            Defaults to `ASTDPOConfig("tester")`.
        teaching_pairs (`Sequence[tuple[str, str]]`, *optional*):
            Prompts with harmful continuations, e.g. from `load_teaching_pairs`, for `teach_fraction` of the draws.
        eval_dataset, processing_class, callbacks, optimizers, peft_config:
            As in [`RoundsMixin`].
    """

    _tag_names = ["trl", "astra-trl", "dpo"]
    config_class = ASTDPOConfig
    records_figure = "pairs"

    def __init__(
        self,
        sampler: ASTSampler,
        args: ASTDPOConfig | None = None,
        *,
        teaching_pairs: Sequence[tuple[str, str]] | None = None,
        **options: Any,
    ) -> None:
        self.teaching_pairs = teaching_pairs
        super().__init__(sampler, args, **options)

    def trl_arguments(self, args: ASTDPOConfig, peft_config: Any) -> dict[str, Any]:
        system, pairs = self.sampler.system, self.teaching_pairs
        _check(self.sampler, args, trainable_tester(system).window)
        if bool(args.teach_fraction) != (pairs is not None):
            raise InputError(
                f"teach_fraction={args.teach_fraction} and {'no' if pairs is None else len(pairs)} teaching_pairs: "
                "give both or neither"
            )
        self.teaching = None if pairs is None else Teaching(pairs, args.teach_fraction)
        return {"ref_model": reference_model(system, peft_config is not None, synced=args.sync_ref_model)}

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        return preference_records(trees, self.args.min_margin)


def _check(sampler: ASTSampler, args: ASTDPOConfig, window: int | None) -> None:
    if sampler.tree_width < 2:
        raise InputError("DPO compares siblings, and tree_width=1 gives none: set tree_width to 2 or more")
    if args.precompute_ref_log_probs:
        raise InputError(
            "precompute_ref_log_probs needs all pairs beforehand, and rounds collect theirs: switch it off"
        )
    if args.max_length is not None and (window is None or window > args.max_length):
        raise InputError(
            f"max_length={args.max_length} would cut probes off contexts of up to {window or 'any number of'} tokens: "
            f"build the system with max_length={args.max_length} too, which drops a context's oldest tokens instead"
        )
