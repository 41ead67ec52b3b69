"""TRL's PPOTrainer (up to TRL 1.12) with two things that its other trainers have: epochs and resumable checkpoints."""

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
    TrainerControl,
    set_seed,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from astra_trl.backends.hf.backend import HFBackend
from astra_trl.backends.hf.model import base_of
from astra_trl.errors import InputError, MissingExtra
from astra_trl.trainers.divergence import diverged
from astra_trl.trainers.ppo.epochs import EpochEvents, Epochs, Evaluations, TrainingStopped

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*trl.experimental")  # the user asked for PPO
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
    except ModuleNotFoundError as missing:
        if missing.name != "trl.experimental.ppo":
            raise
        raise MissingExtra(
            "TRL removed its PPOTrainer in 1.13: pip install 'astra-trl[ppo]' brings the last TRL that has it, or "
            "train with GRPO (ASTGRPOTrainer)"
        ) from missing

VALUE_MODEL_NAME = "value_model.safetensors"
# Fields of a checkpoint's state that are restored.
RESTORED = (
    "epoch", "global_step", "episode", "log_history", "num_input_tokens_seen", "total_flos",
    "best_metric", "best_global_step", "best_model_checkpoint",
)  # fmt: skip


class ResumablePPOTrainer(PPOTrainer):
    """TRL's PPOTrainer with epochs, and with a `train` that continues from a checkpoint.

    TRL's loop computes the importance ratio of a probe's tokens: their probability under the policy, over that under
    the policy that sampled them. A subclass makes the batches and says how long the responses are. `max_steps`,
    `max_grad_norm`, `gradient_checkpointing`, `logging_steps` and `logging_strategy`, which TRL's loop does not read,
    mean what they mean in other trainers.

    Overridden or used of TRL's and transformers' private methods: `_save_checkpoint`, `_load_from_checkpoint`,
    `_load_rng_state` and `_determine_best_metric`; two functions of TRL's module are replaced in `train`.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The policy's tokenizer, which is saved with it; a pad token is not needed.
        args, model, options:
            As in TRL.
    """

    tester: HFBackend  # says where a response ends; a subclass sets it before construction
    model: Any
    control: TrainerControl
    processing_class: Any
    is_distributed_loading_by_transformers = False  # Trainer reads it in saving, and TRL does not set it

    def __init__(self, args: PPOConfig, processing_class: PreTrainedTokenizerBase, model: Any, **options: Any) -> None:
        self.saved_processing_class = processing_class
        padded = with_pad_token(processing_class, sorted(self.tester.eos))
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps  # of one process
        if padded.pad_token_id >= model.config.get_text_config().vocab_size:
            # TRL pads probes with it if it samples a batch in parts, and looks their log-probabilities up.
            args.local_rollout_forward_batch_size = max(args.local_rollout_forward_batch_size, batch)
        if args.max_steps > 0:
            args.total_episodes = args.max_steps * batch * PartialState().num_processes
        if is_peft_model(model) and PartialState().num_processes > 1:
            raise InputError(
                "TRL's PPO does not find an adapter's reference in several processes: use one, or train with GRPO"
            )
        if args.gradient_checkpointing:
            for module in (model, getattr(options["value_model"], options["value_model"].base_model_prefix)):
                if hasattr(module, "gradient_checkpointing_enable"):
                    module.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            if is_peft_model(model):
                model.enable_input_require_grads()
        ends = model.generation_config.eos_token_id
        super().__init__(args=args, processing_class=padded, model=model, **options)
        model.generation_config.eos_token_id = ends  # TRL leaves only the one that it stops at, which would be saved
        self.stop_token_id = -1  # TRL cuts responses if it has any; `response_lengths` says where
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}  # since the last log line
        if args.max_grad_norm:
            optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate's wrapper
            optimizer.register_step_pre_hook(self._clip_gradients)
        self.model_wrapped = self.model
        self.updates_per_epoch = self.train_dataset_len // self.args.batch_size
        self.dataloader = Epochs(self)
        self._resumed_from: Path | None = None

    def batches(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield an epoch's batches (`input_ids`, padded on the left) from number `first` on."""
        raise NotImplementedError

    def end_update(self) -> None:
        """Do something after each update."""

    def response_lengths(self, responses: list[list[int]]) -> list[int]:
        """Return how many ids of each sampled response count; the rest is neither scored nor trained on."""
        raise NotImplementedError

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        # TRL logs every update. Its other trainers log the mean over the updates since the last line.
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
        """Train for `num_train_epochs` epochs, from the beginning or from a checkpoint."""
        set_seed(self.local_seed)  # TRL seeds torch alone, and the order within a batch is numpy's
        self._resumed_from = self._checkpoint(resume_from_checkpoint)
        updates, events, evaluations = self.args.num_total_batches, EpochEvents(self), Evaluations(self)
        if self._resumed_from is not None:
            self._load(self._resumed_from)
            self.args.num_total_batches = updates - self._saved_state.global_step
        self.callback_handler.callbacks.insert(0, events)  # before those that read what it restores
        self.add_callback(evaluations)  # after those that ask for it
        try:
            with self._own_responses():
                super().train()
        except TrainingStopped:
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
        # Two functions of TRL's loop: one knows a single end token, the other mixes the policy's own generation config
        # into the sampling.
        truncate, generate = ppo_trainer.truncate_response, ppo_trainer.generate
        ppo_trainer.truncate_response, ppo_trainer.generate = self._truncated, self._generated
        try:
            yield
        finally:
            ppo_trainer.truncate_response, ppo_trainer.generate = truncate, generate

    def _truncated(self, stop_token_id: int, pad_token_id: int, responses: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor(self.response_lengths(responses.tolist()), device=responses.device)
        after_end = torch.arange(responses.shape[1], device=responses.device) >= lengths[:, None]
        return responses.masked_fill(after_end, pad_token_id)

    def _generated(
        self, policy: Any, queries: torch.Tensor, pad_token_id: int, generation_config: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries with responses sampled from the whole distribution at the temperature of
        `generation_config`, and the responses' logits, from which TRL takes the denominator of the importance ratio.
        The policy's own generation config has no influence."""
        start, ends = queries.shape[1], sorted(self.tester.eos)
        mask = queries != pad_token_id
        config = GenerationConfig(
            do_sample=True,
            temperature=generation_config.temperature,
            max_new_tokens=generation_config.max_new_tokens,
            top_k=0,
            top_p=1.0,
            eos_token_id=ends or None,
            pad_token_id=min(ends, default=0),  # after an end; TRL's own may lie outside of the vocabulary
        )
        base = base_of(policy)
        own, base.generation_config = base.generation_config, config  # it would fill in what `config` leaves out
        try:
            output = policy.generate(
                input_ids=queries.masked_fill(~mask, 0),
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList(
                    [lambda ids, scores, **kwargs: self.tester.ends(ids[:, start:])]
                ),
                logits_processor=[self._check_logits],
                return_dict_in_generate=True,
                output_scores=True,
            )
        finally:
            base.generation_config = own
        return torch.cat((queries, output.sequences[:, start:]), dim=1), torch.stack(output.scores, 1)

    def _check_logits(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if not (logits.amax(-1) < torch.inf).all():  # on a GPU, a draw from nan would end the process
            raise diverged(self, "the tester computes nan instead of probabilities")
        return logits

    def _clip_gradients(self, *_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)

    def restore_state(self) -> None:
        """Continue the loop, which TRL starts from nothing, from the checkpoint."""
        if self._resumed_from is None:
            return
        for name in RESTORED:
            setattr(self.state, name, getattr(self._saved_state, name))
        self.state.max_steps += self.state.global_step
        self._load_rng_state(str(self._resumed_from))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # With the policy's own tokenizer, and without the wrapper of several processes, in which TRL finds no policy.
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

    def _checkpoint(self, folder: str | None) -> Path | None:
        if folder is None:
            return None
        if self.is_deepspeed_enabled:
            raise InputError("PPO cannot resume from a checkpoint under DeepSpeed: start anew, or train with GRPO")
        if not (Path(folder) / VALUE_MODEL_NAME).exists():
            raise InputError(
                f"{folder!r} has no {VALUE_MODEL_NAME}, so PPO cannot resume from it: give a checkpoint that PPO wrote"
            )
        return Path(folder)

    def _load(self, checkpoint: Path) -> None:
        """Load policy, value model, optimizer, schedule and state."""
        trained, device = self.accelerator.unwrap_model(self.model), self.accelerator.device
        load_model(trained.value_model, str(checkpoint / VALUE_MODEL_NAME), device=str(device))
        with self._policy_alone():
            self._load_from_checkpoint(str(checkpoint))
        # Trainer's own way needs attributes that TRL's PPOTrainer, which does not call its constructor, lacks.
        for holder, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
            holder.load_state_dict(torch.load(checkpoint / name, map_location=device, weights_only=True))
        self._saved_state = type(self.state).load_from_json(str(checkpoint / TRAINER_STATE_NAME))

    @contextmanager
    def _policy_alone(self) -> Iterator[None]:
        # Trainer loads and saves `self.model`, and TRL's is a wrapper of policy and value model.
        whole, self.model = self.model, self.accelerator.unwrap_model(self.model).policy
        try:
            yield
        finally:
            self.model = whole


def with_pad_token(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> PreTrainedTokenizerBase:
    """Return a copy with a pad token that no text holds, by which TRL recognises padding, or the tokenizer itself if
    its pad token does not end texts, too."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *ends):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"pad_token": "<|no text|>"})
    return tokenizer
