"""Publication of a trained tester on the Hub: its model, tokenizer and card, and nothing else of `output_dir`.

transformers would upload the whole folder, with `training_args.bin` and every conversation of the run.
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi, run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from astra_trl.errors import InputError
from astra_trl.hub import Push, model_card
from astra_trl.hub.pushing import again, explained, make_repo
from astra_trl.trainers.roles import run_settings

logger = logging.getLogger(__name__)


def refuse_leaks(args: Any) -> None:
    """Raise `InputError` for settings that would publish more than the tester."""
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise InputError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} would push the optimizer's state and the training "
            "arguments, with paths of this machine: use 'every_save' or 'end'"
        )
    if getattr(args, "log_completions_hub_repo", None):
        raise InputError(
            "log_completions_hub_repo would publish the tester's conversations: leave it out, push_transcripts "
            "puts them into a private data set"
        )


def make_own_repo(trainer: Any, token: str | None, private: bool | None) -> None:
    """Make the trainer's repo in the main process. Raises `InputError` if the Hub refuses it, or if the repo exists,
    is public and should be private."""
    trainer.push_in_progress = None
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        repo_id = trainer.args.hub_model_id or folder.resolve().name
        api = HfApi(token=token or trainer.args.hub_token)
        later = again(folder, trainer.args.hub_model_id)
        with explained(f"cannot make the repo {repo_id}", f", or train without push_to_hub and {later} later"):
            _, trainer.hub_model_id = make_repo(api, repo_id, _is_private(trainer, private))


def write_card(trainer: Any, folder: str) -> None:
    """Write the model card into a folder, in the main process."""
    if trainer.is_world_process_zero():
        try:
            card = _card(trainer, Path(folder), repo_id=trainer.hub_model_id or trainer.args.hub_model_id)
        except InputError as error:
            logger.warning("no model card was written: %s", error)
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")


def push_model(trainer: Any, commit_message: str | None, blocking: bool, **metadata: Any) -> str | Future[str] | None:
    """Push the saved model of `output_dir`. Returns the repo's address in the main process, or with `blocking=False`
    its `Future`. Raises `InputError` in every process if the push fails."""
    pushed: str | Future[str] | None = None
    failure: list[InputError | None] = [None]
    if trainer.is_world_process_zero():
        trainer._finish_current_push()
        try:
            destination = {name: metadata.pop(name, None) for name in ("token", "revision", "private")}
            trainer.create_model_card(**metadata)
            content: dict[str, Any] = {
                "commit_message": commit_message,
                "push_transcripts": bool(trainer.args.push_transcripts),
            }
            push = _stage(trainer, Path(trainer.args.output_dir), not blocking, **destination, **content)
            pushed = push.send() if blocking else _send_in_background(trainer, push.send)
        except InputError as error:
            failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
    return pushed


def push_or_warn(trainer: Any) -> None:
    """Push the model, or log that the Hub cannot be reached."""
    try:
        trainer.push_to_hub(commit_message="Model save")
    except InputError as error:
        logger.warning("the model is saved, but %s", error)


def push_checkpoint(trainer: Any, folder: Path) -> None:
    """Push the model of a checkpoint in the background, unless an earlier push still runs. A failure is only
    logged."""
    if not trainer.is_world_process_zero() or trainer.args.hub_strategy == HubStrategy.END:
        return
    running = getattr(trainer, "push_in_progress", None)
    if running is not None and not running.is_done() and not trainer.args.hub_always_push:
        return
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    step = trainer.state.global_step
    try:
        push = _stage(trainer, folder, True, commit_message=f"Training in progress, step {step}")
    except (InputError, OSError) as error:
        logger.warning("step %d stays unpushed: %s", step, error)
        return
    _send_in_background(trainer, partial(_send_or_warn, push, step))


def _send_in_background(trainer: Any, send: Callable[[], Any]) -> Future[Any]:
    job = run_as_future(send)
    trainer.push_in_progress = PushInProgress([job])  # jobs run one after the other
    return job


def _send_or_warn(push: Push, step: int) -> None:
    try:
        push.send()
    except InputError as error:
        logger.warning("step %d stays unpushed: %s", step, error)


def _stage(
    trainer: Any,
    folder: Path,
    in_background: bool,
    *,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    **options: Any,
) -> Push:
    args = trainer.args
    return Push(
        folder,
        trainer.hub_model_id or args.hub_model_id,
        private=_is_private(trainer, private),
        token=token or args.hub_token,
        revision=revision or args.hub_revision,
        card=partial(_card, trainer, folder),
        # On the disk of the checkpoint, which may be dropped before it is uploaded.
        stage_in=Path(args.output_dir) if in_background else None,
        **options,
    )


def _is_private(trainer: Any, private: bool | None) -> bool:
    return (trainer.args.hub_private_repo if private is None else private) is not False


def _card(trainer: Any, folder: Path, **about: Any) -> str:
    evaluated = _evaluated_step(Path(trainer.args.output_dir)) in (None, trainer.state.global_step)
    return model_card(folder, known=run_settings(trainer), evaluated=evaluated, **about, **trainer.card_metadata)


def _evaluated_step(run: Path) -> int | None:
    # In a folder where a run is being resumed, the evaluation is of an earlier state.
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
