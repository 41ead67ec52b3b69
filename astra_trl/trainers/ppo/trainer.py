"""PPO by TRL's PPOTrainer: it samples probes for the contexts of fresh trees, and the target answers them."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from transformers import PreTrainedModel

from astra_trl.backends.base import Sample, derive_seed
from astra_trl.backends.hf.backend import UNTRAINED
from astra_trl.errors import InputError, RunStopped
from astra_trl.processes import stop_together
from astra_trl.rollout.collector import RoundRecords
from astra_trl.rollout.records import Record
from astra_trl.rollout.run_folder import exchange_line
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.trainers.checkpoints import save_usage
from astra_trl.trainers.collecting import figures_of, fill_records, round_draws
from astra_trl.trainers.ppo.config import ASTPPOConfig
from astra_trl.trainers.ppo.contexts import (
    Context,
    answer_contexts,
    check_savable,
    collect_contexts,
    with_logprobs,
)
from astra_trl.trainers.ppo.loop import ResumablePPOTrainer
from astra_trl.trainers.ppo.modules import TargetReward, ValueModel
from astra_trl.trainers.roles import reference_model, switch_dropout_off, trainable_tester, use_sampling
from astra_trl.trainers.rounds import RoundsMixin
from astra_trl.tree import Node, Tree


class ASTPPOTrainer(RoundsMixin, ResumablePPOTrainer):
    """Trains the tester of a system with PPO.

    The contexts of a round are those of fresh trees, grown by the tester as it is then. TRL samples a probe for each,
    the target answers, and the exchange's credit is the score. If credit needs later turns, the tree's remaining ones
    are grown below the answer.

    A probe whose exchange could not be measured gets the mean reward of those beside it, so that it teaches nothing
    in particular; it is counted as failed, empty or unrewarded.

    Args:
        sampler (`ASTSampler`):
            System and prompts, tree width and depth.
        args (`ASTPPOConfig`, *optional*):
            Defaults to `ASTPPOConfig("tester")`.
        value_model (`nn.Module`, *optional*):
            As in TRL; defaults to a head on a copy of the tester or, with an adapter, on the tester without it.
        eval_dataset, processing_class, callbacks, optimizers, peft_config:
            As in [`RoundsMixin`].
    """

    _tag_names = ["trl", "astra-trl", "ppo"]
    config_class = ASTPPOConfig
    records_figure = "contexts"
    _generator_states: tuple[torch.Tensor, list[torch.Tensor]] | None = None  # at the beginning of an update

    def __init__(
        self,
        sampler: ASTSampler,
        args: ASTPPOConfig | None = None,
        *,
        value_model: torch.nn.Module | None = None,
        **options: Any,
    ) -> None:
        self._own_value_model = value_model
        super().__init__(sampler, args, **options)
        self.args.missing_eos_penalty = self._missing_end_penalty
        switch_dropout_off(self.model)
        if UNTRAINED in getattr(self.policy_model, "peft_config", ()):
            self.ref_adapter_name = UNTRAINED

    def trl_arguments(self, args: ASTPPOConfig, peft_config: Any) -> dict[str, Any]:
        system = self.sampler.system
        self.tester = tester = trainable_tester(system)
        check_savable(system)
        use_sampling(args, tester, temperature="temperature", response_length="max_new_tokens")
        size, _ = args.round_of(self.sampler)
        reference = reference_model(system, peft=peft_config is not None)
        model = tester.model if peft_config is None else get_peft_model(tester.model, peft_config)
        # TRL looks for one end token of several, so the penalty for a missing one is subtracted here.
        self._missing_end_penalty, args.missing_eos_penalty = args.missing_eos_penalty, None
        return {
            "model": model,
            "ref_model": reference,
            "reward_model": TargetReward(self.rewards_of),
            "value_model": self._own_value_model or ValueModel(model),
            "train_dataset": RoundRecords(size),
            "eval_dataset": None,
            "peft_config": None,
        }

    def response_lengths(self, responses: list[list[int]]) -> list[int]:
        """Return the length of the probe in each row of sampled ids: through the first end token or stop string, and
        without what the system removes from its end."""
        tester, rows = self.tester, torch.tensor(responses)
        lengths = torch.full((len(rows),), rows.shape[1])
        for count in range(rows.shape[1], 0, -1):
            lengths[tester.ends(rows[:, :count])] = count
        utterances = [ids[:count] for ids, count in zip(responses, lengths.tolist(), strict=True)]
        samples = [Sample(text, [], ids) for text, ids in zip(tester.texts(utterances), utterances, strict=True)]
        kept, _ = self.sampler.system.probes_in(samples)
        return [len(sample.ids) for sample in kept]

    def tester_in(self, trained: Any) -> PreTrainedModel:
        return trained.policy

    def collect_round(self, number: int) -> list[Record]:
        start = time.perf_counter()
        with self.current_tester():
            contexts = collect_contexts(self.sampler, round_draws(self, number), self.round_size)
        trees = len({context.tree for context in contexts})
        records = fill_records(self, number, [context.to_record() for context in contexts], trees)
        random.Random(derive_seed(self.args.seed, "order", number)).shuffle(records)  # each batch of all depths
        self.nodes: list[Node] = []
        self.round_figures = {
            "trees": trees,
            self.records_figure: len(contexts),
            "collect_seconds": time.perf_counter() - start,
        }
        if self.is_world_process_zero():
            self.folder.write_records(number, records, self.round_figures)
        return records

    def resume_round(self, number: int) -> list[Record]:
        self.nodes = self.folder.read_nodes(number)
        return super().resume_round(number)

    def forget_later(self, number: int, keep: bool) -> None:
        def is_later(line: dict[str, Any]) -> bool:
            step = line.get("step", math.inf)  # a round's own line is written at its end
            return line["round"] >= number + keep or (line["round"] == number and step > self.state.global_step)

        self.folder.forget(is_later)

    def rewards_of(self, rows: list[list[int]]) -> list[float]:
        """Return the score of each row for TRL: the credit of its exchange after the target has answered its probe."""
        first = len(self._update)
        contexts = [Context.from_record(record) for record in self._records[first : first + len(rows)]]
        prompts = [context.tester.prompt_ids for context in contexts]
        for row, prompt in zip(rows, prompts, strict=True):
            assert row[: len(prompt)] == prompt, "TRL scores other rows than it was given"
        tester = self.tester
        utterances = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
        texts, cut = tester.texts(utterances), tester.unfinished(utterances)
        samples = [
            Sample(text, prompt, ids, cut=unfinished)
            for text, prompt, ids, unfinished in zip(texts, prompts, utterances, cut, strict=True)
        ]
        samples = with_logprobs(tester, samples, self.sampler.system.reward)
        place = (self.args.seed, "answer", self.state.global_step, self.accelerator.process_index)
        seeds = [derive_seed(*place, first + index) for index in range(len(rows))]
        try:
            nodes = stop_together(lambda: answer_contexts(self.sampler, contexts, samples, seeds))
        except RunStopped:
            self.save_checkpoint_now()
            raise
        self._update += [
            [(context.tree, (*context.path, *path), below) for path, below in Tree((), [node]).walk()]
            for context, node in zip(contexts, nodes, strict=True)
        ]
        scores = by_depth([(len(context.path), node.credit) for context, node in zip(contexts, nodes, strict=True)])
        if scores is None:
            raise InputError(
                f"none of {len(nodes)} exchanges has a reward, as in each one the call failed, the response is empty "
                "or a reward term is nan: check the target and the scorer"
            )
        if self._missing_end_penalty is None:
            return scores
        return [score - self._missing_end_penalty * missing for score, missing in zip(scores, cut, strict=True)]

    def batches(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        args, position = self.args, self.accelerator.process_index * self.args.local_batch_size
        for update in range(first, self.updates_per_epoch):
            start = update * args.batch_size + position
            self._records = self.train_dataset.records[start : start + args.local_batch_size]
            self._update: list[list[tuple[int, tuple[int, ...], Node]]] = []  # of each row, with what grew below it
            self._generator_states = (torch.get_rng_state(), torch.cuda.get_rng_state_all())
            prompts = {"input_ids": [record["prompt_ids"] for record in self._records]}
            yield self.processing_class.pad(prompts, padding_side="left", return_tensors="pt")

    def save_checkpoint_now(self) -> None:
        # From before the update that TRL has begun: TRL has counted its episodes, and sampled with random numbers that
        # will be drawn again.
        self.state.episode -= self.args.batch_size
        if self._generator_states is not None:
            torch.set_rng_state(self._generator_states[0])
            torch.cuda.set_rng_state_all(self._generator_states[1])
        super().save_checkpoint_now()

    def end_update(self) -> None:
        self._generator_states = None
        update = [exchange for row in gather_object(self._update) for exchange in row]
        self.nodes += [node for _, _, node in update]
        self.remember([node for _, _, node in update])
        if self.is_world_process_zero():
            lines = (exchange_line(node, tree, path) for tree, path, node in update)
            number = math.ceil(self.state.epoch)
            self.folder.write_exchanges(number, ({"step": self.state.global_step, **line} for line in lines))
        save_usage(self)

    def end_round(self, number: int) -> None:
        self.round_figures |= figures_of(self, self.nodes)
        if self.is_world_process_zero():
            self.folder.write_figures(number, self.round_figures)
        super().end_round(number)


def by_depth(credits: Sequence[tuple[int, float | None]]) -> list[float] | None:
    """Return the credit of each probe, given with its depth. A probe without one gets the mean of its depth, so that
    it teaches nothing in particular, or of all if no other of its depth has one. Returns `None` if none has one."""
    every = [credit for _, credit in credits if credit is not None]
    if not every:
        return None
    groups: dict[int, list[float]] = {}
    for depth, credit in credits:
        if credit is not None:
            groups.setdefault(depth, []).append(credit)
    return [fmean(groups.get(depth, every)) if credit is None else credit for depth, credit in credits]
