"""DPO, IPO and every other pairwise loss of TRL's DPOTrainer, on fresh trees each round."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import DPOConfig, DPOTrainer

from astra_trl.errors import InputError
from astra_trl.processes import share_out
from astra_trl.progress import DELAY, ProgressBar
from astra_trl.rollout.parts import split
from astra_trl.rollout.records import Record, preference_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.teaching import Teaching
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.gathering import gather_weights
from astra_trl.trainers.roles import reference_model, trainable_tester
from astra_trl.trainers.rounds import RoundsMixin
from astra_trl.trainers.shared_context import (
    confirm_shared_context,
    share_context,
    shared_context_field,
)
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
    shared_context: bool = shared_context_field()

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
        self._shared = share_context(self)

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

    def begin_round(self, number: int) -> None:
        super().begin_round(number)
        self._shared = confirm_shared_context(self)
        # TRL's flag for references that come with the records. One that moves is computed in each step.
        self.precompute_ref_logps = self._shared is not None and not self.args.sync_ref_model
        if self.precompute_ref_logps:
            with gather_weights(self.accelerator, self.model_wrapped, self.ref_model) as (trained, reference):
                self.train_dataset.records = self._with_reference(self.train_dataset.records, reference or trained)

    def _with_reference(self, records: Sequence[Record], model: Any) -> list[Record]:
        """Return the records with the log-probabilities of the reference in the columns that TRL reads.

        They are computed in the order of contexts, as neighbours share most of theirs, and once for a pair that is
        repeated.
        """

        def ids(record: Record) -> tuple[Sequence[int], ...]:
            return tuple(tuple(record[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))

        pairs = sorted({ids(record): record for record in records}.items())
        batches = split(pairs, self.args.per_device_train_batch_size)

        def compute(share: Sequence[Sequence[tuple[Any, Record]]]) -> list[dict[Any, Record]]:
            results = []
            with ProgressBar("reference", sum(map(len, share)), "pairs", delay=DELAY) as bar:
                for batch in share:
                    inputs = self._prepare_inputs(self.data_collator([record for _, record in batch]))
                    with self._sharing_context(inputs) as inputs:
                        sums = torch.stack(self.compute_ref_log_probs(model, inputs), dim=1).tolist()
                    rows = ({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected} for chosen, rejected in sums)
                    results.append(dict(zip([key for key, _ in batch], rows, strict=True)))
                    bar.update(len(batch))
            return results

        known = {key: columns for part in share_out(batches, compute) for key, columns in part.items()}
        return [{**record, **known[ids(record)]} for record in records]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self._sharing_context(inputs) as inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)

    @contextmanager
    def _sharing_context(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a batch of which TRL sees the probes and the token before each, while the models compute the whole."""
        if self._shared is None:
            yield inputs
            return
        ids, mask, probes = (inputs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
        starts = mask.sum(1) - probes.sum(1)
        packed, asked = self._shared.pack(ids, mask, starts, int(probes.sum(1).max()))
        scored = torch.arange(asked.shape[1], device=ids.device) <= probes.sum(1, keepdim=True)
        scored[:, 0] = False
        with self._shared.computing(packed):
            yield {**inputs, "input_ids": asked, "completion_mask": scored.to(probes.dtype)}


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
