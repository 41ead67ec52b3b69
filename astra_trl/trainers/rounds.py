"""What makes an epoch of a TRL trainer a round: collect fresh trees with the current tester, train on them, once."""

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import is_torch_bf16_gpu_available
from trl.models import unwrap_model_for_generation

from astra_trl.backends.base import derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.collector import collect_trees, fill_round, preference_records
from astra_trl.errors import InputError
from astra_trl.evaluation import figures
from astra_trl.run_folder import RunFolder
from astra_trl.sampler import ASTSampler
from astra_trl.systems.base import System
from astra_trl.teaching import Teaching
from astra_trl.trainers.progress import RoundProgressCallback, collecting_bar

logger = logging.getLogger(__name__)


@dataclass
class RoundsConfig:
    """What the trainers of this package add to TRL's config. An epoch is a round."""

    num_train_epochs: float = field(default=1000, metadata={"help": "Rounds: collect trees, train on them, once."})
    trees_per_round: int = field(
        default=2, metadata={"help": "Trees grown at a time; more batches of them follow until the round is full."}
    )
    pairs_per_round: int | None = field(
        default=None,
        metadata={"help": "Preference pairs a round trains on. Default: all that trees_per_round trees can hold."},
    )
    max_trees_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Trees after which a round that is not full is topped up from its own pairs. Default: 8 times as "
            "many as a full round needs."
        },
    )
    teach_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a draw is a given prompt with a harmful continuation to learn, in place of a "
            "tree: ASTPrompter's weak supervision."
        },
    )
    min_margin: float = field(
        default=0.0, metadata={"help": "Siblings whose rewards differ by this much or less are no pair."}
    )

    def __post_init__(self: Any) -> None:
        # TRL takes bf16 wherever fp16 is not asked for, which transformers then refuses where there is no GPU for it.
        if self.bf16 is None and not self.use_cpu and not is_torch_bf16_gpu_available():
            self.bf16 = False
        # TRL sets the field by its old name, for which newer transformers warn at every start.
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()  # type: ignore[misc]  # a mixin: the next class is TRL's config
        for name in ("trees_per_round", "pairs_per_round", "max_trees_per_round"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.min_margin < 0:
            raise InputError(f"min_margin must be 0 or more, got {self.min_margin}")

    def full_round(self, groups_per_tree: int) -> tuple[int, int]:
        """Pairs a full round holds, and the trees after which filling it is given up."""
        pairs = self.pairs_per_round or self.trees_per_round * groups_per_tree
        needed = max(self.trees_per_round, math.ceil(pairs / groups_per_tree))
        return pairs, self.max_trees_per_round or 8 * needed


class RoundRecords(torch.utils.data.Dataset[dict[str, Any]]):
    """The current round's records behind a length that never changes, so that one data loader serves every round."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.records: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[index]


class RoundsMixin(Trainer):
    """Mixed into a TRL trainer in front of it: `train()` then runs round by round.

    Optimizer state, learning rate schedule, `global_step`, logging, checkpoints and callbacks go on through all
    rounds, as the rounds are the epochs of one ordinary training run.
    """

    args: Any

    def start_rounds(self, sampler: ASTSampler, teaching_pairs: Sequence[tuple[str, str]] | None = None) -> None:
        """Called once TRL's trainer is built: from here on the tester that is sampled is the one being trained."""
        self.sampler = sampler
        if bool(self.args.teach_fraction) != (teaching_pairs is not None):
            raise InputError(
                f"teach_fraction={self.args.teach_fraction} and "
                f"{'no' if teaching_pairs is None else len(teaching_pairs)} teaching_pairs: give both or neither"
            )
        self.teaching = None if teaching_pairs is None else Teaching(teaching_pairs, self.args.teach_fraction)
        self.folder = RunFolder(self.args.output_dir)
        bind_tester(sampler.system, self.model)
        pairs, self._max_trees = self.args.full_round(sampler.groups_per_tree)
        self.train_dataset = RoundRecords(pairs)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RoundProgressCallback())
        self.add_callback(_RoundCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains for `num_train_epochs` rounds. Raises `InputError` where `output_dir` holds another run."""
        if not resume_from_checkpoint and self.folder.exchanges.exists():
            self.folder.refuse_if_used()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def begin_round(self, number: int, resumed_inside: bool) -> None:
        """Puts the records of this round in front of the trainer: fresh ones, or those it was interrupted in."""
        if resumed_inside:
            records, self.round_figures = self.folder.read_round(number)
        else:
            records, self.round_figures = self._collect(number)
        self.train_dataset.records = records
        self._round_start = time.perf_counter()

    def end_round(self, number: int) -> None:
        """Logs the round's figures, to the terminal and to everything in `report_to`."""
        logs = {f"round/{key}": value for key, value in self.round_figures.items() if value is not None}
        logs["round/train_seconds"] = time.perf_counter() - self._round_start
        # TRL's own `log` would mix the running means of the training steps into this line and start them anew.
        Trainer.log(self, {"round": number, **logs})

    def _collect(self, number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        args, system, processes = self.args, self.sampler.system, self.accelerator.num_processes
        start = time.perf_counter()
        with (
            collecting_bar(number, hidden=args.disable_tqdm or not self.is_world_process_zero()) as bar,
            self._gathered_tester() as model,
        ):
            trainable_tester(system).model = model
            trees, taught = collect_trees(
                self.sampler,
                pairs=math.ceil(len(self.train_dataset) / processes),
                trees_at_a_time=args.trees_per_round,
                max_trees=math.ceil(self._max_trees / processes),
                min_margin=args.min_margin,
                seed=derive_seed(args.seed, "round", number),
                teaching=self.teaching,
                on_exchanges=bar.update,
                first=self.accelerator.process_index,
                step=processes,
            )
        trees, taught = gather_object(trees), gather_object(taught)
        pairs = preference_records(trees, args.min_margin)
        found = pairs + taught
        records = fill_round(found, len(self.train_dataset), derive_seed(args.seed, "fill", number), trees)
        if len(found) < len(records) and self.is_world_process_zero():
            logger.warning(
                "round %d: only %d pairs of different reward in %d trees, so %d of its %d records stand in it again",
                *(number, len(found), len(trees), len(records) - len(found), len(records)),
            )
        round_figures = {
            **figures((node for tree in trees for node in tree.nodes()), system.harm),
            "trees": len(trees),
            "groups": sum(1 for tree in trees for _ in tree.sibling_groups()),
            "pairs": len(pairs),
            **({"taught_pairs": len(taught)} if self.teaching else {}),
            "collect_seconds": time.perf_counter() - start,
        }
        if self.is_world_process_zero():
            self.folder.write_round(number, trees, records, round_figures)
        return records, round_figures

    @contextmanager
    def _gathered_tester(self) -> Iterator[PreTrainedModel]:
        """The tester for sampling, its weights gathered the way TRL gathers them where training has sharded them."""
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
            self.trainer.folder.forget_rounds_from(number + resumed_inside)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_round(*_position(state.epoch))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_round(math.ceil(state.epoch))


def _position(epoch: float | None) -> tuple[int, bool]:
    # The number of the round that an epoch count stands in, and whether some of its steps have been taken.
    epoch = epoch or 0.0
    finished = int(epoch + 1e-6)
    return finished + 1, epoch - finished > 1e-6


def bind_tester(system: System, model: PreTrainedModel) -> None:
    """Makes `model`, as TRL wrapped it, the system's tester. Roles that shared the tester's weights stay what they
    were: the same weights with the adapter off."""
    tester = trainable_tester(system)
    for role in (system.target, system.baseline):
        if isinstance(role, HFBackend) and role.model is tester.model:
            role.model, role.use_adapter = model, False
    tester.model = model


def trainable_tester(system: System) -> HFBackend:
    """The system's tester; `InputError` where it is nothing that TRL can train."""
    if not isinstance(system.tester, HFBackend):
        raise InputError(
            f"the tester's backend {type(system.tester).__name__} cannot be trained: use a transformers model"
        )
    return system.tester


def reference_model(system: System, peft: bool) -> PreTrainedModel | None:
    """The frozen reference for TRL: the baseline, a copy of the tester, or `None` where it is the adapter off.

    Raises `InputError` where training would change the target.
    """
    tester = trainable_tester(system).model
    peft = peft or is_peft_model(tester)
    if not peft and getattr(system.target, "model", None) is tester:
        raise InputError(
            "tester and target are one loaded model, so training would change the target: pass peft_config, which "
            "trains an adapter beside it, or load the target a second time"
        )
    baseline = getattr(system.baseline, "model", None)
    if baseline is not None and baseline is not tester:
        return baseline
    if peft:
        return None
    return copy.deepcopy(tester).eval().requires_grad_(False)
