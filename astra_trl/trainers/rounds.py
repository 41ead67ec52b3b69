"""What makes an epoch of a TRL trainer a round: collect fresh trees with the current tester, train on them, once."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback, TrainerControl
from transformers.utils import is_torch_bf16_gpu_available

from astra_trl.backends.base import Backend, derive_seed
from astra_trl.errors import InputError, RunStopped
from astra_trl.evaluation import ASTEvaluator
from astra_trl.evaluation.figures import figures
from astra_trl.rollout.collector import Draws, collect_trees, fill_round
from astra_trl.rollout.records import Record, no_records_reason
from astra_trl.rollout.run_folder import RunFolder, exchange_line
from astra_trl.rollout.sampler import ASTSampler, OnExchanges
from astra_trl.rollout.teaching import Teaching
from astra_trl.trainers.checkpoints import CheckpointsMixin
from astra_trl.trainers.gathering import gathered
from astra_trl.trainers.progress import RoundProgressCallback, collecting_bar
from astra_trl.trainers.roles import (
    bind_tester,
    check_trainable,
    count_positions,
    keep_untrained_adapter,
    switch_dropout_off,
    trainable_tester,
)
from astra_trl.tree import Node, Tree

logger = logging.getLogger(__name__)


@dataclass
class RoundsConfig:
    """What the trainers of this package add to TRL's config. An epoch is a round.

    A subclass names in `unit` what a round is full of ("pair", ...), and has a field for how many (`pairs_per_round`).
    """

    unit: ClassVar[str] = "record"

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Pairs, or probes, per device and forward pass."}
    )
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "The learning rate schedule over all rounds."}
    )
    num_train_epochs: float = field(default=1000, metadata={"help": "Rounds: collect trees, train on them, once."})
    trees_per_round: int = field(
        default=2, metadata={"help": "Trees grown at a time by all processes; more follow until the round is full."}
    )
    max_trees_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Trees after which a round that is not full is topped up from its own records. Default: 8 times "
            "as many as a full round needs."
        },
    )

    trees_together: int | None = field(
        default=None,
        metadata={
            "help": "Trees that one process grows in one batch. Default: its share of trees_per_round. With the same "
            "number, the trees of several processes are those of one to the last digit."
        },
    )

    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Whether a repo is made private where the tester is pushed to the Hub."}
    )
    push_transcripts: bool = field(
        default=False,
        metadata={"help": "With push_to_hub, whether every conversation goes into a private data set beside it."},
    )

    def __post_init__(self: Any) -> None:
        # TRL takes bf16 wherever fp16 is not asked for, which transformers then refuses where there is no GPU for it.
        if self.bf16 is None and not self.use_cpu and not is_torch_bf16_gpu_available():
            self.bf16 = False
        # TRL sets the field by its old name, for which newer transformers warn at every start.
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()  # type: ignore[misc]  # a mixin: the next class is TRL's config
        for name in ("trees_per_round", f"{self.unit}s_per_round", "max_trees_per_round", "trees_together"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.dataloader_persistent_workers:
            raise InputError("dataloader_persistent_workers would keep serving the first round: switch it off")
        if getattr(self, "min_margin", None) is not None and self.min_margin < 0:
            raise InputError(f"min_margin must be 0 or more, got {self.min_margin}")

    def full_round(self: Any, groups_per_tree: int, multiple: int = 1) -> tuple[int, int]:
        """Records a full round holds, and the trees after which filling it is given up.

        Raises `InputError` where a number was given that is not a multiple of what one batch takes.
        """
        name = f"{self.unit}s_per_round"
        given = getattr(self, name)
        if given is not None and given % multiple:
            raise InputError(
                f"{name}={given} is no multiple of the {multiple} {self.unit}s of a batch over all processes: "
                f"set {name} to {math.ceil(given / multiple) * multiple}, or change the batch size"
            )
        records = given or max(1, self.trees_per_round * groups_per_tree // multiple) * multiple
        needed = max(self.trees_per_round, math.ceil(records / groups_per_tree))
        return records, self.max_trees_per_round or 8 * needed


class RoundRecords(torch.utils.data.Dataset[Record]):
    """The current round's records behind a length that never changes, so that one data loader serves every round."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.records: list[Record] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def placeholders(eval_dataset: Any) -> dict[str, Dataset | None]:
    """Data sets for the constructors of TRL's trainers, which want them at the start: rounds bring the records, and
    held-out openings are not for TRL to prepare."""
    nothing = Dataset.from_dict({"prompt": [""]})
    return {"train_dataset": nothing, "eval_dataset": None if eval_dataset is None else nothing}


class RoundsMixin(CheckpointsMixin):
    """Mixed into a TRL trainer in front of it: `train()` then runs round by round.

    Optimizer state, learning rate schedule, `global_step`, logging, checkpoints and callbacks go on through all
    rounds, as the rounds are the epochs of one ordinary training run.
    """

    args: Any
    control: TrainerControl
    found = "records"  # the round's figure of how many usable records its trees held
    teaching: Teaching | None = None

    def start_rounds(self, sampler: ASTSampler, size: int, max_trees: int, eval_dataset: Any = None) -> None:
        """Called once TRL's trainer is built: from here on the tester that is sampled is the one being trained."""
        self.eval_dataset = eval_dataset
        self.sampler = sampler
        self.folder = RunFolder(self.args.output_dir)
        given = trainable_tester(sampler.system).model
        trained = self.tester_in(self.accelerator.unwrap_model(self.model))
        check_trainable(trained)
        if is_peft_model(given):
            keep_untrained_adapter(trained)
        if getattr(self.args, "disable_dropout", False):
            switch_dropout_off(trained)
        bind_tester(sampler.system, trained)
        for model in (trained, getattr(self, "ref_model", None)):
            if model is not None:
                count_positions(self.accelerator.unwrap_model(model))
        self.round_size, self._max_trees = size, max_trees
        self.train_dataset = RoundRecords(size)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RoundProgressCallback(self.args.unit, self.found))
        self.add_callback(_RoundCallback(self))

    def tester_in(self, trained: Any) -> PreTrainedModel:
        """The tester within what the optimizer sees, which is the tester itself unless a subclass trains more."""
        return trained

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        """What trees hold to train on."""
        raise NotImplementedError

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL's DPO and SFT would tokenise text here; our records come as the token ids that were sampled.
        return dataset

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains for `num_train_epochs` rounds, from the beginning or on from a checkpoint that is there as a whole.

        Raises `InputError` where `output_dir` holds another run, the checkpoint is not whole, settings that a run in
        progress depends on have changed, the disk is full, or a budget is spent; in the last case a checkpoint is
        written first.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder; `True` for the last whole one in `output_dir` or, where there is none, to begin
                again there.
        """
        if not resume_from_checkpoint and self.folder.exchanges.exists():
            self.folder.refuse_if_used()
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self._resuming = bool(resume_from_checkpoint)
        if resume_from_checkpoint:
            self.count_on()
        with self.explaining_the_end():
            return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures of the tester as it is now, on held-out openings: one conversation from each, with the same seeds
        every time. `ASTEvaluator.metrics` says which; each name gets the prefix.

        Args:
            eval_dataset (`Sequence[Opening]`, `Dataset`, `str` or a `dict` of these, *optional*):
                Defaults to the trainer's. The names of a dictionary stand behind the prefix, as in transformers.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise InputError("there are no held-out openings: give the trainer an eval_dataset, or pass them here")
        if isinstance(eval_dataset, dict):
            every = [
                self.evaluate(openings, ignore_keys, f"{metric_key_prefix}_{name}")
                for name, openings in eval_dataset.items()
            ]
            return {name: value for metrics in every for name, value in metrics.items()}
        with self.current_tester():
            found = ASTEvaluator(self.sampler, eval_dataset, seed=self.args.seed).metrics(self.baseline())
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        Trainer.log(self, metrics)  # TRL's own would mix the running means of the training steps into this line
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def baseline(self) -> Backend | None:
        """The frozen reference of the tester: the system's, or what TRL holds in its place; `None` if there is none,
        as training does without, or TRL moves its own after the tester (`sync_ref_model`)."""
        system, tester = self.sampler.system, trainable_tester(self.sampler.system)
        if system.baseline is not None:
            return system.baseline
        if getattr(self.args, "sync_ref_model", False):
            return None
        if (reference := getattr(self, "ref_model", None)) is not None:
            return replace(tester, model=self.accelerator.unwrap_model(reference))
        return tester.before_training()

    def take_up(self) -> None:
        """Called where training begins: what the loop does not take up of a run that is resumed."""
        number, inside = _position(self.state.epoch)
        self._kept = number if inside else 0
        if not self._resuming:
            return
        self.restore_counters()
        if not inside and broadcast_object_list([self.folder.has_records(number)])[0]:
            # It was collected by the tester as it is here, and the answers of a target may have been paid for.
            self._kept = number
        if self.is_world_process_zero():
            self.unseal_later()
            self.forget_later(number)
        if self._kept and not inside:
            self.sampler.system.remember(self.folder.read_nodes(number))

    def begin_round(self, number: int) -> None:
        """Puts the records of this round in front of the trainer: fresh ones, or those of where it was interrupted."""
        kept = number == self._kept
        try:
            self.train_dataset.records = self.resume_round(number) if kept else self.collect_round(number)
        except RunStopped:
            self.checkpoint_of_now()
            raise
        self._round_start = time.perf_counter()

    def end_round(self, number: int) -> None:
        """Logs the round's figures, to the terminal and to everything in `report_to`."""
        logs = {f"round/{key}": value for key, value in self.round_figures.items() if value is not None}
        logs["round/train_seconds"] = time.perf_counter() - self._round_start
        # TRL's own `log` would mix the running means of the training steps into this line and start them anew.
        Trainer.log(self, {"round": number, **logs})

    def resume_round(self, number: int) -> list[Record]:
        """The records that were collected for this round before."""
        if not self.folder.has_records(number):
            raise InputError(f"'{self.folder.path}' has no records of round {number} any more: resume elsewhere")
        self.round_figures = self.folder.read_figures(number)
        return self.folder.read_records(number)

    def collect_round(self, number: int) -> list[Record]:
        """Fresh records for this round, and the run folder's lines about them."""
        start = time.perf_counter()
        with self.collecting(number) as (draws, wanted, on_exchanges):
            trees, taught = collect_trees(self.sampler, draws, wanted, self.records_of, self.teaching, on_exchanges)
        self.sampler.system.remember([node for tree in trees for node in tree.nodes()])
        usable = self.records_of(trees)
        found = usable + taught
        reason = "" if found else no_records_reason(trees, self.args.unit)
        records = self.filled(number, found, len(trees), reason)
        self.round_figures = {
            **self.figures_of(node for tree in trees for node in tree.nodes()),
            "trees": len(trees),
            "groups": sum(1 for tree in trees for _ in tree.sibling_groups()),
            self.found: len(usable),
            **({"taught_pairs": len(taught)} if self.teaching else {}),
            "collect_seconds": time.perf_counter() - start,
        }
        if self.is_world_process_zero():
            lines = (exchange_line(node, i, path) for i, tree in enumerate(trees) for path, node in tree.walk())
            self.folder.write_exchanges(number, lines)
            self.folder.write_figures(number, self.round_figures)
            self.folder.write_records(number, records, self.round_figures)
        self.save_usage()
        return records

    def figures_of(self, nodes: Iterable[Node]) -> dict[str, Any]:
        """A round's figures of its exchanges."""
        system = self.sampler.system
        return figures(nodes, system.harm, system.goal_texts)

    def forget_later(self, number: int) -> None:
        """Drops from the run folder what comes after the place where a run is resumed: round `number`, inside of it
        or before it; what was kept of it stays."""
        self.folder.forget(lambda line: line["round"] >= number + (number == self._kept))

    def filled(self, number: int, found: Sequence[Record], trees: int, reason: str = "") -> list[Record]:
        """The records of a full round out of those that were found; `InputError` with the reason where none were."""
        unit, size = self.args.unit, self.round_size
        records = fill_round(found, size, derive_seed(self.args.seed, "fill", number), reason)
        if len(found) < size and self.is_world_process_zero():
            logger.warning(
                "round %d: only %d usable %ss in %d trees, so %d of its %d records stand in it again",
                *(number, len(found), unit, trees, size - len(found), size),
            )
        return records

    @contextmanager
    def collecting(self, number: int) -> Iterator[tuple[Draws, int, OnExchanges]]:
        """The draws of a round, how many records are wanted of them, and whom to tell of exchanges, with the current
        tester in the system."""
        args = self.args
        seed = derive_seed(args.seed, "round", number)
        draws = Draws(seed, args.trees_per_round, self._max_trees, args.trees_together)
        with (
            collecting_bar(number, hidden=args.disable_tqdm or not self.is_world_process_zero()) as bar,
            self.current_tester(),
        ):
            yield draws, self.round_size, bar.update

    @contextmanager
    def current_tester(self) -> Iterator[None]:
        """While it lasts, the system's tester is what is trained. The weights of what may be sampled here, the tester
        and TRL's reference, are gathered where training shards them, so that processes need not sample in step."""
        reference = getattr(self, "ref_model", None)
        with gathered(self.accelerator, self.model_wrapped, reference) as (trained, *_):
            trainable_tester(self.sampler.system).model = self.tester_in(trained)
            yield


class _RoundCallback(TrainerCallback):
    def __init__(self, trainer: RoundsMixin) -> None:
        self.trainer = trainer
        self._ended = 0  # the last round that has ended
        self._put_off: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.take_up()

    # An epoch begins before its iterator is made, so the records that are swapped in here are the ones it serves.
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_round(_position(state.epoch)[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What is due at a round's last step waits until the round has ended, so that its checkpoint holds all of it.
        number, inside = _position(state.epoch)
        if not inside and self._ended < number - 1:
            self._put_off = [name for name in ("should_evaluate", "should_save") if getattr(control, name)]
            for name in self._put_off:
                setattr(control, name, False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ended = math.ceil(state.epoch)
        self.trainer.end_round(self._ended)
        for name in self._put_off:
            setattr(control, name, True)
        self._put_off = []


def _position(epoch: float | None) -> tuple[int, bool]:
    # The number of the round that an epoch count stands in, and whether some of its steps have been taken.
    epoch = epoch or 0.0
    finished = int(epoch + 1e-6)
    return finished + 1, epoch - finished > 1e-6
