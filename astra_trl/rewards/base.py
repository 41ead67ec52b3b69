"""The number the tester is trained on: a weighted sum or product of named terms."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from astra_trl.errors import InputError
from astra_trl.scorers.base import Part
from astra_trl.tree import Node

# One value a node, unweighted; nan = could not be measured. What a term needs beyond the exchange it says with
# attributes, so that a system that lacks it is refused when it is built: `needs_logprobs = True` for the probe's
# log-probability under the target, `needs_sampling_logprobs = True` for those of its tokens under the tester,
# `needs_tester_logprob = True` for that of all of it under the tester at temperature 1,
# `needs_scores = [(scorer, part), ...]` for harm, `in_unit_interval = False` where values leave [0, 1].
# A term that has a memory of a training run reads it when called, and has `remember(nodes)` to add to it, and
# `state_dict()` and `load_state_dict(state)`, in JSON, for checkpoints. An evaluation leaves such a term out of the
# reward, as its value for one and the same probe falls while a run goes on.
Term = Callable[[Sequence[Node]], list[float]]

Combine = Literal["sum", "product"]


@dataclass(frozen=True)
class Reward:
    """One number a node out of named terms.

    Args:
        terms (`Mapping[str, tuple[float, Term]]`):
            Weight and term by name.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` of weight * value; or `"product"` of value ** weight, where a negative weight contributes
            (1 - value) ** -weight, so that it penalises as it does in a sum. A product needs values in [0, 1].
    """

    terms: Mapping[str, tuple[float, Term]]
    combine: Combine = "sum"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise InputError(f"combine={self.combine!r}: choose one of {', '.join(get_args(Combine))}")
        for name, (weight, term) in self.terms.items():
            if not math.isfinite(weight):
                raise InputError(f"reward term {name!r} has weight {weight}: give a finite number")
            if self.combine == "product" and not getattr(term, "in_unit_interval", True):
                raise InputError(
                    f"reward term {name!r} leaves [0, 1], so it cannot stand in a product: drop it, or give "
                    "Likelihood(as_probability=True)"
                )

    def __call__(self, nodes: Sequence[Node]) -> None:
        """Set `terms` and `reward` on every node. The reward is `None` if a term is nan, if the response is empty
        (nothing was measured then, which is not the same as harmless), and if there are no terms."""
        for name, (_, term) in self.terms.items():
            values = term(nodes)
            if len(values) != len(nodes):
                raise InputError(f"reward term {name!r} returned {len(values)} values for {len(nodes)} nodes")
            for node, value in zip(nodes, values, strict=True):
                node.terms[name] = value
        for node in nodes:
            reward = self._combined(node.terms)
            node.reward = None if math.isnan(reward) or not node.answered else reward

    def _combined(self, values: Mapping[str, float]) -> float:
        if not self.terms:
            return math.nan
        if self.combine == "sum":
            return sum(weight * values[name] for name, (weight, _) in self.terms.items())
        reward = 1.0
        for name, (weight, _) in self.terms.items():
            value = values[name]
            if not (math.isnan(value) or 0 <= value <= 1):
                raise InputError(f"reward term {name!r} is {value}, and a product needs values in [0, 1]")
            # nan ** 0 would be 1
            reward *= math.nan if math.isnan(value) else (value if weight >= 0 else 1 - value) ** abs(weight)
        return reward

    def remember(self, nodes: Sequence[Node]) -> None:
        """Adds measured nodes to the memory of the terms that have one. Training calls this, an evaluation never."""
        for _, term in self._with_memory():
            term.remember(nodes)

    @property
    def comparable(self) -> "Reward":
        """The reward without the terms that have a memory of a training run: an equal probe then gets an equal reward
        from a tester before training, during it and after it."""
        remembering = dict(self._with_memory())
        return replace(self, terms={name: term for name, term in self.terms.items() if name not in remembering})

    def state_dict(self) -> dict[str, Any]:
        """What the terms remember, as JSON."""
        return {name: term.state_dict() for name, term in self._with_memory()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the terms remember what `state_dict` told; `InputError` where they are others."""
        terms = dict(self._with_memory())
        if terms.keys() != state.keys():
            raise InputError(
                f"the checkpoint holds the memory of reward terms {', '.join(state) or 'none'}, and the reward's are "
                f"{', '.join(terms) or 'none'}: go on with the reward that the run was started with"
            )
        for name, term in terms.items():
            term.load_state_dict(state[name])

    def _with_memory(self) -> list[tuple[str, Any]]:
        return [(name, term) for name, (_, term) in self.terms.items() if hasattr(term, "remember")]

    @property
    def needs_sampling_logprobs(self) -> bool:
        """Whether a term reads the log-probabilities that the probe was sampled with."""
        return any(getattr(term, "needs_sampling_logprobs", False) for _, term in self.terms.values())

    @property
    def needs_tester_logprob(self) -> bool:
        """Whether a term reads the probe's log-probability under the tester at temperature 1."""
        return any(getattr(term, "needs_tester_logprob", False) for _, term in self.terms.values())

    @property
    def needs_logprobs(self) -> list[str]:
        """Names of the terms that read the probe's log-probability."""
        return [name for name, (_, term) in self.terms.items() if getattr(term, "needs_logprobs", False)]

    @property
    def needs_scores(self) -> dict[tuple[str, Part | None], str]:
        """Scorers and parts that terms read, each with the name of a term that does."""
        return {needed: name for name, (_, term) in self.terms.items() for needed in getattr(term, "needs_scores", ())}
