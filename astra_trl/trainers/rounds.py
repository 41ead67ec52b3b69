"""Round-based training: each epoch collects fresh trees with the current tester and trains on them once."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
)

from astra_trl.backends.base import Backend
from astra_trl.errors import RunStopped
from astra_trl.outputs import saving_weights
from astra_trl.rollout.collector import RoundRecords
from astra_trl.rollout.records import Record
from astra_trl.rollout.run_folder import RunFolder
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.teaching import Teaching
from astra_trl.trainers import checkpoints, collecting, divergence, publishing, roles
from astra_trl.trainers.building import built, check_all_openings, first_step, packages_at_hand
from astra_trl.trainers.gathering import gather_weights
from astra_trl.trainers.measuring import measure_held_out
from astra_trl.trainers.progress import RoundCallback, RoundProgressCallback, closed_bar
from astra_trl.tree import Node, Tree

logger = logging.getLogger(__name__)


class RoundsMixin(Trainer):
    """Round-based training, mixed into a TRL trainer in front of it.

    The rounds are the epochs of one training run, so optimizer state, learning rate schedule, `global_step`, logging,
    checkpoints and callbacks continue through all of them. A subclass has a `config_class` and implements
    `records_of`; it may override `trl_arguments`.

    Overridden private methods: `_prepare_dataset`, `_save_checkpoint`, `_push_from_checkpoint`.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (*optional*):
            An instance of `config_class`; defaults to `config_class("tester")`.
        eval_dataset (`Sequence[Opening]`, `Dataset` or `str`, *optional*):
            Held-out openings for `evaluate` and `eval_strategy`; or a dictionary of several such.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the tokenizer of the system's tester.
        callbacks (`list[TrainerCallback]`, *optional*), optimizers (`tuple`, *optional*):
            As in TRL: the latter are an optimizer and a schedule.
        peft_config (`PeftConfig`, *optional*):
            Trains an adapter; the baseline (and the target, if it is the same loaded model) is the tester without it.
    """

    args: Any
    control: TrainerControl
    hub_model_id: str | None
    _tag_names: list[str]
    config_class: Any
    records_figure = "records"  # name of the round's figure of how many usable records its trees hold
    round = 0  # that is trained on, or was last
    teaching: Teaching | None = None
    card_metadata: Mapping[str, Any] = {}
    _sealed_state: Mapping[str, Any] | None = None  # the state that the checkpoint to resume from was sealed with

    def __init__(
        self,
        sampler: ASTSampler,
        args: Any = None,
        *,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        peft_config: Any = None,
        **of_trl: Any,
    ) -> None:
        args = args or self.config_class("tester")
        roles.check_arguments(self, sampler, args, of_trl)
        publishing.refuse_leaks(args)
        self.sampler = sampler
        tester = roles.tester_to_train(sampler.system, peft_config)
        check_all_openings(sampler, eval_dataset)
        has_adapter = is_peft_model(tester.model)
        processing_class = processing_class or tester.tokenizer
        # TRL's trainers want data sets at the start, but the records come with the rounds, and held-out openings are
        # not for TRL to prepare.
        empty = Dataset.from_dict({"prompt": [""]})
        arguments = {
            "model": tester.model,
            "args": args,
            "train_dataset": empty,
            "eval_dataset": None if eval_dataset is None else empty,
            "processing_class": processing_class,
            "callbacks": callbacks,
            "optimizers": optimizers,
            "peft_config": peft_config,
        }
        with built(args, tester, processing_class):
            super().__init__(**arguments | self.trl_arguments(args, peft_config))
        self.eval_dataset = eval_dataset
        self.folder = RunFolder(args.output_dir)
        roles.put_trained_tester(self, has_adapter)
        self.round_size, self.max_trees = args.round_of(sampler)
        self.train_dataset = RoundRecords(self.round_size)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RoundProgressCallback(args.unit, self.records_figure))
        self.add_callback(RoundCallback(self))

    def trl_arguments(self, args: Any, peft_config: Any) -> dict[str, Any]:
        """Check the settings, and return arguments for TRL's trainer, beside or instead of the usual ones."""
        return {}

    def tester_in(self, trained: Any) -> PreTrainedModel:
        """Return the tester within the model that the optimizer updates."""
        return trained

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        """Return the records of trees that can be trained on."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train for `num_train_epochs` rounds, from the beginning or from a complete checkpoint.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder; `True` for the last complete one in `output_dir`, or for the beginning.

        Raises:
            InputError: `output_dir` holds another run, the checkpoint is not complete, settings have changed, the
                disk is full, or a budget is spent (then a checkpoint is written first).
        """
        checkpoint, self._sealed_state, self._resuming = None, None, bool(resume_from_checkpoint)
        if resume_from_checkpoint:
            if (loaded := checkpoints.load_checkpoint(self, resume_from_checkpoint)) is not None:
                checkpoint, self._sealed_state = str(loaded[0]), loaded[1]
            checkpoints.restore_usage(self)
        elif self.folder.exchanges.exists():
            self.folder.refuse_if_used()
        writing = self.folder.only_writer() if self.is_world_process_zero() else nullcontext()
        with writing, checkpoints.explain_stop(self), packages_at_hand(), closed_bar(self):
            return super().train(checkpoint, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with first_step(self.state.global_step):
            return super().training_step(*args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the tester as it is now on held-out openings, one conversation each, with equal seeds every time.

        Args:
            eval_dataset (`Sequence[Opening]`, `Dataset`, `str` or a `dict` of these, *optional*):
                Defaults to the trainer's. The names of a dictionary follow the prefix, as in transformers.

        Returns:
            `dict[str, float]`: The figures of `ASTEvaluator.metrics`, with the prefix before each name.
        """
        return measure_held_out(self, eval_dataset, metric_key_prefix)

    def baseline(self) -> Backend | None:
        """Return the frozen reference of the tester: the system's, or the one that TRL holds instead. Returns `None`
        if there is none, or if TRL moves its reference after the tester (`sync_ref_model`)."""
        return roles.baseline_of(self)

    # -- rounds

    def begin_training(self) -> None:
        """Restore the state of a resumed run that transformers' loop does not restore."""
        self._kept = checkpoints.restore_run(self, self._sealed_state) if self._resuming else 0

    def begin_round(self, number: int) -> None:
        """Set the records of this round: fresh ones, or those of a round that was interrupted."""
        records_of_round = self.resume_round if number == self._kept else self.collect_round
        try:
            self.train_dataset.records = records_of_round(number)
        except RunStopped:
            self.save_checkpoint_now()
            raise
        self.round, self._round_start = number, time.perf_counter()

    def end_step(self) -> None:
        """Raise `NotFinite` if training has diverged, before a checkpoint is written or the tester samples again."""
        divergence.check_weights(self)

    def end_round(self, number: int) -> None:
        """Log the round's figures, to the terminal and to everything in `report_to`."""
        logs = {f"round/{key}": value for key, value in self.round_figures.items() if value is not None}
        logs["round/train_seconds"] = time.perf_counter() - self._round_start
        # TRL's own `log` would add the running means of the training steps to this line, and reset them.
        Trainer.log(self, {"round": number, **logs})

    def resume_round(self, number: int) -> list[Record]:
        """Return the records that were collected for this round before."""
        return collecting.read_records(self, number)

    def collect_round(self, number: int) -> list[Record]:
        """Return fresh records for this round, and write its lines of the run folder."""
        return collecting.collect_records(self, number)

    def memories(self) -> dict[str, Any]:
        """Return what a run remembers of earlier rounds, by the names of its files in a checkpoint: objects with
        `state_dict` and `load_state_dict`, in JSON."""
        return {"reward_state.json": self.sampler.system.reward}

    def remember(self, nodes: Sequence[Node]) -> None:
        """Add the measured exchanges of a round to these memories."""
        self.sampler.system.remember(nodes)

    def forget_later(self, number: int, keep: bool) -> None:
        """Drop the run folder's lines after the place at which a run is resumed: those of round `number`, unless they
        are kept, and of later rounds."""
        self.folder.forget(lambda line: line["round"] >= number + keep)

    @contextmanager
    def current_tester(self) -> Iterator[None]:
        """Put the model that is trained into the system. Weights of the tester and of TRL's reference that training
        shards are gathered, so that processes need not sample in step."""
        reference = getattr(self, "ref_model", None)
        with gather_weights(self.accelerator, self.model_wrapped, reference) as (trained, *_):
            roles.trainable_tester(self.sampler.system).model = self.tester_in(trained)
            with divergence.explain(self):
                yield

    # -- checkpoints and the Hub

    def save_checkpoint_now(self) -> None:
        """Write a checkpoint of the steps taken so far, unless there is one."""
        checkpoints.save_now(self)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL's DPO and SFT would tokenise text here; our records are the token ids that were sampled.
        return dataset

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        roles.load_trained_adapter(self.model, resume_from_checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints.save_checkpoint(self, partial(super()._save_checkpoint, model, trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        publishing.push_checkpoint(self, Path(checkpoint_folder))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repo. Raises `InputError` if the Hub refuses it, or if it is public and should be private."""
        publishing.make_own_repo(self, token, private)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, **metadata: Any
    ) -> None:
        """Write the model card of `output_dir`, as far as it is known by now.

        `metadata` is for `huggingface_hub.ModelCardData`, e.g. `license="mit"`.
        """
        metadata |= {"model_name": model_name, "datasets": dataset_name, "tags": tags}
        self.card_metadata = {name: value for name, value in metadata.items() if value is not None}
        publishing.write_card(self, self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the tester with its tokenizer and model card. With `push_to_hub`, a user's call also pushes it, and a
        failed push is only logged."""
        with saving_weights():
            super().save_model(output_dir, _internal_call=True)
        publishing.write_card(self, output_dir or self.args.output_dir)  # peft has written one of its own
        if self.args.push_to_hub and not _internal_call:
            publishing.push_or_warn(self)

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, **options: Any
    ) -> str | Future[str] | None:
        """Save the tester and push it with its tokenizer and model card; with `push_transcripts`, also push the run's
        conversations to a private data set beside it.

        Returns the repo's address in the main process, or with `blocking=False` its `Future`. Raises `InputError` in
        every process if the push fails. `options` are `token`, `revision`, `private` and those of
        [`create_model_card`].
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        return publishing.push_model(self, commit_message, blocking, **options)
