"""Entropy bonus, a reward term."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astra_trl.tree import Node


@dataclass(frozen=True)
class Entropy:
    """Minus the natural log-probability of the probe under the tester at temperature 1, in nats: the sum over its
    tokens; nan if the tester's backend gives no log-probabilities.

    The entropy bonus of curiosity-driven red teaming (huggingface.co/papers/2402.19464), which its authors add at
    every token with a discount of 1. It rewards length: 20 tokens get about 20 times as much as one.

    Args:
        per_token (`bool`, *optional*, defaults to `False`):
            Use the mean over tokens at the sampling temperature instead; its expectation is the tester's entropy per
            token at any length.
    """

    per_token: bool = False
    in_unit_interval: ClassVar[bool] = False

    @property
    def needs_sampling_logprobs(self) -> bool:
        return self.per_token

    @property
    def needs_tester_logprob(self) -> bool:
        return not self.per_token

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        if not self.per_token:
            return [-node.tester_logprob for node in nodes]
        rows = [node.sampling_logprobs for node in nodes]
        return [-sum(logprobs) / len(logprobs) if logprobs else math.nan for logprobs in rows]
