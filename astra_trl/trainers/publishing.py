"""How a trainer gets to the Hub: the model, its tokenizer and card, and nothing else that lies in `output_dir`."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, is_peft_model
from huggingface_hub import HfApi, run_as_future
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from astra_trl.errors import InputError
from astra_trl.hub import Push, model_card
from astra_trl.hub.pushing import again, explained, make_repo
from astra_trl.trainers.roles import trainable_tester

logger = logging.getLogger(__name__)


class PublishingMixin(Trainer):
    """Mixed into a trainer in front of TRL's: every way to the Hub goes through [`astra_trl.hub.Push`].

    transformers uploads all of `output_dir`, with `training_args.bin` and every conversation of the run. These of its
    methods are overridden: `init_hf_repo`, `create_model_card`, `save_model`, `push_to_hub` and, private,
    `_push_from_checkpoint`.
    """

    args: Any
    hub_model_id: str | None
    _tag_names: list[str]
    _card_metadata: Mapping[str, Any] = {}

    def __init__(self, *given: Any, **named: Any) -> None:
        _check(named.get("args"))
        super().__init__(*given, **named)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repo. Raises `InputError` where the Hub does not let us, or it is public and was to be private."""
        self.push_in_progress = None
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            repo_id = self.args.hub_model_id or folder.resolve().name
            api = HfApi(token=token or self.args.hub_token)
            with explained(
                f"cannot make the repo {repo_id}", f", or train without push_to_hub and {again(folder)} later"
            ):
                _, self.hub_model_id = make_repo(api, repo_id, self._private(private))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, **metadata: Any
    ) -> None:
        """Writes the model card of `output_dir`, as far as it is known by now.

        `metadata` is for `huggingface_hub.ModelCardData`, as `license="mit"`.
        """
        metadata |= {"model_name": model_name, "datasets": dataset_name, "tags": tags}
        self._card_metadata = {name: value for name, value in metadata.items() if value is not None}
        self._write_card(self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the tester with its tokenizer and model card. With `push_to_hub`, a call of the user's also tries to
        push it; that the Hub is out of reach is then only logged."""
        super().save_model(output_dir, _internal_call=True)
        self._write_card(output_dir or self.args.output_dir)  # peft has written one of its own
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub(commit_message="Model save")
            except InputError as error:
                logger.warning("the model is saved, but %s", error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **metadata: Any,
    ) -> str | Future[str] | None:
        """Saves the tester and pushes it with its tokenizer and model card; with `push_transcripts`, the run's
        conversations go into a private data set beside it.

        Returns the repo's address in the main process, or with `blocking=False` its `Future`. Raises `InputError` in
        every process where the push fails. What else is given is for [`create_model_card`].
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        pushed: str | Future[str] | None = None
        failure: list[InputError | None] = [None]
        if self.is_world_process_zero():
            self._finish_current_push()
            try:
                self.create_model_card(**metadata)
                push = self._staged(
                    Path(self.args.output_dir),
                    in_background=not blocking,
                    token=token,
                    revision=revision,
                    private=private,
                    commit_message=commit_message,
                    push_transcripts=bool(getattr(self.args, "push_transcripts", False)),
                )
                pushed = push.send() if blocking else self._in_background(push.send)
            except InputError as error:
                failure = [error]
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]
        return pushed

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # In the course of training: in the background, the newest checkpoint only, and no reason to stop.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = getattr(self, "push_in_progress", None)
        if running is not None and not running.is_done() and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            push = self._staged(Path(checkpoint_folder), in_background=True, commit_message=message)
        except (InputError, OSError) as error:
            logger.warning("step %d stays unpushed: %s", self.state.global_step, error)
            return
        self._in_background(partial(_send_or_warn, push, self.state.global_step))

    def _in_background(self, send: Callable[[], Any]) -> Future[Any]:
        job = run_as_future(send)
        self.push_in_progress = PushInProgress([job])  # behind those that still run: one goes after the other
        return job

    def _staged(
        self,
        folder: Path,
        *,
        in_background: bool,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **more: Any,
    ) -> Push:
        return Push(
            folder,
            self.hub_model_id or self.args.hub_model_id,
            private=self._private(private),
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            card=partial(self._card, folder),
            # On the disk of the checkpoint, which may be dropped before it is uploaded.
            stage_in=Path(self.args.output_dir) if in_background else None,
            **more,
        )

    def _private(self, given: bool | None) -> bool:
        return (self.args.hub_private_repo if given is None else given) is not False

    def _write_card(self, folder: str) -> None:
        if self.is_world_process_zero():
            try:
                card = self._card(Path(folder), repo_id=self.hub_model_id or self.args.hub_model_id)
            except InputError as error:
                logger.warning("no model card was written: %s", error)
                return
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")

    def _card(self, folder: Path, **about: Any) -> str:
        evaluated = _steps(Path(self.args.output_dir)) in (None, self.state.global_step)
        return model_card(folder, known=self._settings(), evaluated=evaluated, **about, **self._card_metadata)

    def _settings(self) -> dict[str, Any]:
        # What a run's config.yaml holds, where there is none.
        sampler = self.sampler
        system, tester = sampler.system, trainable_tester(sampler.system)
        return {
            **self.args.to_dict(),
            **asdict(tester.sampling),
            "algorithm": self._tag_names[-1],
            "system": type(system).__name__,
            "tester": _named(tester),
            "target": _named(system.target),
            "tree_width": sampler.tree_width,
            "tree_depth": sampler.tree_depth,
            "use_peft": is_peft_model(tester.model),
            "hub_model_id": self.args.hub_model_id,
        }


def _check(args: Any) -> None:
    # Ways to the Hub that would publish what this package keeps to itself.
    if args is None:
        return
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise InputError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} would push the optimizer's state and the training "
            "arguments, with paths of this machine: use 'every_save' or 'end'"
        )
    if getattr(args, "log_completions_hub_repo", None):
        raise InputError(
            "log_completions_hub_repo would publish the tester's conversations: leave it out, push_transcripts=True "
            "puts them into a private data set"
        )


def _send_or_warn(push: Push, step: int) -> None:
    try:
        push.send()
    except InputError as error:
        logger.warning("step %d stays unpushed: %s", step, error)


def _steps(run: Path) -> int | None:
    # At which step a run was measured; another's evaluation lies there where it is being resumed.
    summary = run / "summary.json"
    try:
        return json.loads(summary.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named(backend: Any) -> str | None:
    model = getattr(backend, "model", None)
    return model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", None) or None
