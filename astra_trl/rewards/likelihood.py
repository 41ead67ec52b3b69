"""How likely a person is to write the probe, as a reward term."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from astra_trl.tree import Node


@dataclass(frozen=True)
class Likelihood:
    """Mean natural log-probability per token of the probe under the target; nan for an empty probe.

    ASTPrompter's term (huggingface.co/papers/2407.09447) with the mean in the log: the probability itself is about 0
    for 24 tokens.
    """

    needs_target_logprobs: ClassVar[bool] = True

    def __call__(self, nodes: Sequence[Node]) -> list[float]:
        return [node.probe_logprob_per_token for node in nodes]
