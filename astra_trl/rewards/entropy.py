"""How unlikely the probe was to the tester that sampled it, as a reward term."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astra_trl.tree import Node


@dataclass(frozen=True)
class Entropy:
    """Minus the mean natural log-probability per token of the probe under the tester as it sampled it, in nats; nan
    where the tester's backend gives none.

    The entropy bonus of curiosity-driven red teaming (huggingface.co/papers/2402.19464), per token so that it does
    not pay for length: its expectation is the tester's entropy.
    """

    needs_sampling_logprobs: ClassVar[bool] = True
    in_unit_interval: ClassVar[bool] = False

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [_surprise(node.sampling_logprobs) for node in nodes]


def _surprise(logprobs: Sequence[float]) -> float:
    return -sum(logprobs) / len(logprobs) if logprobs else math.nan
