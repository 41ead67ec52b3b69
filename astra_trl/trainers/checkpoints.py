"""Checkpoints that are there as a whole or not at all, with all that a run needs to go on as if nothing had been."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from astra_trl.errors import InputError, RunStopped
from astra_trl.lines import sync, write_whole
from astra_trl.rollout.run_folder import RunFolder
from astra_trl.text import parse_object
from astra_trl.trainers.publishing import PublishingMixin

logger = logging.getLogger(__name__)

SEAL = "whole.json"  # in a checkpoint, written last: its files, and what transformers does not keep
REWARD_STATE = "reward_state.json"  # in a checkpoint: what reward terms remember
# What transformers' and TRL's loops count for the log and start anew when a run is resumed.
COUNTERS = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "_total_train_tokens")
# How torch and safetensors say that a file cannot be written to its end.
FULL_DISK = ("inline_container", "iostream error", "No space left", "File too large", "quota exceeded")
# Settings that may differ from those that a run was begun with: none of them changes what is collected and learned.
HARMLESS = re.compile(
    r"(log|save|hub|push|trackio|ddp)(_|ging).*|report_to|run_name|project|disable_tqdm|output_dir|use_cpu|dry_run"
    r"|do_(train|eval|predict)|resume_from_checkpoint|load_best_model_at_end"
    r"|dataloader_(num_workers|pin_memory|prefetch_factor)"
    r"|eval_(strategy|steps|delay|on_start|accumulation_steps)|per_device_eval_batch_size|metric_for_best_model"
    r"|greater_is_better|num_train_epochs|max_steps|total_episodes|num_total_batches"
    r"|max_rows|cache_bytes|scorer_batch_size|trust_remote_code"
    r"|allow_pickle|(target|judge)_base_url|max_concurrency|requests_per_minute|tokens_per_minute|max_requests"
    r"|max_total_tokens|max_retries|request_timeout|max_failed_share|response_cache"
)


def refuse_changes(was: Mapping[str, Any], now: Mapping[str, Any], where: str | os.PathLike[str]) -> None:
    """`InputError` that names each setting which a run in progress was begun with and that is another one now."""
    was, now = (json.loads(json.dumps(settings, default=str)) for settings in (was, now))
    changed = [key for key in was if key in now and was[key] != now[key] and not HARMLESS.fullmatch(key)]
    if changed:
        changes = ", ".join(f"{key} ({was[key]!r}, now {now[key]!r})" for key in changed)
        raise InputError(
            f"'{where}' cannot be gone on with, as its settings were others: {changes}. Give the same, or start anew "
            "in another output_dir"
        )


def seal(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Marks a checkpoint as whole, once all its files are on the disk."""
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
    for file in files:
        sync(file)
    sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
    write_whole(checkpoint / SEAL, json.dumps({"files": sizes, **state}))


def what_is_sealed(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint was sealed with; `None` where it is not there as a whole."""
    if not (checkpoint / SEAL).exists():
        return None
    try:
        sealed = parse_object((checkpoint / SEAL).read_text(encoding="utf-8"))
        files = [(checkpoint / name, size) for name, size in sealed["files"].items()]
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
    return sealed if all(file.is_file() and file.stat().st_size == size for file, size in files) else None


def last_whole(output_dir: Path) -> Path | None:
    """The last checkpoint that is there as a whole; a log line tells of later ones that are not."""
    for checkpoint in reversed(_checkpoints(output_dir)):
        if what_is_sealed(checkpoint) is not None:
            return checkpoint
        logger.warning("%s was not written to its end or is of another run, and is skipped", checkpoint)
    return None


def _checkpoints(output_dir: Path) -> list[Path]:
    found = [folder for folder in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(folder) is not None]
    return sorted(found, key=_step)  # type: ignore[arg-type]


def _step(checkpoint: Path) -> int | None:
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else None


class CheckpointsMixin(PublishingMixin):
    """Mixed into a trainer in front of TRL's: its checkpoints are sealed, and only sealed ones are resumed from.

    The private `_save_checkpoint` is overridden, and of what `_maybe_log_save_evaluate` and TRL's `log` sum up,
    `_tr_loss`, `_metrics` and `COUNTERS` are kept.
    """

    folder: RunFolder
    _sealed: Mapping[str, Any] | None = None

    def checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> Path | None:
        """The checkpoint that is meant, after what it remembers has been taken up; `None` where the run begins from
        its start, as one also does that was interrupted before its first checkpoint was whole.

        Raises `InputError` where that checkpoint is not whole, or the run's settings have changed since.
        """
        self._sealed = None
        if not resume_from_checkpoint:
            return None
        found: list[Path | None] = [None]
        if resume_from_checkpoint is not True:
            found = [Path(resume_from_checkpoint)]
        elif self.is_world_process_zero():
            found = [last_whole(Path(self.args.output_dir))]
            if found[0] is None:
                logger.warning("%s holds no whole checkpoint: the run begins from its start", self.args.output_dir)
        checkpoint = broadcast_object_list(found)[0]
        if checkpoint is None:
            return None
        sealed = what_is_sealed(checkpoint)
        if sealed is None:
            raise InputError(
                f"'{checkpoint}' is no whole checkpoint: give 'true' for the last one that is, or another folder"
            )
        if sealed["settings"].get("save_only_model"):
            raise InputError(f"'{checkpoint}' was saved with save_only_model: no run can go on without an optimizer")
        refuse_changes(sealed["settings"], self._resumable_settings(), checkpoint)
        state = json.loads((checkpoint / REWARD_STATE).read_text(encoding="utf-8"))
        self.sampler.system.reward.load_state_dict(state)
        self._sealed = sealed
        return checkpoint

    def checkpoint_of_now(self) -> None:
        """Writes a checkpoint of the steps taken so far, where there is none yet."""
        if what_is_sealed(self._folder_of_now()) is None:
            self._save_checkpoint(self.model, None)
        else:
            self.save_usage()

    def save_usage(self) -> None:
        """Writes down what all processes have asked endpoints for."""
        if (metered := self._metered()) is not None:
            usage = metered.usage
            every = gather_object([usage])
            if self.is_world_process_zero():
                write_whole(self.folder.usage, json.dumps({key: sum(one[key] for one in every) for key in usage}))

    def count_on(self) -> None:
        """Lets a budget hold for the run as a whole: what was asked for before it was resumed counts too."""
        if (metered := self._metered()) is not None and self.folder.usage.exists():
            earlier, processes = self.folder.read_usage(), self.accelerator.num_processes
            metered.usage = {key: n + earlier.get(key, 0) // processes for key, n in metered.usage.items()}

    def _metered(self) -> Any:
        # What counts the calls of endpoints: the target, or a judge, which shares its limiter where flags made both.
        system = self.sampler.system
        scorers = [*system.scorers.values(), *(goal.scorer for goal in system.goals)]
        models = [system.target, *(getattr(scorer, "backend", None) for scorer in scorers)]
        return next((model for model in models if getattr(model, "usage", None) is not None), None)

    def unseal_later(self) -> None:
        """Marks what lies behind the place where a run is resumed, and will be written again, as not whole."""
        for checkpoint in _checkpoints(Path(self.args.output_dir)):
            if (_step(checkpoint) or 0) > self.state.global_step:
                (checkpoint / SEAL).unlink(missing_ok=True)

    def restore_counters(self) -> None:
        """Lets the log go on where the checkpoint left it: to be called when the loop has set them to zero."""
        if self._sealed is None:
            return
        counted = self._sealed["counted"]
        for name, value in counted["counters"].items():
            setattr(self, name, value)
        if (losses := counted["losses"]) is not None:
            self._tr_loss = torch.tensor(losses[self.accelerator.process_index], device=self.args.device)
        for name, values in counted["metrics"].items():
            self._metrics["train"][name] = list(values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._folder_of_now()
        main = self.is_world_process_zero()
        if main and folder.exists():
            (folder / SEAL).unlink(missing_ok=True)  # first, so that a half of it never passes for the whole
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        # Only a whole checkpoint may take the place of an earlier one, and this is not one yet.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        except (RuntimeError, SafetensorError) as error:
            if any(told in str(error) for told in FULL_DISK):
                raise OSError(ENOSPC, str(error)) from error
            raise
        finally:
            self.args.save_total_limit = limit
        self.save_usage()
        state = {"settings": self._resumable_settings(), "counted": self._counted()}
        self.accelerator.wait_for_everyone()
        if main:
            write_whole(folder / REWARD_STATE, json.dumps(self.sampler.system.reward.state_dict()))
            seal(folder, state)
            rotate_checkpoints(self.args.output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _folder_of_now(self) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _counted(self) -> dict[str, Any]:
        loss = getattr(self, "_tr_loss", None)  # TRL's PPO has none
        metrics = getattr(self, "_metrics", {"train": {}})["train"]
        return {
            "losses": None if loss is None else gather_object([float(loss)]),
            "counters": {name: getattr(self, name) for name in COUNTERS if hasattr(self, name)},
            "metrics": {
                name: [value.item() if isinstance(value, torch.Tensor) else value for value in values]
                for name, values in metrics.items()
            },
        }

    def _resumable_settings(self) -> dict[str, Any]:
        # A batch is over all processes, so their number is a setting too.
        return {**self._settings(), "processes": self.accelerator.num_processes}

    @contextmanager
    def explaining_the_end(self) -> Iterator[None]:
        """While it lasts, a full disk and a `RunStopped` are an `InputError` that says how to go on; half a checkpoint
        is removed."""
        try:
            yield
        except RunStopped as error:
            raise type(error)(f"{error}; {self._to_go_on()}") from error
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT, EFBIG):
                raise
            half = self._folder_of_now()
            if half.exists() and what_is_sealed(half) is None:
                shutil.rmtree(half, ignore_errors=True)
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f"the disk of '{self.args.output_dir}' takes no more ({reason}): free some space. {self._to_go_on()}"
            ) from error

    def _to_go_on(self) -> str:
        last = last_whole(Path(self.args.output_dir))
        return f"--resume_from_checkpoint true goes on from {'the start' if last is None else last.name}"
