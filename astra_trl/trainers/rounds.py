"""What makes an epoch of a TRL trainer a round: collect fresh trees with the current tester, train on them, once."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import is_torch_bf16_gpu_available
from trl.models import unwrap_model_for_generation

from astra_trl.backends.base import Backend, derive_seed
from astra_trl.collector import Draws, collect_trees, fill_round
from astra_trl.errors import InputError
from astra_trl.evaluation import ASTEvaluator, figures
from astra_trl.records import Record, no_records_reason
from astra_trl.run_folder import RunFolder, exchange_line, write_whole
from astra_trl.sampler import ASTSampler, OnExchanges
from astra_trl.teaching import Teaching
from astra_trl.trainers.progress import RoundProgressCallback, collecting_bar
from astra_trl.trainers.publishing import PublishingMixin
from astra_trl.trainers.roles import bind_tester, trainable_tester
from astra_trl.tree import Node, Tree

logger = logging.getLogger(__name__)

REWARD_STATE = "reward_state.json"  # in a checkpoint: what reward terms remember


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
        for name in ("trees_per_round", f"{self.unit}s_per_round", "max_trees_per_round"):
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


class RoundsMixin(PublishingMixin):
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
        bind_tester(sampler.system, self.tester_in(self.accelerator.unwrap_model(self.model)))
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
        """Trains for `num_train_epochs` rounds. Raises `InputError` where `output_dir` holds another run."""
        self.refuse_another_run(resume_from_checkpoint)
        self._recall(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _recall(self, resume_from_checkpoint: str | bool | None) -> None:
        # What the reward remembered when the checkpoint was written.
        checkpoint = (
            get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        )
        file = Path(checkpoint) / REWARD_STATE if checkpoint else None
        state = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
        if checkpoint:
            self.sampler.system.reward.load_state_dict(state)

    def write_memory(self) -> None:
        """Puts what the reward remembers of the run into the checkpoint that was just written."""
        state = self.sampler.system.reward.state_dict()
        if state and self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_whole(folder / REWARD_STATE, json.dumps(state))

    def refuse_another_run(self, resume_from_checkpoint: str | bool | None) -> None:
        """`InputError` where this would be another run in the folder."""
        if not resume_from_checkpoint and self.folder.exchanges.exists():
            self.folder.refuse_if_used()

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
        """The frozen reference of the tester: the system's, or what TRL holds in its place; `None` where there is
        none, as training does without."""
        system, tester = self.sampler.system, trainable_tester(self.sampler.system)
        if system.baseline is not None:
            return system.baseline
        if (reference := getattr(self, "ref_model", None)) is not None:
            return replace(tester, model=self.accelerator.unwrap_model(reference))
        return tester.without_adapter()

    def begin_round(self, number: int, resumed_inside: bool) -> None:
        """Puts the records of this round in front of the trainer: fresh ones, or those it was interrupted in."""
        self.train_dataset.records = self.resume_round(number) if resumed_inside else self.collect_round(number)
        self._round_start = time.perf_counter()

    def end_round(self, number: int) -> None:
        """Logs the round's figures, to the terminal and to everything in `report_to`."""
        logs = {f"round/{key}": value for key, value in self.round_figures.items() if value is not None}
        logs["round/train_seconds"] = time.perf_counter() - self._round_start
        # TRL's own `log` would mix the running means of the training steps into this line and start them anew.
        Trainer.log(self, {"round": number, **logs})

    def resume_round(self, number: int) -> list[Record]:
        """The records that this round was trained on so far."""
        self.round_figures = self.folder.read_figures(number)
        return self.folder.read_records(number)

    def collect_round(self, number: int) -> list[Record]:
        """Fresh records for this round, and the run folder's lines about them."""
        start = time.perf_counter()
        with self.collecting(number) as (draws, wanted, on_exchanges):
            trees, taught = collect_trees(self.sampler, draws, wanted, self.records_of, self.teaching, on_exchanges)
        trees, taught = gather_object(trees), gather_object(taught)
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
        return records

    def figures_of(self, nodes: Iterable[Node]) -> dict[str, Any]:
        """A round's figures of its exchanges."""
        system = self.sampler.system
        return figures(nodes, system.harm, system.goal_texts)

    def forget_later(self, number: int, resumed_inside: bool) -> None:
        """Drops from the run folder what comes after the place where a run is resumed: round `number`, inside of it
        once its records have been trained on."""
        self.folder.forget(lambda line: line["round"] >= number + resumed_inside)

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
        """This process's draws of a round, how many records are wanted of them, and whom to tell of exchanges, with
        the current tester in the system."""
        args, processes = self.args, self.accelerator.num_processes
        draws = Draws(
            seed=derive_seed(args.seed, "round", number),
            trees_at_a_time=math.ceil(args.trees_per_round / processes),
            max_trees=math.ceil(self._max_trees / processes),
            first=self.accelerator.process_index,
            step=processes,
        )
        with (
            collecting_bar(number, hidden=args.disable_tqdm or not self.is_world_process_zero()) as bar,
            self.current_tester(),
        ):
            yield draws, math.ceil(self.round_size / processes), bar.update

    @contextmanager
    def current_tester(self) -> Iterator[None]:
        """While it lasts, the system's tester is what is trained, its weights gathered where they are sharded."""
        with self._gathered() as trained:
            trainable_tester(self.sampler.system).model = self.tester_in(trained)
            yield

    @contextmanager
    def _gathered(self) -> Iterator[Any]:
        """What is trained, for sampling: its weights gathered the way TRL gathers them where training shards them."""
        zero = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if zero is not None and zero.zero_stage == 3:
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                yield model
            return
        # Not TRL's function here: it switches gradient checkpointing off, needless in evaluation mode, and on again
        # without the kwargs it had.
        fsdp = getattr(self.accelerator.state, "fsdp_plugin", None)
        if fsdp is not None and self.accelerator.num_processes > 1:
            # Each forward pass of a sharded model waits for all processes, and theirs differ in number.
            raise InputError(
                "a tester sharded by FSDP over several processes cannot be sampled yet: use DDP or ZeRO-3"
            )
        summoned = fsdp is not None and getattr(fsdp, "fsdp_version", 1) == 1
        with (
            FullyShardedDataParallel.summon_full_params(self.model_wrapped, recurse=False)
            if summoned
            else nullcontext()
        ):
            yield self.accelerator.unwrap_model(self.model_wrapped)


class _RoundCallback(TrainerCallback):
    # An epoch begins before its iterator is made, so the records that are swapped in here are the ones it serves.
    def __init__(self, trainer: RoundsMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number, resumed_inside = _position(state.epoch)
        if state.global_step and self.trainer.is_world_process_zero():
            self.trainer.forget_later(number, resumed_inside)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_round(*_position(state.epoch))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.write_memory()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_round(math.ceil(state.epoch))


def _position(epoch: float | None) -> tuple[int, bool]:
    # The number of the round that an epoch count stands in, and whether some of its steps have been taken.
    epoch = epoch or 0.0
    finished = int(epoch + 1e-6)
    return finished + 1, epoch - finished > 1e-6
