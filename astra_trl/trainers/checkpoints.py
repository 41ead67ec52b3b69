"""Checkpoints that are complete or do not exist, with all state that an interrupted run needs to continue."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from astra_trl.errors import InputError, RunStopped
from astra_trl.lines import sync, write_whole
from astra_trl.links import is_inside, refuse_links
from astra_trl.outputs import FULL, explain_full_disk, saving_weights
from astra_trl.results.reading import read_object
from astra_trl.systems.base import System
from astra_trl.text import parse_object
from astra_trl.trainers.progress import round_at
from astra_trl.trainers.roles import run_settings

logger = logging.getLogger(__name__)

SEAL = "whole.json"  # in a checkpoint, written last: its files, and the state that transformers does not keep
# Counters of transformers' and TRL's loops for the log, which start from 0 when a run is resumed.
COUNTERS = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step", "_total_train_tokens")
# Fields of TRL's and transformers' configs that change neither what is collected nor what is learned.
RESUMABLE = frozenset((
    # logging and reports
    "disable_tqdm", "log_completions", "log_completions_hub_repo", "log_level", "log_level_replica", "log_multimodal",
    "log_on_each_node", "log_unique_prompts", "logging_dir", "logging_first_step", "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "project", "report_to", "run_name", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id",
    # checkpoints and the Hub
    "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
    "load_best_model_at_end", "output_dir", "push_to_hub", "resume_from_checkpoint", "save_on_each_node",
    "save_only_model", "save_safetensors", "save_steps", "save_strategy", "save_total_limit",
    # evaluation
    "do_eval", "do_predict", "do_train", "eval_accumulation_steps", "eval_delay", "eval_on_start", "eval_steps",
    "eval_strategy", "greater_is_better", "metric_for_best_model", "per_device_eval_batch_size",
    # length of the run
    "max_steps", "num_total_batches", "num_train_epochs", "total_episodes",
    # the machine
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend",
    "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout",
    "trust_remote_code", "use_cpu",
))  # fmt: skip


def refuse_changes(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    where: str | os.PathLike[str],
    free: AbstractSet[str] = frozenset(),
) -> None:
    """Raise `InputError` that names the settings that differ from those that a run was started with.

    Those in `RESUMABLE` and `free` may differ.
    """
    was, now = (json.loads(json.dumps(settings, default=str)) for settings in (was, now))
    fixed = [key for key in was if key in now and key not in RESUMABLE | free]
    changes = [f"{key} ({was[key]!r}, now {now[key]!r})" for key in fixed if was[key] != now[key]]
    if changes:
        raise InputError(
            f"'{where}' cannot be resumed, as its settings were different: {', '.join(changes)}. Set them "
            "to the same values, or start in another output_dir"
        )


def seal(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Mark a checkpoint as complete after all its files are on the disk."""
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
    for file in files:
        sync(file)
    sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
    write_whole(checkpoint / SEAL, json.dumps({"files": sizes, **state}))


def read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """Return the state that a checkpoint was sealed with, or `None` if the checkpoint is not complete."""
    if not (checkpoint / SEAL).exists():
        return None
    try:
        state = parse_object((checkpoint / SEAL).read_text(encoding="utf-8"))
        files = [(checkpoint / name, size) for name, size in state["files"].items()]
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
    return state if all(file.is_file() and file.stat().st_size == size for file, size in files) else None


def last_whole(output_dir: Path) -> Path | None:
    """Return the last complete checkpoint. Later ones that are not complete are logged."""
    for _, checkpoint in reversed(_checkpoints(output_dir)):
        if read_seal(checkpoint) is not None:
            return checkpoint
        logger.warning("%s was not written to its end or is of another run, and is skipped", checkpoint)
    return None


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    numbers = {path: path.name.rpartition("-")[-1] for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return sorted((int(number), path) for path, number in numbers.items() if number.isdecimal())


def load_checkpoint(trainer: Any, resume_from_checkpoint: str | Literal[True]) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint to resume from with the state it was sealed with, and load its memories.

    Returns `None` if no checkpoint is complete yet, so that the run begins from its start. Raises `InputError`
    if the checkpoint is not complete, or if the run's settings have changed since.
    """
    output_dir = trainer.args.output_dir
    folders: list[Path | None] = [None]
    if resume_from_checkpoint is not True:
        folders = [Path(resume_from_checkpoint)]
    elif trainer.is_world_process_zero():
        folders = [last_whole(Path(output_dir))]
        if folders[0] is None:
            logger.warning("%s holds no whole checkpoint: the run begins from its start", output_dir)
    checkpoint = broadcast_object_list(folders)[0]
    if checkpoint is None:
        return None
    refuse_links(checkpoint)
    state = read_seal(checkpoint)
    if state is None:
        raise InputError(
            f"'{checkpoint}' is not a whole checkpoint: give 'true' for the last one that is, or another folder"
        )
    if state["settings"].get("save_only_model"):
        raise InputError(f"'{checkpoint}' was saved with save_only_model: without an optimizer it cannot be resumed")
    refuse_changes(state["settings"], _settings(trainer), checkpoint, trainer.args.resumable)
    best = read_object(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    if trainer.args.load_best_model_at_end and best and os.path.isdir(best) and not is_inside(best, checkpoint.parent):
        raise InputError(
            f"'{checkpoint}' names a best checkpoint of another folder, '{best}', which would be loaded at the end: "
            "leave load_best_model_at_end out, or delete that folder if it is an old copy"
        )
    for name, memory in trainer.memories().items():
        memory.load_state_dict(json.loads((checkpoint / name).read_text(encoding="utf-8")))
    return checkpoint, state


def save_checkpoint(trainer: Any, save: Callable[[], None]) -> None:
    """Write a sealed checkpoint: what `save`, which is TRL's own way, writes, and the state that it leaves out."""
    folder, args, main = checkpoint_of_now(trainer), trainer.args, trainer.is_world_process_zero()
    if main and folder.exists():
        (folder / SEAL).unlink(missing_ok=True)  # first, so that half a checkpoint never looks complete
        shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()
    # Only a complete checkpoint may replace an earlier one, and this one is not complete yet.
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        with saving_weights():
            save()
    finally:
        args.save_total_limit = limit
    save_usage(trainer)
    state = {"settings": _settings(trainer), "counted": _counts(trainer)}
    trainer.accelerator.wait_for_everyone()
    if main:
        for name, memory in trainer.memories().items():
            write_whole(folder / name, json.dumps(memory.state_dict()))
        seal(folder, state)
        rotate_checkpoints(args.output_dir, limit, trainer.state.best_model_checkpoint, use_mtime=True)


def save_now(trainer: Any) -> None:
    """Write a checkpoint of the steps taken so far, unless there is one."""
    if read_seal(checkpoint_of_now(trainer)) is None:
        trainer._save_checkpoint(trainer.model, None)
    else:
        save_usage(trainer)


def checkpoint_of_now(trainer: Any) -> Path:
    """Return the folder of a checkpoint of the steps taken so far."""
    return Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"


def _settings(trainer: Any) -> dict[str, Any]:
    # A batch is over all processes, so their number is a setting too.
    return {**run_settings(trainer), "processes": trainer.accelerator.num_processes}


def _counts(trainer: Any) -> dict[str, Any]:
    loss = getattr(trainer, "_tr_loss", None)  # TRL's PPO has none
    metrics = getattr(trainer, "_metrics", {"train": {}})["train"]
    return {
        "losses": None if loss is None else gather_object([float(loss)]),
        "counters": {name: getattr(trainer, name) for name in COUNTERS if hasattr(trainer, name)},
        "metrics": {
            name: [value.item() if isinstance(value, torch.Tensor) else value for value in values]
            for name, values in metrics.items()
        },
    }


def restore_run(trainer: Any, state: Mapping[str, Any] | None) -> int:
    """Restore what transformers' loop does not restore from a checkpoint, which was sealed with `state`. Returns the
    number of the round whose records are kept, or 0 if all rounds are collected anew."""
    number, inside = round_at(trainer.state.epoch)
    if state is not None:
        restore_counters(trainer, state["counted"])
    # A whole round was collected by the tester as it is here, and the target's answers may have cost money.
    kept = number if inside or broadcast_object_list([trainer.folder.has_records(number)])[0] else 0
    if trainer.is_world_process_zero():
        for step, checkpoint in _checkpoints(Path(trainer.args.output_dir)):
            if step > trainer.state.global_step:  # it will be written again
                (checkpoint / SEAL).unlink(missing_ok=True)
            elif step < trainer.state.global_step and trainer.args.save_total_limit and not read_seal(checkpoint):
                shutil.rmtree(checkpoint)  # the run was killed while it deleted this one
        trainer.forget_later(number, keep=number == kept)
    if kept and not inside:
        trainer.remember(trainer.folder.read_nodes(number))
    return kept


def restore_counters(trainer: Any, counts: Mapping[str, Any]) -> None:
    """Set the counters that transformers' and TRL's loops have set to 0 to those of a checkpoint."""
    for name, value in counts["counters"].items():
        setattr(trainer, name, value)
    if (losses := counts["losses"]) is not None:
        loss = losses[trainer.accelerator.process_index]
        trainer._tr_loss = torch.tensor(loss, device=trainer.args.device)
    for name, values in counts["metrics"].items():
        trainer._metrics["train"][name] = list(values)


def save_usage(trainer: Any) -> None:
    """Write the numbers of calls and tokens that all processes have asked endpoints for to the run folder."""
    if (backend := _metered_backend(trainer.sampler.system)) is not None:
        usages = gather_object([backend.usage])
        if trainer.is_world_process_zero():
            total = {key: sum(usage[key] for usage in usages) for key in backend.usage}
            write_whole(trainer.folder.usage, json.dumps(total))


def restore_usage(trainer: Any) -> None:
    """Count what a resumed run asked for earlier, so that its budget is that of the run as a whole."""
    backend = _metered_backend(trainer.sampler.system)
    if backend is not None and trainer.folder.usage.exists():
        earlier, processes = trainer.folder.read_usage(), trainer.accelerator.num_processes
        backend.usage = {key: count + earlier.get(key, 0) // processes for key, count in backend.usage.items()}


def _metered_backend(system: System) -> Any:
    # The target or a judge: if both use one endpoint, they share the limiter that counts.
    scorers = [*system.scorers.values(), *(goal.scorer for goal in system.goals)]
    backends = [system.target, *(getattr(scorer, "backend", None) for scorer in scorers)]
    return next((backend for backend in backends if getattr(backend, "usage", None) is not None), None)


@contextmanager
def explain_stop(trainer: Any) -> Iterator[None]:
    """Turn a full disk and a `RunStopped` into an `InputError` that says how to resume, and remove half a
    checkpoint."""
    try:
        yield
    except RunStopped as error:
        raise type(error)(f"{error}; {_how_to_resume(trainer)}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        unfinished = checkpoint_of_now(trainer)
        if unfinished.exists() and read_seal(unfinished) is None:
            shutil.rmtree(unfinished, ignore_errors=True)
        with explain_full_disk(trainer.args.output_dir, _how_to_resume(trainer)):
            raise


def _how_to_resume(trainer: Any) -> str:
    last = last_whole(Path(trainer.args.output_dir))
    return f"--resume_from_checkpoint true continues from {'the start' if last is None else last.name}"
