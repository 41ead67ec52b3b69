"""Base of GRPO and RLOO: a tree's siblings are the group; probes and their log-probabilities are the tree's own."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch

from astra_trl.backends.base import derive_seed
from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, group_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.trainers.config import RoundsConfig
from astra_trl.trainers.roles import dropouts, reference_model, trainable_tester, use_sampling
from astra_trl.trainers.rounds import RoundsMixin
from astra_trl.trainers.shared_context import (
    SharedContext,
    confirm_shared_context,
    share_context,
    shared_context_field,
)
from astra_trl.trainers.siblings import (
    GroupRecords,
    SiblingSampler,
    check_siblings,
    shuffle_groups,
    tree_reward,
)
from astra_trl.trainers.unread import BY_ALL, BY_GROUPS
from astra_trl.tree import Tree

logger = logging.getLogger(__name__)

# Fields of TRL's configs for the sampling of completions, and those of the tester's `SamplingParams`.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "max_completion_length": "max_new_tokens",
}


def _follows_the_tester() -> Any:
    return field(default=None, metadata={"help": "The tester's; leave it out."})


@dataclass
class GroupsConfig(RoundsConfig):
    """Settings that GRPO and RLOO add to TRL's config. The fields for sampling follow the system's tester."""

    unit: ClassVar[str] = "group"
    unread: ClassVar[Mapping[str, str]] = {**BY_ALL, **BY_GROUPS}

    groups_per_round: int | None = field(
        default=None,
        metadata={
            "help": "Sibling groups a round trains on. Default: as many whole generation batches as trees_per_round "
            "trees hold."
        },
    )
    min_margin: float | None = field(
        default=None,
        metadata={
            "help": "Groups whose best and worst rewards differ by this much or less are left out; 0 leaves out ties. "
            "Default: all groups are used."
        },
    )
    num_generations: int | None = field(
        default=None, metadata={"help": "Siblings of a group: the tree_width, which is the only valid value."}
    )
    temperature: float | None = _follows_the_tester()
    top_p: float | None = _follows_the_tester()
    top_k: int | None = _follows_the_tester()
    repetition_penalty: float | None = _follows_the_tester()
    max_completion_length: int | None = _follows_the_tester()
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Whether dropout is off in training. Probes are sampled without it: with GPT-2's 0.1, one token "
            "in eight is clipped before the first update, and the gradient is that of other probabilities."
        },
    )
    shared_context: bool = shared_context_field()

    def init_trl(self: Any) -> None:
        # TRL derives one from the other, and refuses both: the settings of an earlier run have both.
        steps, probes = self.steps_per_generation, self.generation_batch_size
        if steps and probes and probes % (self.per_device_train_batch_size * steps) == 0:
            self.generation_batch_size = None
        # TRL checks a group's size against the batch here, but it is the sampler's, which is not known yet.
        width, batch = self.num_generations, self.per_device_train_batch_size
        self.num_generations = batch if batch > 1 else max(2, self.gradient_accumulation_steps)
        # TRL also checks it against the evaluation's batch, but evaluations grow conversations.
        eval_batch, self.per_device_eval_batch_size = self.per_device_eval_batch_size, self.num_generations
        super().init_trl()
        self.num_generations, self.per_device_eval_batch_size = width, eval_batch

    def records_per_batch(self: Any, tree_width: int) -> int:
        return self.generation_batch_size // tree_width


class GroupsMixin(RoundsMixin):
    """Group-relative training, mixed into TRL's GRPOTrainer or RLOOTrainer: probes are read from the trees instead of
    being generated.

    These private methods of both trainers are overridden: `_tokenize_prompts` and `_generate_single_turn` (ids are the
    trees'), `_generate_and_score_completions` and `_get_per_token_logps_and_entropies` (the denominator of the
    importance ratio is the probability with which the tree sampled a token), `_calculate_rewards` (a probe that the
    trees could not measure teaches nothing), `_get_train_sampler` (a row is a sibling) and `_prepare_inputs` (a
    resumed run has the same order within a batch).

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (*optional*):
            An instance of `config_class`; defaults to `config_class("tester")`.
        reward_funcs (`Sequence[Callable]`, *optional*):
            Further reward functions of TRL's kind, beside the trees' own. Their columns include `response`, `reward`,
            `depth` and `prompt`; `args.reward_weights` weighs all of them, the trees' first.
        eval_dataset, processing_class, callbacks, optimizers, peft_config:
            As in [`RoundsMixin`]. With an adapter the reference is the tester with it off.
    """

    records_figure = "usable_groups"
    keeps_groups_whole = False  # within a forward pass, whatever else
    num_iterations: int
    num_generations: int
    _rows: list[Record]
    _old_policy_asked = False
    _reference: Any = None
    _shared: SharedContext | None = None

    def __init__(
        self,
        sampler: ASTSampler,
        args: Any = None,
        *,
        reward_funcs: Sequence[Callable[..., list[float | None]]] = (),
        **options: Any,
    ) -> None:
        self._more_reward_funcs = reward_funcs
        with self._trl_function("create_model_from_path", self._load_reference):
            super().__init__(sampler, args, **options)
        if self._reference is not None and self.ref_model is None:
            raise InputError(
                "with an adapter the reference is the tester before training: leave the baseline out, or beta=0"
            )
        if not self.args.disable_dropout and dropouts(self.model):
            logger.warning(
                "the tester has dropout, and disable_dropout=False leaves it on: probabilities of the first step then "
                "differ from those that the probes were sampled with, and many are clipped for no reason"
            )
        self.train_dataset = GroupRecords(self.round_size, sampler.tree_width)
        self._shared = share_context(self)

    def trl_arguments(self, args: Any, peft_config: Any) -> dict[str, Any]:
        system = self.sampler.system
        check_siblings(self.sampler, args, self.keeps_groups_whole)
        use_sampling(args, trainable_tester(system), **SAMPLING)
        if args.beta:
            self._reference = reference_model(system, peft_config is not None, synced=args.sync_ref_model)
        self.shuffled, args.shuffle_dataset = args.shuffle_dataset, False  # by the round, not by the process
        return {"reward_funcs": [tree_reward, *self._more_reward_funcs]}

    @contextmanager
    def _trl_function(self, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
        """Replace a function that TRL's trainer calls. The replacement gets it as its first argument."""
        trl_trainer = next(base for base in type(self).__mro__ if base.__module__.startswith("trl."))
        module = sys.modules[trl_trainer.__module__]
        original = getattr(module, name)
        setattr(module, name, partial(replacement, original))
        try:
            yield
        finally:
            setattr(module, name, original)

    def _load_reference(self, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # TRL would load the reference by the tester's id, which may be another model's or none at all.
        return load(*args, **kwargs) if self._reference is None else self._reference

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        return group_records(trees, self.args.min_margin)

    def asks_for_old_policy(self) -> bool:
        """Return `True` if TRL begins a batch by computing the old policy's log-probabilities."""
        raise NotImplementedError

    def begin_round(self, number: int) -> None:
        super().begin_round(number)
        self._shared = confirm_shared_context(self)
        if self.shuffled:
            order = torch.Generator().manual_seed(derive_seed(self.args.seed, "order", number))
            records = self.train_dataset.records
            self.train_dataset.records = [records[i] for i in torch.randperm(len(records), generator=order)]
        # TRL counts forward passes, and starts from 0 again when a run is resumed.
        processes, accumulated = self.accelerator.num_processes, self.args.gradient_accumulation_steps
        passes = len(self.train_dataset) * self.num_iterations
        passes //= self.args.per_device_train_batch_size * processes
        steps_inside = self.state.global_step - (number - 1) * math.ceil(passes / accumulated)
        self._step = (number - 1) * passes + steps_inside * accumulated

    def _get_train_sampler(self, dataset: Any = None) -> SiblingSampler:
        groups = super()._get_train_sampler(range(self.round_size))
        return SiblingSampler(groups, self.num_generations)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # TRL shuffles rows in here with torch's global generator: seed it for this batch, resumed or not.
        number = self._step // (self.args.steps_per_generation * self.num_iterations)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.args.seed, "shuffle", number))
            with self._trl_function("shuffle_sequence_dict", self._shuffle):
                return super()._prepare_inputs(generation_batch)

    def _shuffle(self, shuffle: Callable[..., Any], batch: dict[str, Any]) -> dict[str, Any]:
        fit = self.args.per_device_train_batch_size % self.num_generations == 0
        whole = self.keeps_groups_whole or (self._shared is not None and fit)
        return shuffle_groups(batch, self.num_generations) if whole else shuffle(batch)

    def _generate_and_score_completions(self, inputs: list[Record]) -> dict[str, Any]:
        self._rows, self._old_policy_asked = inputs, self.asks_for_old_policy()
        batch = super()._generate_and_score_completions(inputs)
        if "old_logps" not in batch:  # GRPO's, which takes those of the first step if it has none
            batch["old_per_token_logps"] = self._sampling_logprobs(batch["completion_ids"].shape[1])
        return batch

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self._old_policy_asked:
            self._old_policy_asked = False
            return self._sampling_logprobs(logits_to_keep), None, None
        compute = super()._get_per_token_logps_and_entropies
        if self._shared is None:
            return compute(model, input_ids, attention_mask, logits_to_keep, batch_size, *args, **kwargs)

        parts = []
        at_a_time = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(at_a_time), attention_mask.split(at_a_time), strict=True):
            packed, asked = self._shared.pack(ids, mask, mask[:, :-logits_to_keep].sum(1), logits_to_keep)
            asked_mask = mask[:, -logits_to_keep - 1 :]
            with self._shared.computing(packed):
                parts.append(compute(model, asked, asked_mask, logits_to_keep, None, *args, **kwargs))
        logprobs, entropies, _ = zip(*parts, strict=True)
        return torch.cat(logprobs), None if entropies[0] is None else torch.cat(entropies), None

    def _sampling_logprobs(self, tokens: int) -> torch.Tensor:
        # Those of the trees, of shape (rows, tokens); 0 after a probe's end.
        logprobs = torch.zeros((len(self._rows), tokens))
        for row, record in zip(logprobs, self._rows, strict=True):
            row[: len(record["sampling_logprobs"])] = torch.tensor(record["sampling_logprobs"])
        return logprobs.to(self.accelerator.device)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # For TRL a probe is measured if any reward function gives a number. The tree's own is the first, and without
        # it a probe would count as one of reward 0.
        rewards = super()._calculate_rewards(*args, **kwargs)
        rewards[rewards[:, 0].isnan()] = math.nan
        return rewards

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [row["prompt_ids"] for row in self._rows], None, {}
