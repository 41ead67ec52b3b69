"""The two modules that TRL's PPOTrainer needs beside the policy: a value model and a reward model."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn


class ValueModel(nn.Module):
    """A scalar head on a copy of the tester's base model or, if only an adapter is trained, on the tester's own base
    model without it.

    Args:
        tester (`PreTrainedModel` or `PeftModel`):
            The policy before training.
    """

    base_model_prefix = "backbone"  # the module that TRL takes hidden states from

    def __init__(self, tester: Any) -> None:
        super().__init__()
        if is_peft_model(tester):
            self.backbone: nn.Module = _AdapterOff(tester)
        else:
            self.backbone = copy.deepcopy(tester.base_model)
        self.head = nn.Linear(tester.config.get_text_config().hidden_size, 1, device=tester.device)
        nn.init.zeros_(self.head.weight)  # nothing is known yet, and no advantage should come of a random head
        nn.init.zeros_(self.head.bias)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return values (rows, tokens, 1) in float32."""
        return self.head(hidden.to(self.head.weight.dtype))


class _AdapterOff(nn.Module):
    # The frozen weights are the policy's: in a tuple they are neither counted as this module's nor saved with it.
    def __init__(self, tester: Any) -> None:
        super().__init__()
        self._tester = (tester,)

    def forward(self, **inputs: Any) -> Any:
        (tester,) = self._tester
        with torch.no_grad(), tester.disable_adapter():
            return tester.get_base_model().base_model(**inputs)


class TargetReward(nn.Module):
    """A stand-in for a reward model: passes the sampled probes to a function and returns their rewards.

    Args:
        rewards_of (`Callable[[list[list[int]]], list[float]]`):
            Rewards of rows of token ids, each a context and its probe without padding.
    """

    base_model_prefix = "backbone"

    def __init__(self, rewards_of: Callable[[list[list[int]]], list[float]]) -> None:
        super().__init__()
        self.rewards_of = rewards_of

    def backbone(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> SimpleNamespace:
        """Return, as hidden states (rows, tokens, 1), a row's reward at each of its tokens."""
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        rewards = torch.tensor(self.rewards_of(rows), dtype=torch.float32, device=input_ids.device)
        return SimpleNamespace(hidden_states=(rewards[:, None, None].expand(*input_ids.shape, 1),))

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states, which are the rewards."""
        return hidden
