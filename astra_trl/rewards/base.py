"""The number the tester is trained on: a weighted sum of named terms."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from astra_trl.errors import InputError
from astra_trl.tree import Node

# One value a node, unweighted; nan = could not be measured. A term that reads log-probabilities of the probe under
# the target says so with an attribute `needs_target_logprobs = True`.
Term = Callable[[Sequence[Node]], list[float]]


@dataclass(frozen=True)
class Reward:
    """Sum of weight * term over named terms.

    Args:
        terms (`Mapping[str, tuple[float, Term]]`):
            Weight and term by name.
    """

    terms: Mapping[str, tuple[float, Term]]

    def __call__(self, nodes: Sequence[Node]) -> None:
        """Sets `terms` and `reward` on every node; the reward is `None` where a term is nan."""
        for name, (_, term) in self.terms.items():
            values = term(nodes)
            if len(values) != len(nodes):
                raise InputError(f"reward term {name!r} returned {len(values)} values for {len(nodes)} nodes")
            for node, value in zip(nodes, values, strict=True):
                node.terms[name] = value
        for node in nodes:
            total = sum(weight * node.terms[name] for name, (weight, _) in self.terms.items())
            node.reward = None if math.isnan(total) else total

    @property
    def needs_target_logprobs(self) -> list[str]:
        """Names of the terms that read the target's log-probabilities."""
        return [name for name, (_, term) in self.terms.items() if getattr(term, "needs_target_logprobs", False)]
