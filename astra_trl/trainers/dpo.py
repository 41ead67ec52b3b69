"""DPO, IPO and every other pairwise loss of TRL's DPOTrainer, on fresh trees each round."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer

from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, preference_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.teaching import Teaching
from astra_trl.trainers.roles import reference_model, tester_to_train
from astra_trl.trainers.rounds import RoundsConfig, RoundsMixin, placeholders
from astra_trl.tree import Tree


@dataclass
class ASTDPOConfig(RoundsConfig, DPOConfig):
    """TRL's `DPOConfig` with what a round is.

    > These parameters have default values different from [`~trl.DPOConfig`]: `learning_rate` 1e-5,
    > `per_device_train_batch_size` 4, `num_train_epochs` 1000, `lr_scheduler_type` `"constant"`, `max_length` `None`
    > (the system keeps conversations within the tester's window).

    `loss_type="ipo"` divides log-ratios by the completion's length, where ASTPrompter sums them: its beta of 0.01 over
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
        default=0.0, metadata={"help": "Siblings whose rewards differ by this much or less are no pair."}
    )
    teach_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a draw is a given prompt with a harmful continuation to learn, in place of a "
            "tree: ASTPrompter's weak supervision."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest context plus probe in tokens; the system must have been given the same max_length."
        },
    )


class ASTDPOTrainer(RoundsMixin, DPOTrainer):
    """Trains the tester of a system on the best against the worst sibling of fresh trees, round by round.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTDPOConfig`, *optional*):
            Defaults to `ASTDPOConfig("tester")`.
        eval_dataset (`Sequence[Opening]`, `Dataset` or `str`, *optional*):
            Held-out openings for `evaluate` and `eval_strategy`; or a dictionary of several such.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the tokenizer of the system's tester.
        callbacks (`list[TrainerCallback]`, *optional*):
            As in TRL.
        optimizers (`tuple`, *optional*):
            Optimizer and schedule, as in TRL.
        peft_config (`PeftConfig`, *optional*):
            Trains an adapter; baseline (and target, where it is the same loaded model) is the tester with it off.
        teaching_pairs (`Sequence[tuple[str, str]]`, *optional*):
            Prompts with harmful continuations, as of `load_teaching_pairs`, for `teach_fraction` of the draws.
    """

    _tag_names = ["trl", "astra-trl", "dpo"]
    found = "pairs"

    def __init__(
        self,
        sampler: ASTSampler,
        args: ASTDPOConfig | None = None,
        *,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        peft_config: Any = None,
        teaching_pairs: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        args = args or ASTDPOConfig("tester")
        tester = tester_to_train(sampler.system, peft_config)
        _check(sampler, args, tester.window)
        if bool(args.teach_fraction) != (teaching_pairs is not None):
            raise InputError(
                f"teach_fraction={args.teach_fraction} and "
                f"{'no' if teaching_pairs is None else len(teaching_pairs)} teaching_pairs: give both or neither"
            )
        super().__init__(
            model=tester.model,
            ref_model=reference_model(sampler.system, peft_config is not None, synced=args.sync_ref_model),
            args=args,
            **placeholders(eval_dataset),
            processing_class=processing_class or tester.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.teaching = None if teaching_pairs is None else Teaching(teaching_pairs, args.teach_fraction)
        self.start_rounds(sampler, *args.full_round(sampler.groups_per_tree), eval_dataset)

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
