"""TRL's PPOTrainer (up to TRL 1.12) with what its other trainers have: epochs, and checkpoints to go on from."""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from safetensors.torch import load_model, save_model
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TrainerCallback,
    TrainerControl,
    set_seed,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from astra_trl.backends.hf.model import base_of
from astra_trl.errors import InputError, MissingExtra

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*trl.experimental")  # who asks for PPO knows
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
    except ModuleNotFoundError as missing:
        if missing.name != "trl.experimental.ppo":
            raise
        raise MissingExtra(
            "TRL removed its PPOTrainer in 1.13: pip install 'astra-trl[ppo]' brings the last TRL that has it, or "
            "train with GRPO (ASTGRPOTrainer)"
        ) from missing

__all__ = ["VALUE_MODEL_NAME", "PPOConfig", "ResumablePPOTrainer"]

VALUE_MODEL_NAME = "value_model.safetensors"
# Of the state that a checkpoint was saved in, what goes on.
RESTORED = (
    "epoch", "global_step", "episode", "log_history", "num_input_tokens_seen", "total_flos",
    "best_metric", "best_global_step", "best_model_checkpoint",
)  # fmt: skip


class ResumablePPOTrainer(PPOTrainer):
    """TRL's PPOTrainer with the events of epochs, batches that a subclass makes, responses that end where it says, and
    a `train` that goes on from a checkpoint. `max_steps`, `max_grad_norm`, `gradient_checkpointing`, `logging_steps`
    and `logging_strategy`, which TRL's loop does not read, mean what they mean in other trainers.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer, which is saved with it; a pad token is not needed.
        args, model and the rest:
            As in TRL.
    """

    model: Any
    control: TrainerControl
    processing_class: Any
    is_distributed_loading_by_transformers = False  # which Trainer asks for when it saves, and TRL does not set

    def __init__(self, args: PPOConfig, processing_class: PreTrainedTokenizerBase, model: Any, **given: Any) -> None:
        self.saved_processing_class = processing_class
        padded = with_pad_token(processing_class, self.end_tokens())
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps  # of one process
        if padded.pad_token_id >= model.config.get_text_config().vocab_size:
            # TRL pads probes with it where it samples a batch in parts, and looks their log-probabilities up.
            args.local_rollout_forward_batch_size = max(args.local_rollout_forward_batch_size, batch)
        if args.max_steps > 0:
            args.total_episodes = args.max_steps * batch * PartialState().num_processes
        if is_peft_model(model) and PartialState().num_processes > 1:
            raise InputError(
                "TRL's PPO does not find an adapter's reference in several processes: use one, or train with GRPO"
            )
        if args.gradient_checkpointing:
            for module in (model, getattr(given["value_model"], given["value_model"].base_model_prefix)):
                if hasattr(module, "gradient_checkpointing_enable"):
                    module.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            if is_peft_model(model):
                model.enable_input_require_grads()
        ends = model.generation_config.eos_token_id
        super().__init__(args=args, processing_class=padded, model=model, **given)
        model.generation_config.eos_token_id = ends  # TRL leaves the one that it stops at, and it would be saved
        self.stop_token_id = -1  # TRL cuts responses if it has any: where, says `response_lengths`
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}  # of updates since a log line
        if args.max_grad_norm:
            optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate's wrapper
            optimizer.register_step_pre_hook(self._clip_gradients)
        self.model_wrapped = self.model
        self.updates_per_epoch = self.train_dataset_len // self.args.batch_size
        self.dataloader = _Epochs(self)
        self._resumed_from: Path | None = None

    def batches(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """An epoch's batches (`input_ids`, padded on the left) from number `first` on."""
        raise NotImplementedError

    def end_update(self) -> None:
        """Called after each update."""

    def response_lengths(self, responses: list[list[int]]) -> list[int]:
        """How many of the ids of each sampled response count: those behind are neither scored nor trained on."""
        raise NotImplementedError

    def ended(self, responses: torch.Tensor) -> torch.Tensor:
        """Which rows of new ids, of shape (rows, tokens), end with their last token."""
        raise NotImplementedError

    def end_tokens(self) -> list[int]:
        """Ids of the tokens that end a response."""
        raise NotImplementedError

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        # TRL logs every update. What is due is the mean over those since the last line, as in its other trainers.
        if "objective/kl" not in logs:
            return super().log(logs, *args, **kwargs)
        pending = self._metrics["train"]
        for name, value in logs.items():
            pending[name].append(value)
        step, strategy = self.state.global_step, self.args.logging_strategy
        due = strategy == IntervalStrategy.STEPS and step % int(self.state.logging_steps) == 0
        due |= strategy == IntervalStrategy.EPOCH and step % self.updates_per_epoch == 0
        if not (due or (self.args.logging_first_step and step == 1)):
            return None
        means = {name: fmean(values) for name, values in pending.items()}
        pending.clear()
        return super().log({**means, "lr": logs["lr"], "episode": logs["episode"]}, *args, **kwargs)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Trains for `num_train_epochs` epochs, from the beginning or on from a checkpoint."""
        set_seed(self.local_seed)  # TRL seeds torch alone, and the order within a batch is numpy's
        self._resumed_from = self._checkpoint(resume_from_checkpoint)
        updates, events, evaluations = self.args.num_total_batches, _EpochEvents(self), _Evaluations(self)
        if self._resumed_from is not None:
            self._load(self._resumed_from)
            self.args.num_total_batches = updates - self._saved_state.global_step
        self.callback_handler.callbacks.insert(0, events)  # before those that read what it restores
        self.add_callback(evaluations)  # behind those that ask for it
        try:
            with self._own_responses():
                super().train()
        except _Stopped:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        finally:
            self.args.num_total_batches = updates
            self.remove_callback(events)
            self.remove_callback(evaluations)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            with self._policy_alone():
                self._load_from_checkpoint(self.state.best_model_checkpoint)

    @contextmanager
    def _own_responses(self) -> Iterator[None]:
        # Two functions of TRL's loop: one knows a single end token, the other samples with what the policy's own
        # generation config leaves in.
        truncate, generate = ppo_trainer.truncate_response, ppo_trainer.generate
        ppo_trainer.truncate_response, ppo_trainer.generate = self._truncated, self._generated
        try:
            yield
        finally:
            ppo_trainer.truncate_response, ppo_trainer.generate = truncate, generate

    def _truncated(self, stop_token_id: int, pad_token_id: int, responses: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor(self.response_lengths(responses.tolist()), device=responses.device)
        behind = torch.arange(responses.shape[1], device=responses.device) >= lengths[:, None]
        return responses.masked_fill(behind, pad_token_id)

    def _generated(
        self, policy: Any, queries: torch.Tensor, pad_token_id: int, generation_config: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries with what was sampled after them, and the logits that it was sampled from: of the whole distribution
        at the temperature of `generation_config`, whatever the policy's own config says."""
        start, ends = queries.shape[1], self.end_tokens()
        mask = queries != pad_token_id
        config = GenerationConfig(
            do_sample=True,
            temperature=generation_config.temperature,
            max_new_tokens=generation_config.max_new_tokens,
            top_k=0,
            top_p=1.0,
            eos_token_id=ends or None,
            pad_token_id=min(ends, default=0),  # behind an end; TRL's own may lie outside of the vocabulary
        )
        base = base_of(policy)
        own, base.generation_config = base.generation_config, config  # which fills in what another one leaves out
        try:
            output = policy.generate(
                input_ids=queries.masked_fill(~mask, 0),
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([lambda ids, scores, **kwargs: self.ended(ids[:, start:])]),
                return_dict_in_generate=True,
                output_scores=True,
            )
        finally:
            base.generation_config = own
        return torch.cat((queries, output.sequences[:, start:]), dim=1), torch.stack(output.scores, 1)

    def _clip_gradients(self, *_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)

    def restore_state(self) -> None:
        """Lets the loop, which TRL starts from nothing, go on from the checkpoint."""
        if self._resumed_from is None:
            return
        for name in RESTORED:
            setattr(self.state, name, getattr(self._saved_state, name))
        self.state.max_steps += self.state.global_step
        self._load_rng_state(str(self._resumed_from))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # With the policy's own tokenizer, and out of what several processes are wrapped in, where TRL finds no policy.
        trained, padded = self.model, self.processing_class
        self.model, self.processing_class = self.accelerator.unwrap_model(trained), self.saved_processing_class
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model, self.processing_class = trained, padded

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:  # with the value model, which TRL leaves out
            file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / VALUE_MODEL_NAME
            save_model(self.accelerator.unwrap_model(self.model).value_model, str(file))

    def _checkpoint(self, given: str | None) -> Path | None:
        if given is None:
            return None
        if self.is_deepspeed_enabled:
            raise InputError("PPO cannot go on from a checkpoint under DeepSpeed: start anew, or train with GRPO")
        if not (Path(given) / VALUE_MODEL_NAME).exists():
            raise InputError(
                f"{given!r} has no {VALUE_MODEL_NAME}, so PPO cannot go on from it: name one that PPO wrote"
            )
        return Path(given)

    def _load(self, checkpoint: Path) -> None:
        """Loads policy, value model, optimizer and schedule, and the state they were saved in."""
        trained, device = self.accelerator.unwrap_model(self.model), self.accelerator.device
        load_model(trained.value_model, str(checkpoint / VALUE_MODEL_NAME), device=str(device))
        with self._policy_alone():
            self._load_from_checkpoint(str(checkpoint))
        # Trainer's own way asks for attributes that TRL's PPOTrainer, which is built without it, does not have.
        for holder, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
            holder.load_state_dict(torch.load(checkpoint / name, map_location=device, weights_only=True))
        self._saved_state = type(self.state).load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    @contextmanager
    def _policy_alone(self) -> Iterator[None]:
        # What Trainer loads and saves; here it is one of two in a wrapper.
        whole, self.model = self.model, self.accelerator.unwrap_model(self.model).policy
        try:
            yield
        finally:
            self.model = whole


class _Stopped(Exception):
    # A callback asked for it, which TRL's loop does not hear.
    pass


class _Epochs:
    # TRL's loop iterates over its data loader again and again: each time is an epoch.
    def __init__(self, trainer: ResumablePPOTrainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        trainer = self.trainer
        if trainer.control.should_training_stop:
            raise _Stopped
        trainer.control = trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        for batch in trainer.batches(trainer.state.global_step % trainer.updates_per_epoch):
            if trainer.control.should_training_stop:
                raise _Stopped
            yield batch


class _EpochEvents(TrainerCallback):
    # What TRL's loop, which knows no epochs, does not tell by itself.
    def __init__(self, trainer: ResumablePPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.end_update()
        if state.global_step % trainer.updates_per_epoch == 0:
            trainer.control = trainer.callback_handler.on_epoch_end(args, state, control)


class _Evaluations(TrainerCallback):
    # Evaluates where it is due, which TRL's loop does not.
    def __init__(self, trainer: ResumablePPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_evaluate:
            better = self.trainer._determine_best_metric(self.trainer.evaluate(), trial=None)
            if args.save_strategy == SaveStrategy.BEST:
                control.should_save = better


def with_pad_token(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> PreTrainedTokenizerBase:
    """A copy with a pad token that no text holds, by whose id TRL tells padding; the tokenizer itself if it has one
    that does not end texts too."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *ends):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"pad_token": "<|no text|>"})
    return tokenizer
