"""Likelihood of probes, a reward term."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astra_trl.tree import Node


@dataclass(frozen=True)
class Likelihood:
    """Mean natural log-probability per token of the probe under the target, or under the baseline if the target's
    backend gives none; nan for an empty probe.

    ASTPrompter's term (huggingface.co/papers/2407.09447), in which people are more likely to write likely probes. It
    is the mean of the log-probabilities, as the probability of 24 tokens is about 0.

    Args:
        as_probability (`bool`, *optional*, defaults to `False`):
            Return the exponential of the mean instead, in (0, 1]: the geometric mean of the tokens' probabilities, or
            one over the perplexity.
    """

    as_probability: bool = False
    needs_logprobs: ClassVar[bool] = True

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        values = [node.probe_logprob_per_token for node in nodes]
        return [math.exp(value) for value in values] if self.as_probability else values

    @property
    def in_unit_interval(self) -> bool:
        return self.as_probability
