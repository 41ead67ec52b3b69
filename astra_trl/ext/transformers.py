"""ASTRA-RL's `HFASTSystem`: the device is its fifth argument, and it has `parameters()`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from astra_trl.scorers.base import Scorer
from astra_trl.systems import astprompter
from astra_trl.systems.models import Model, Target
from astra_trl.trainers.roles import trainable_tester


class HFASTSystem(astprompter.HFASTSystem):
    """ASTPrompter's system on transformers models, with ASTRA-RL's signature.

    The TRL way is `astra_trl.HFASTSystem(tester, target, baseline, scorer, device=...)`: the trainer knows what it
    trains, so that nothing asks for parameters.

    Args:
        tester_model_id, target_model_id, baseline_model_id (`str`, `PreTrainedModel` or `Backend`):
            As in [`~astra_trl.HFASTSystem`]. A baseline of `None` means the tester before training.
        scorer (`Scorer` or `Mapping[str, Scorer]`):
            Measures harm.
        device (`str`, *optional*):
            Where the models are loaded, e.g. `"cuda"`; defaults to the device that accelerate gives this process.
        kwargs:
            The other keyword arguments of [`~astra_trl.HFASTSystem`], e.g. `sampling`.
    """

    def __init__(
        self,
        tester_model_id: Model,
        target_model_id: Target,
        baseline_model_id: Model | None,
        scorer: Scorer | Mapping[str, Scorer],
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tester_model_id, target_model_id, baseline_model_id, scorer, device=device, **kwargs)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the tester that are trained: all of them, or those of its adapter."""
        return (parameter for parameter in trainable_tester(self).model.parameters() if parameter.requires_grad)
