"""GFN: a tester that samples probes in proportion to their reward, trained like a generative flow network."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import RLOOConfig

from astra_trl.backends.base import derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError
from astra_trl.rollout.records import Record
from astra_trl.rollout.replay import Entry, ReplayBuffer, check_shares
from astra_trl.rollout.screening import start_replay
from astra_trl.rollout.variations import write_variations
from astra_trl.trainers.checkpoints import save_usage
from astra_trl.trainers.groups import GroupsConfig
from astra_trl.trainers.rloo import ASTRLOOTrainer
from astra_trl.trainers.roles import trainable_tester
from astra_trl.trainers.unread import BY_ALL, BY_GFN, BY_GROUPS
from astra_trl.tree import Node

logger = logging.getLogger(__name__)


@dataclass
class ASTGFNConfig(GroupsConfig, RLOOConfig):
    """TRL's `RLOOConfig` with the settings of a round and of a replay buffer.

    > These parameters have default values different from [`~trl.RLOOConfig`]: those of [`ASTGRPOConfig`], and `beta`
    > 0.04.

    The trained tester samples a probe with a probability in proportion to `p_baseline(probe) * exp(reward / (beta *
    spread))`. The spread is the difference between the highest and the lowest reward so far, so `beta` means the same
    for every reward. KL-regularised reinforcement learning aims at the same distribution (with a coefficient of
    `beta * spread`, and the KL divergence summed over the probe's tokens); but other algorithms stop at the first
    probes that they find to work.
    """

    unread: ClassVar[Mapping[str, str]] = {**BY_ALL, **BY_GROUPS, **BY_GFN}

    beta: float = field(
        default=0.04,
        metadata={
            "help": "Temperature of the reward, as a share of the difference between the highest and the lowest "
            "reward so far: a probe whose reward is higher by this share becomes e times as likely. Lower: more harm, "
            "and fewer kinds of it; higher: likelier and more diverse probes."
        },
    )
    min_margin: float | None = field(
        default=None,
        metadata={
            "help": "Siblings whose rewards differ by this much or less are not compared. Default: all are compared."
        },
    )
    replay_share: float = field(
        default=0.25,
        metadata={
            "help": "Probability that a sibling (not the first of a group) is a probe of high reward from an earlier "
            "round, asked again. 0 switches replay off."
        },
    )
    screened_probes: int = field(
        default=0,
        metadata={
            "help": "Probes that the untrained tester samples before the first round without asking the target, the "
            "second half of them as variations if variation_share is above 0. Those that the scorer finds harmful by "
            "themselves are replayed first: a start where the target fails rarely."
        },
    )
    variation_share: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a sibling (not the first of a group) is a variation: a new probe that the "
            "tester (as it was before training, if it has an adapter) writes with probes of high reward as examples. "
            "For testers that can continue a list, e.g. of 100M parameters."
        },
    )
    nll_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the negative log-likelihood (mean per token) of replayed probes and variations that "
            "are better than their siblings. Above 0, this takes the place of the balance for replayed probes and "
            "variations: a tester of natural language then writes more like them, instead of learning each by heart."
        },
    )
    replay_size: int = field(default=1000, metadata={"help": "Most earlier probes that are kept for it."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise InputError("beta must be above 0, got 0: the reward is divided by it")
        check_shares(self.replay_share, self.variation_share)
        for name in ("screened_probes", "nll_coef"):
            if getattr(self, name) and not (self.replay_share or self.variation_share):
                raise InputError(f"{name} has no effect without replayed probes: set replay_share or variation_share")


class ASTGFNTrainer(ASTRLOOTrainer):
    """Trains the tester of a system to sample probes in proportion to their reward, round by round.

    The loss is trajectory balance over the siblings of a group, whose common context makes the partition function drop
    out (huggingface.co/papers/2405.18540; its contrastive form huggingface.co/papers/2605.00553): the differences of
    `log pi(probe)` between siblings are to equal those of `log R(probe) = reward / beta + log p_baseline(probe)`, with
    log-probabilities summed over tokens, and `beta` times the spread of rewards in place of `beta`. With probes that
    were just sampled, its gradient is that of RLOO with the reward `reward - beta * log(pi / p_baseline)`. It also
    holds for probes that the tester did not sample, such as those of the replay buffer. With `nll_coef` these are
    learned by maximum likelihood instead, as in the smoothing phase of the first paper, and only fresh probes are
    balanced.

    The arguments are those of [`GroupsMixin`], with an [`ASTGFNConfig`].
    """

    _tag_names = ["trl", "astra-trl", "gfn"]
    config_class = ASTGFNConfig
    keeps_groups_whole = True

    def __init__(self, sampler: Any, args: Any = None, **options: Any) -> None:
        super().__init__(sampler, args, **options)
        sampling = trainable_tester(sampler.system).sampling
        if sampling.top_p < 1 or sampling.top_k or sampling.repetition_penalty != 1:
            logger.warning(
                "GFN trains the tester's whole distribution, and its sampling parameters (top_p, top_k, "
                "repetition_penalty) leave out a part of it: what they leave out is not learned from"
            )
        reward = sampler.system.reward
        if (self.args.replay_share or self.args.variation_share) and (
            reward.needs_tester_logprob or reward.needs_sampling_logprobs
        ):
            raise InputError(
                "the reward has a term of the tester's own log-probabilities (entropy), which a replayed probe does "
                "not have: drop the term, as GFN keeps the entropy by itself, or set replay_share=0 and "
                "variation_share=0"
            )
        args = self.args
        self.replay = ReplayBuffer(args.replay_share, 2 * args.beta, args.replay_size, args.variation_share)

    def begin_training(self) -> None:
        if self.args.screened_probes and self._sealed_state is None:  # else the buffer is the checkpoint's
            options = (self.args.screened_probes, derive_seed(self.args.seed, "screening"), self.args.disable_tqdm)
            try:
                with self.current_tester():
                    found = start_replay(self.sampler, self.writer, self.replay, *options)
            finally:
                save_usage(self)  # of a scorer behind an endpoint
            if self.is_world_process_zero():
                logger.info("%d of about %d screened probes look harmful", found, self.args.screened_probes)
        super().begin_training()

    @property
    def writer(self) -> HFBackend:
        """The model that writes variations: the tester before training, if it has an adapter, or as it is now."""
        tester = trainable_tester(self.sampler.system)
        return tester.before_training() or tester

    def memories(self) -> dict[str, Any]:
        return {**super().memories(), "replay_buffer.json": self.replay}

    def remember(self, nodes: Sequence[Node]) -> None:
        super().remember(nodes)
        self.replay.remember(nodes, self.sampler.system.harm)

    def collect_round(self, number: int) -> list[Record]:
        self.replay.begin_round(derive_seed(self.args.seed, "replay", number))
        if self.args.variation_share:
            self.replay.variations = self.write_variations(derive_seed(self.args.seed, "variations", number))
        with self.sampler.replaying(self.replay):
            return super().collect_round(number)

    def write_variations(self, seed: int) -> list[Entry]:
        """Return about as many new probes as a round asks, for every turn."""
        width, share = self.sampler.tree_width, self.args.variation_share
        groups = [self.args.trees_per_round * width**depth for depth in range(self.sampler.tree_depth)]
        counts = [math.ceil(number * (width - 1) * share) for number in groups]
        with self.current_tester():
            return write_variations(self.writer, self.sampler.parts, self.replay, counts, seed)

    def _generate_and_score_completions(self, inputs: list[Record]) -> dict[str, Any]:
        self.beta = self.args.beta * self.replay.spread  # which this round's exchanges are part of already
        batch = super()._generate_and_score_completions(inputs)
        # Replayed probes count in TRL's mean of it, and the tester as it is now has not sampled them.
        self._metrics["train"].pop("kl", None)
        device = batch["advantages"].device
        rewards = torch.tensor([math.nan if row["reward"] is None else row["reward"] for row in inputs], device=device)
        batch["rewards"], batch["balanced"] = rewards, ~rewards.isnan()
        if self.args.nll_coef:
            replayed = torch.tensor([not row["sampling_logprobs"] for row in inputs], device=device)
            batch["balanced"] &= ~replayed
            leads = lead(rewards, self.num_generations, self.args.min_margin or 0.0) * replayed
            mean = self.accelerator.gather(leads).mean()
            batch["nll_weights"] = leads / torch.where(mean > 0, mean, 1.0)
        return batch

    def _compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        probe_mask = inputs["completion_mask"]
        mask = torch.cat([inputs["prompt_mask"], probe_mask], dim=1)
        logprobs, entropies, *_ = self._get_per_token_logps_and_entropies(
            model, ids, mask, probe_mask.shape[1], compute_entropy=True
        )
        log_ratios = (logprobs * probe_mask).sum(1) - inputs["old_logps"]
        loss, gap = balance_loss(
            log_ratios,
            inputs["advantages"],
            inputs["rewards"],
            inputs["balanced"],
            width=self.num_generations,
            beta=self.beta,
            min_margin=self.args.min_margin,
        )
        if self.args.nll_coef:
            nll = -(logprobs * probe_mask).sum(1) / probe_mask.sum(1).clamp(min=1)
            loss = loss + self.args.nll_coef * (inputs["nll_weights"] * nll).mean()
        entropy = torch.stack([(entropies * probe_mask).sum(), probe_mask.sum().float()])
        for name, (total, count) in {"entropy": entropy, "gap": gap}.items():
            total, count = self.accelerator.reduce(torch.stack([total, count]), reduction="sum")
            self._metrics["train"][name].append((total / count.clamp(min=1)).item())
        return loss


def lead(rewards: torch.Tensor, width: int, margin: float = 0.0) -> torch.Tensor:
    """Return by how much the reward of each probe exceeds the mean of its measured siblings; 0 up to a margin."""
    groups = rewards.view(-1, width)
    ahead = (groups - groups.nanmean(dim=1, keepdim=True)).nan_to_num(0.0).flatten()
    return torch.where(ahead > max(margin, 1e-4), ahead, 0.0)  # what is below is rounding


def balance_loss(
    log_ratios: torch.Tensor,
    advantages: torch.Tensor,
    rewards: torch.Tensor,
    balanced: torch.Tensor | None = None,
    *,
    width: int,
    beta: float,
    min_margin: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of contrastive trajectory balance; and the sum of the squared gaps between siblings, in nats,
    with the number of their pairs.

    For n balanced siblings, the squares of the differences of `log pi - log R` are summed over their pairs and divided
    by n; the loss is the mean over rows, times beta / 2. So for fresh probes its gradient is that of RLOO.

    TRL's leave-one-out advantages hold the differences of `log R` between siblings already: they are those of
    `reward - beta * (log pi_old - log p_baseline)`, times m / (m - 1) for m measured siblings. With the log-ratio
    `log pi - log pi_old` added, the probabilities `pi_old` of sampling the probes cancel out, whatever they were.

    Args:
        log_ratios, advantages, rewards: of shape (rows,), siblings together; the reward is nan if it is not measured.
        balanced: of shape (rows,), `True` for the measured rows that are compared. Default: all measured ones.
        width (`int`): Siblings of a group.
        beta (`float`): Temperature of the reward.
        min_margin (`float`, *optional*): Siblings whose rewards differ by this much or less are not compared.
    """
    ratios, advantages, rewards = (values.view(-1, width) for values in (log_ratios, advantages, rewards))
    measured = ~rewards.isnan()
    balanced = measured if balanced is None else balanced.view(-1, width)
    count = measured.sum(1, keepdim=True).clamp(min=1)
    gaps = ratios - advantages * (count - 1) / count / beta
    compared = balanced[:, :, None] & balanced[:, None, :]
    if min_margin is not None:
        compared &= (rewards[:, :, None] - rewards[:, None, :]).abs() > min_margin
    squares = torch.where(compared, gaps[:, :, None] - gaps[:, None, :], 0.0) ** 2 / 2  # of each pair, twice
    loss = beta / 2 * (squares.sum((1, 2)) / balanced.sum(1).clamp(min=1)).sum() / len(log_ratios)
    pairs = (compared.sum() - compared.diagonal(dim1=1, dim2=2).sum()) / 2
    return loss, torch.stack([squares.detach().sum(), pairs.to(squares.dtype)])
