"""What GRPO and RLOO share: a tree's siblings are the group; probes and their log-probabilities are the tree's own."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from astra_trl.backends.base import derive_seed
from astra_trl.errors import InputError
from astra_trl.rollout.records import Record, group_records
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.systems.base import System
from astra_trl.trainers.roles import dropouts, reference_model, tester_to_train, trainable_tester, use_sampling
from astra_trl.trainers.rounds import RoundRecords, RoundsConfig, RoundsMixin, placeholders
from astra_trl.tree import Tree

logger = logging.getLogger(__name__)

# Fields of TRL's configs that say how completions are sampled, and those of the tester's `SamplingParams`.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "max_completion_length": "max_new_tokens",
}
PER_SIBLING = ("probe", "response", "reward", "probe_ids", "sampling_logprobs")


@dataclass
class GroupsConfig(RoundsConfig):
    """What GRPO and RLOO add to TRL's config. How probes are sampled is the system's: those fields follow it."""

    unit: ClassVar[str] = "group"

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
            "Default: none are."
        },
    )
    num_generations: int | None = field(
        default=None, metadata={"help": "Siblings of a group. Default, and no other will do: the tree_width."}
    )
    temperature: float | None = field(default=None, metadata={"help": "As the tester samples."})
    top_p: float | None = field(default=None, metadata={"help": "As the tester samples."})
    top_k: int | None = field(default=None, metadata={"help": "As the tester samples."})
    repetition_penalty: float | None = field(default=None, metadata={"help": "As the tester samples."})
    max_completion_length: int | None = field(default=None, metadata={"help": "As the tester samples."})
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Whether dropout is off in training. Probes are sampled without it: with GPT-2's 0.1, one token "
            "in eight is clipped before the first update, and the gradient is that of other probabilities."
        },
    )

    def __post_init__(self: Any) -> None:
        # TRL sets one by the other, and refuses both: which would refuse the settings of an earlier run.
        steps, probes = self.steps_per_generation, self.generation_batch_size
        if steps and probes and probes % (self.per_device_train_batch_size * steps) == 0:
            self.generation_batch_size = None
        # TRL checks a group's size against the batch already here; one that is left to the sampler has none yet.
        width = self.num_generations
        if width is None:
            batch = self.per_device_train_batch_size
            self.num_generations = batch if batch > 1 else max(2, self.gradient_accumulation_steps)
        # And against the evaluation's batch, which there is none of: conversations are grown as in any evaluation.
        eval_batch, self.per_device_eval_batch_size = self.per_device_eval_batch_size, self.num_generations
        super().__post_init__()
        self.num_generations, self.per_device_eval_batch_size = width, eval_batch


class GroupRecords(RoundRecords):
    """The round's groups, served a sibling a row: row `i` is sibling `i % width` of group `i // width`."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__(groups * width)
        self.width = width

    def __getitem__(self, index: int) -> Record:
        group, sibling = divmod(index, self.width)
        return {key: value[sibling] if key in PER_SIBLING else value for key, value in self.records[group].items()}


class SiblingSampler(Sampler[int]):
    """Rows of `GroupRecords`, where TRL's sampler repeats the number of a group once for each of its siblings."""

    def __init__(self, groups: Sampler[int], width: int) -> None:
        self.groups, self.width = groups, width

    def __iter__(self) -> Iterator[int]:
        for position, group in enumerate(self.groups):
            yield group * self.width + position % self.width

    def __len__(self) -> int:
        return len(self.groups)


def tree_reward(reward: Sequence[float | None], **columns: Any) -> list[float | None]:
    """TRL's reward function of a tree: the credit of each probe, `None` where it could not be measured."""
    return list(reward)


class GroupsMixin(RoundsMixin):
    """Mixed into TRL's GRPOTrainer or RLOOTrainer in front of it: what TRL would generate is read from the trees.

    These private methods of both trainers are overridden: `_tokenize_prompts` and `_generate_single_turn` (ids are the
    trees'), `_generate_and_score_completions` and `_get_per_token_logps_and_entropies` (so are the old policy's
    log-probabilities), `_calculate_rewards` (a probe that the trees could not measure teaches nothing),
    `_get_train_sampler` (a row is a sibling) and `_prepare_inputs` (the order within a batch stays the same after a
    resume).
    """

    found = "usable_groups"
    num_iterations: int
    num_generations: int
    _rows: list[Record]
    _old_policy_asked = False

    def __init__(
        self,
        sampler: ASTSampler,
        args: Any = None,
        *,
        eval_dataset: Any = None,
        reward_funcs: Sequence[Callable[..., list[float | None]]] = (),
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args or self.config_class("tester")
        tester, peft = tester_to_train(sampler.system, peft_config), peft_config is not None
        size, max_trees = _check(sampler, args)
        use_sampling(args, tester, **SAMPLING)
        reference = reference_model(sampler.system, peft, synced=args.sync_ref_model) if args.beta else None
        self.shuffled, args.shuffle_dataset = args.shuffle_dataset, False  # by the round, not by the process
        with _as_reference(type(self), reference):
            super().__init__(
                model=tester.model,
                reward_funcs=[tree_reward, *reward_funcs],
                args=args,
                **placeholders(eval_dataset),
                processing_class=processing_class or tester.tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        if reference is not None and self.ref_model is None:
            raise InputError(
                "with an adapter the reference is the tester before training: leave the baseline out, or beta=0"
            )
        if not args.disable_dropout and dropouts(self.model):
            logger.warning(
                "the tester has dropout, and disable_dropout=False leaves it on: probabilities of the first step then "
                "differ from those that the probes were sampled with, and many are clipped for no reason"
            )
        self.start_rounds(sampler, size, max_trees, eval_dataset)
        self.train_dataset = GroupRecords(size, sampler.tree_width)

    def records_of(self, trees: Sequence[Tree]) -> list[Record]:
        return group_records(trees, self.args.min_margin)

    def asks_for_old_policy(self) -> bool:
        """Whether TRL, before anything else, runs the policy over a new batch for its old log-probabilities."""
        raise NotImplementedError

    def begin_round(self, number: int) -> None:
        super().begin_round(number)
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
        # Rows are shuffled in here by torch's global numbers: let them be those of this batch, resumed or not.
        number = self._step // (self.args.steps_per_generation * self.num_iterations)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.args.seed, "shuffle", number))
            return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: list[Record]) -> dict[str, Any]:
        self._rows, self._old_policy_asked = inputs, self.asks_for_old_policy()
        batch = super()._generate_and_score_completions(inputs)
        if "old_logps" not in batch:  # GRPO's, which takes those of the first step where it has none
            batch["old_per_token_logps"] = self._sampling_logprobs(batch["completion_ids"].shape[1])
        return batch

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self._old_policy_asked:
            self._old_policy_asked = False
            return self._sampling_logprobs(logits_to_keep), None, None
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _sampling_logprobs(self, tokens: int) -> torch.Tensor:
        # Those of the trees (rows, tokens), 0 behind a probe's end.
        logprobs = torch.zeros((len(self._rows), tokens))
        for row, record in zip(logprobs, self._rows, strict=True):
            row[: len(record["sampling_logprobs"])] = torch.tensor(record["sampling_logprobs"])
        return logprobs.to(self.accelerator.device)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # TRL takes a probe for measured if any reward function could tell. The tree's own is the first, and without
        # it, a probe would count as one of reward 0.
        rewards = super()._calculate_rewards(*args, **kwargs)
        rewards[rewards[:, 0].isnan()] = math.nan
        return rewards

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [row["prompt_ids"] for row in self._rows], None, {}


def _check(sampler: ASTSampler, args: Any) -> tuple[int, int]:
    # Groups a round holds, and the trees after which filling it is given up.
    width = sampler.tree_width
    if width < 2:
        raise InputError("siblings are compared, and tree_width=1 gives none: set tree_width to 2 or more")
    if args.num_generations not in (None, width):
        raise InputError(
            f"num_generations={args.num_generations}, and a tree's siblings are the group: leave it out, or set "
            f"tree_width={args.num_generations}"
        )
    if args.generation_batch_size % width:
        raise InputError(
            f"a generation batch of {args.generation_batch_size} probes does not hold whole groups of tree_width="
            f"{width}: make per_device_train_batch_size a multiple of {width}"
        )
    for name in ("use_vllm", "use_transformers_continuous_batching", "min_p", "generation_kwargs"):
        if getattr(args, name):
            raise InputError(f"{name} would sample probes, and the trees hold them already: leave it out")
    tester = trainable_tester(sampler.system)
    known = {tester.tokenizer.eos_token_id, tester.tokenizer.pad_token_id}
    shortens = type(sampler.system).probe_in is not System.probe_in
    if args.mask_truncated_completions and (shortens or tester.sampling.stop_strings or tester.eos - known):
        raise InputError(
            "mask_truncated_completions leaves out probes without the tokenizer's end of sequence, and these end in "
            "other ways too: leave it out"
        )
    if args.remove_unused_columns:
        raise InputError("remove_unused_columns would remove what the trees hold: leave it out")
    args.num_generations = width
    return args.full_round(sampler.groups_per_tree, args.generation_batch_size // width)


@contextmanager
def _as_reference(trainer: type, reference: PreTrainedModel | None) -> Iterator[None]:
    """Lets TRL's trainer find `reference` where it would load one by the tester's id, which may be another model's or
    none at all."""
    trl_trainer = next(base for base in trainer.__mro__ if base.__module__.startswith("trl."))
    module: Any = sys.modules[trl_trainer.__module__]
    load = module.create_model_from_path
    if reference is not None:
        module.create_model_from_path = lambda *args, **kwargs: reference
    try:
        yield
    finally:
        module.create_model_from_path = load
