"""The solvers of ASTRA-RL: DPO, IPO and PPO as settings of a trainer, DPO and IPO also as losses of a [`Harness`].

The TRL way has no solvers: an algorithm is a trainer ([`ASTDPOTrainer`], [`ASTPPOTrainer`], ...) and its config.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence

from astra_trl.backends.hf import HFBackend
from astra_trl.rollout.records import Record, preference_records
from astra_trl.systems.base import System
from astra_trl.trainers.roles import (
    bind_tester,
    keep_untrained_adapter,
    reference_model,
    tester_to_train,
    trainable_tester,
)
from astra_trl.tree import Tree


class DPO:
    """Direct preference optimization (huggingface.co/papers/2305.18290) of the best against the worst sibling.

    The TRL way is `ASTDPOConfig(beta=..., min_margin=...)`.

    Args:
        system (`System`):
            The system whose tester is trained. Its baseline is the reference; without one, the tester before training.
        beta (`float`, *optional*, defaults to `0.1`):
            Weight of staying near the reference.
        min_margin (`float`, *optional*, defaults to `0.0`):
            Siblings whose rewards differ by this much or less are not a pair.
    """

    def __init__(self, system: System, beta: float = 0.1, min_margin: float = 0.0) -> None:
        self.system = system
        self.beta = beta
        self.min_margin = min_margin

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """Fields of [`ASTDPOConfig`]."""
        return {"loss_type": ["sigmoid"], "beta": self.beta, "min_margin": self.min_margin}

    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        """The loss of each pair, given by how much further training moved the chosen probe than the rejected one:
        the difference of their log-ratios to the reference, in nats."""
        return -logsigmoid(self.beta * margins)

    def flatten(self, tree: Tree) -> list[Record]:
        """The preference pairs of a tree, one per sibling group that has one: token ids exactly as sampled."""
        return preference_records([tree], self.min_margin)

    @staticmethod
    def collate_fn(steps: Sequence[Record]) -> list[Record]:
        """The batch that `step` takes, of the pairs that a `DataLoader` has drawn."""
        return list(steps)

    def step(self, batch: Sequence[Record]) -> tuple[torch.Tensor, dict[str, float]]:
        """The mean loss of some pairs under the current tester, ready for `backward()`, and figures to log."""
        prompts = [pair["prompt_ids"] for pair in batch] * 2
        probes = [pair["chosen_ids"] for pair in batch] + [pair["rejected_ids"] for pair in batch]
        with self.reference.inference():
            reference = _sum_logprobs(self.reference.model, prompts, probes)
        tester = _sum_logprobs(trainable_tester(self.system).model, prompts, probes)
        chosen, rejected = (tester - reference.to(tester.device)).chunk(2)
        loss = self.losses(chosen - rejected).mean()
        figures = {
            "training/loss": loss,
            "reward/chosen_rewards": self.beta * chosen.mean(),
            "reward/rejected_rewards": self.beta * rejected.mean(),
            "reward/reward_accuracies": (chosen > rejected).float().mean(),
            "reward/reward_margin": self.beta * (chosen - rejected).mean(),
        }
        for name, logprobs in (("policy", tester), ("ref", reference)):
            for probe, of_probe in zip(("chosen", "rejected"), logprobs.chunk(2), strict=True):
                figures[f"{name}/logprobs_{probe}"] = of_probe.mean()
        return loss, {name: figure.item() for name, figure in figures.items()}

    @cached_property
    def reference(self) -> HFBackend:
        """The frozen reference: the system's baseline or, without one, the tester as it is now; made at the first use,
        which is the [`Harness`]."""
        tester = tester_to_train(self.system, None)
        if is_peft_model(tester.model):
            keep_untrained_adapter(tester.model)
            bind_tester(self.system, tester.model)
        model = reference_model(self.system, peft=False)
        untrained = tester.before_training() if model is None else replace(tester, model=model)
        assert untrained is not None  # a tester without an adapter has a model as its reference
        return untrained


class IPO(DPO):
    """Identity preference optimization (huggingface.co/papers/2310.12036) with summed log-ratios, as in ASTPrompter
    (huggingface.co/papers/2407.09447).

    The TRL way is `ASTDPOConfig(loss_type="ipo", beta=...)`, which divides log-ratios by the probe's length. So
    `Trainer` multiplies `beta` by the tester's `max_new_tokens`, which gives the same optimum for probes of that
    length.

    Args:
        system, beta, min_margin:
            See [`DPO`].
    """

    @property
    def trainer_settings(self) -> dict[str, Any]:
        beta = self.beta * trainable_tester(self.system).sampling.max_new_tokens
        return {**super().trainer_settings, "loss_type": ["ipo"], "beta": beta}

    def losses(self, margins: torch.Tensor) -> torch.Tensor:
        return (margins - 1 / (2 * self.beta)) ** 2


class PPO:
    """Proximal policy optimization (huggingface.co/papers/1707.06347) by TRL's `PPOTrainer`, for `Trainer` alone.

    The TRL way is `ASTPPOConfig(cliprange=..., vf_coef=...)`. TRL removed its PPO in 1.13: `pip install
    'astra-trl[ppo]'`. The system needs no value function: the trainer makes one from the tester.

    Args:
        system (`System`):
            The system whose tester is trained.
        clip_range (`float`, *optional*, defaults to `0.1`):
            How far the importance ratio of a token counts from 1.
        vf_loss_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the loss of the value function.
    """

    def __init__(self, system: System, clip_range: float = 0.1, vf_loss_coef: float = 1.0) -> None:
        self.system = system
        self.clip_range = clip_range
        self.vf_loss_coef = vf_loss_coef

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """Fields of [`ASTPPOConfig`]."""
        return {"cliprange": self.clip_range, "vf_coef": self.vf_loss_coef}


def _sum_logprobs(model: Any, prompts: Sequence[list[int]], probes: Sequence[list[int]]) -> torch.Tensor:
    # Of each probe after its prompt, in nats: shape (rows,). The padding is on the right: no token sees it.
    rows = list(zip(prompts, probes, strict=True))
    ids = pad_sequence([torch.tensor(prompt + probe) for prompt, probe in rows], batch_first=True)
    labels = pad_sequence(
        [torch.tensor([-100] * len(prompt) + probe) for prompt, probe in rows], batch_first=True, padding_value=-100
    )
    logits = model(input_ids=ids.to(model.device)).logits[:, -ids.shape[1] : -1].float()
    return -cross_entropy(logits.transpose(1, 2), labels[:, 1:].to(model.device), reduction="none").sum(-1)
