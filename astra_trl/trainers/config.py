"""Settings of a round, which every trainer's config adds to TRL's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from typing import Any, ClassVar

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.utils import is_torch_bf16_gpu_available

from astra_trl.backends.api.keys import without_credentials
from astra_trl.errors import InputError
from astra_trl.numbers import check_numbers
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.trainers.unread import BY_ALL


@dataclass
class RoundsConfig:
    """Settings that the trainers of this package add to TRL's config. An epoch is a round.

    A subclass names the records of a round in `unit` (e.g. `"pair"`) and has a field for their number
    (`pairs_per_round`). The fields in `resumable` may differ when a run is resumed. Those in `unread`, by names or
    patterns and with reasons, have no effect: they are refused if they are set to anything but their default.
    """

    unit: ClassVar[str] = "record"
    unread: ClassVar[Mapping[str, str]] = BY_ALL
    # Not in the fields' metadata: HfArgumentParser hands that to argparse, which refuses what it does not know.
    resumable: ClassVar[frozenset[str]] = frozenset({"push_transcripts", "shared_context"})

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "Pairs or probes per device and forward pass."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="constant", metadata={"help": "The learning rate schedule over all rounds."}
    )
    num_train_epochs: float = field(
        default=1000, metadata={"help": "Number of rounds: collect trees and train on them, once."}
    )
    trees_per_round: int = field(
        default=2,
        metadata={"help": "Trees that all processes grow at a time; more follow until the round is full."},
    )
    max_trees_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Trees after which a round that is not full is filled by repeating its own records. Default: 8 "
            "times as many as a full round needs."
        },
    )
    trees_together: int | None = field(
        default=None,
        metadata={
            "help": "Trees that one process grows in one batch. Default: its share of trees_per_round. With equal "
            "numbers, several processes grow the same trees as one, to the last digit."
        },
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When checkpoints are saved: after each round (epoch), steps, best or no."}
    )
    save_total_limit: int | None = field(
        default=1,
        metadata={"help": "Newest checkpoints that are kept; an older one is deleted once a newer one is complete."},
    )
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "Whether a repo that is made for the tester on the Hub is private."}
    )
    push_transcripts: bool = field(
        default=False,
        metadata={
            "help": "With push_to_hub, whether every conversation is pushed to a private data set beside the model."
        },
    )

    def __post_init__(self: Any) -> None:
        check_numbers(vars(self))
        padding = getattr(self, "pad_to_multiple_of", None)  # in newer versions of TRL it may be a text
        if isinstance(padding, str) and not (padding.isdecimal() or padding.lower() in ("auto", "none", "null")):
            raise InputError(f"pad_to_multiple_of must be at least 1, or auto, got {padding!r:.80}")
        # TRL sets bf16 unless fp16 is set. A CPU computes it slowly, and transformers refuses it without use_cpu.
        if self.bf16 is None and (self.use_cpu or not is_torch_bf16_gpu_available()):
            self.bf16 = False
        # TRL sets the field by its old name, for which newer transformers warn at every start.
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        asked = self.disable_tqdm
        self.init_trl()
        if asked is None and not self.disable_tqdm:
            self.disable_tqdm = None  # bars on a terminal alone, and everywhere only if asked for by False
        check_numbers({name: getattr(self, name) for name in self._VALID_DICT_FIELDS})  # it has decoded their JSON
        self.refuse_unread()
        if self.save_steps != 500 and self.save_strategy == "epoch":  # transformers' default
            raise InputError(
                f"save_steps={self.save_steps} has no effect unless save_strategy is 'steps': give it too"
            )
        if self.dataloader_persistent_workers:
            raise InputError("dataloader_persistent_workers would keep serving the first round: switch it off")
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise InputError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} needs all records beforehand, and rounds "
                "collect theirs: choose random or sequential"
            )
        if others := set(self.report_to) - INTEGRATION_TO_CALLBACK.keys():
            raise InputError(f"report_to {min(others)!r}: choose none, or among {', '.join(INTEGRATION_TO_CALLBACK)}")

    # No token of the Hub is in what is logged, nor in the `training_args.bin` of a model.
    def to_dict(self) -> dict[str, Any]:
        return without_credentials(super().to_dict())  # type: ignore[misc]  # as above

    def __getstate__(self) -> dict[str, Any]:
        return without_credentials(self.__dict__)

    def init_trl(self) -> None:
        """Let TRL's config check and complete its fields."""
        super().__post_init__()  # type: ignore[misc]  # a mixin: the next class is TRL's config

    def refuse_unread(self: Any) -> None:
        """Check that all fields that are set are read.

        Raises:
            InputError: a field has no effect.
        """
        for name, default in self.unread_defaults().items():
            reason = next((reason for pattern, reason in self.unread.items() if fnmatch(name, pattern)), None)
            if reason is not None and getattr(self, name) != default:
                raise InputError(f"{name}={getattr(self, name)!r} has no effect, as {reason}: leave it out")

    def unread_defaults(self: Any) -> dict[str, Any]:
        """Return the defaults of fields, as TRL leaves them."""
        return {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(self)}

    def records_per_batch(self, tree_width: int) -> int:
        """Return the number that the records of a round must be a multiple of."""
        return 1

    def round_of(self, sampler: ASTSampler) -> tuple[int, int]:
        """Return `full_round` for the trees of a sampler."""
        return self.full_round(sampler.groups_per_tree, self.records_per_batch(sampler.tree_width))

    def full_round(self: Any, groups_per_tree: int, multiple: int = 1) -> tuple[int, int]:
        """Return the number of records in a full round, and the number of trees after which no more are grown.

        Raises `InputError` if the number of records is set to one that is not a multiple of `multiple`.
        """
        name = f"{self.unit}s_per_round"
        setting = getattr(self, name)
        if setting is not None and setting % multiple:
            raise InputError(
                f"{name}={setting} is not a multiple of the {multiple} {self.unit}s of a batch over all processes: "
                f"set {name} to {math.ceil(setting / multiple) * multiple}, or change the batch size"
            )
        records = setting or max(1, self.trees_per_round * groups_per_tree // multiple) * multiple
        trees = max(self.trees_per_round, math.ceil(records / groups_per_tree))
        return records, self.max_trees_per_round or 8 * trees
