"""ASTRA-RL's loop without a trainer: experience from fresh trees, a loss, and the user's own optimizer."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from astra_trl.backends.base import derive_seed
from astra_trl.errors import InputError, MissingExtra
from astra_trl.rollout.records import no_records_reason
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.solvers import PPO
from astra_trl.tree import Tree

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 8  # as often as a trainer grows the trees of a round before it gives up


class Harness:
    """Experience from fresh trees and the loss of a solver, for a training loop of your own.

    ```python
    harness = Harness(sampler, DPO(system), num_episodes_per_experience=2, dataloader_kwargs={"batch_size": 4})
    for step in range(1000):
        for batch in harness.experience():
            loss, logs = harness.step(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            harness.log_current_step({"step": step, **logs})
    ```

    The TRL way is a trainer ([`ASTDPOTrainer`]), which adds checkpoints, evaluation, several processes and mixed
    precision; or `sampler.collect(trees).preferences()` as the data set of any other trainer of TRL.

    Args:
        sampler (`ASTSampler`):
            Grows the trees, with the tester as it is then.
        algorithm ([`DPO`], [`IPO`] or one of your own):
            A solver: `flatten(tree)` returns the steps of a tree, `collate_fn(steps)` a batch of them, and
            `step(batch)` the loss and figures to log.
        num_episodes_per_experience (`int`, *optional*, defaults to `32`):
            Trees per experience.
        use_wandb (`bool`, *optional*, defaults to `False`):
            Whether `log_current_step` logs to Weights & Biases.
        wandb_kwargs (`dict`, *optional*):
            For `wandb.init`.
        dataloader_kwargs (`dict`, *optional*):
            For the `DataLoader` of an experience, e.g. `{"batch_size": 4, "shuffle": True}`.

    Raises:
        InputError: the solver is [`PPO`] or has another system than the sampler, or the tester cannot be trained.
        MissingExtra: `use_wandb=True` without wandb.
    """

    def __init__(
        self,
        sampler: ASTSampler,
        algorithm: Any,
        num_episodes_per_experience: int = 32,
        use_wandb: bool = False,
        wandb_kwargs: dict[str, Any] | None = None,
        dataloader_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(algorithm, PPO):
            raise InputError("TRL's PPO runs a loop of its own: train with Trainer(config, sampler, solver) instead")
        if getattr(algorithm, "system", sampler.system) is not sampler.system:
            raise InputError("sampler and solver have different systems: build both from the same one")
        getattr(algorithm, "reference", None)  # made now, of the tester before training
        self.sampler = sampler
        self.algorithm = algorithm
        self.num_episodes_per_experience = num_episodes_per_experience
        self.dataloader_kwargs = dataloader_kwargs or {}
        self.wandb = _start_wandb(wandb_kwargs or {}) if use_wandb else None
        self._experiences = 0

    def experience(self, seed: int | None = None) -> Iterator[Any]:
        """Batches of the steps in fresh trees. If these hold none, further trees are grown.

        Args:
            seed (`int`, *optional*):
                Equal seeds give equal trees as long as the models are the same. Defaults to the number of experiences
                before this one.

        Raises:
            InputError: no tree holds a step.
        """
        if seed is None:
            seed, self._experiences = self._experiences, self._experiences + 1
        trees: list[Tree] = []
        for attempt in range(MAX_ATTEMPTS):
            new = self.sampler.collect(self.num_episodes_per_experience, derive_seed(seed, attempt)).trees
            self.sampler.system.remember([node for tree in new for node in tree.nodes()])
            trees += new
            if steps := [step for tree in new for step in self.algorithm.flatten(tree)]:
                loader = DataLoader(steps, collate_fn=self.algorithm.collate_fn, **self.dataloader_kwargs)
                return iter(loader)
        raise InputError(no_records_reason(trees, "step"))

    def step(self, batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a batch, ready for `backward()`, and figures to log."""
        return self.algorithm.step(batch)

    def log_current_step(self, current_logs: dict[str, Any]) -> None:
        """Log figures: to Python's logger, and to Weights & Biases if it is used."""
        logger.info("%s", current_logs)
        if self.wandb is not None:
            self.wandb.log(current_logs)


def _start_wandb(kwargs: dict[str, Any]) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as missing:
        raise MissingExtra("use_wandb=True needs wandb: pip install 'astra-trl[wandb]', or leave it out") from missing
    return wandb.init(**kwargs)
