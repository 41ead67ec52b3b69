"""The number the tester is trained on: a weighted sum or product of named terms."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from astra_trl.callables import call, call_for_numbers, check_callable
from astra_trl.errors import InputError
from astra_trl.numbers import check_number
from astra_trl.scorers.base import Part, validate_part
from astra_trl.tree import Node

# One value per node, unweighted; nan = could not be measured. Attributes of a term declare what it needs beyond the
# exchange, so that a system that lacks it is refused when it is built: `needs_logprobs = True` (the probe's
# log-probability under the target), `needs_sampling_logprobs = True` (those of its tokens under the tester),
# `needs_tester_logprob = True` (the probe's under the tester at temperature 1), `needs_scores = [(scorer, part), ...]`
# (harm). `in_unit_interval = False` means that values may lie outside [0, 1].
# A term with a memory of a training run has `remember(nodes)` to add to it, and for checkpoints `state_dict()` and
# `load_state_dict(state)`, in JSON. An evaluation leaves such a term out of the reward, as its value for the same
# probe falls in the course of a run.
Term = Callable[[Sequence[Node]], list[float]]

Combine = Literal["sum", "product"]


@dataclass(frozen=True)
class Reward:
    """One number per node, made of named terms.

    Args:
        terms (`Mapping[str, tuple[float, Term]]`):
            Weight and term by name. A negative weight penalises.
        combine (`str`, *optional*, defaults to `"sum"`):
            `"sum"` of weight * value; or `"product"` of value ** weight, of (1 - value) ** -weight if the weight is
            negative. A product needs values in [0, 1].
    """

    terms: Mapping[str, tuple[float, Term]]
    combine: Combine = "sum"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise InputError(f"combine={self.combine!r}: choose one of {', '.join(get_args(Combine))}")
        for name, pair in self.terms.items():
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], int | float)):
                raise InputError(f"reward term {name!r}: give its weight and the term, (1.0, term)")
            weight, term = pair
            check_number("weight", weight, f"the weight of reward term {name!r}")
            _check_term(f"reward term {name!r}", term)
            if self.combine == "product" and not getattr(term, "in_unit_interval", True):
                raise InputError(
                    f"reward term {name!r} leaves [0, 1], so it cannot be part of a product: drop it, or use "
                    "Likelihood(as_probability=True)"
                )

    def __call__(self, nodes: Sequence[Node]) -> None:
        """Set `terms` and `reward` on every node.

        The reward is `None` if a term is nan, if the reward has no terms, or if the response is empty: then nothing
        was measured, which is not the same as harmless.
        """
        for name, (_, term) in self.terms.items():
            values = call_for_numbers(f"reward term {name!r}", term, nodes, "node")
            for node, value in zip(nodes, values, strict=True):
                if math.isinf(value):
                    raise InputError(
                        f"reward term {name!r} is {value} for the probe {node.exchange.probe!r:.80}: return a finite "
                        "number, or nan if it cannot be measured"
                    )
                node.terms[name] = value
        for node in nodes:
            reward = self._combine(node.terms)
            node.reward = None if math.isnan(reward) or not node.has_response else reward

    def _combine(self, values: Mapping[str, float]) -> float:
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
        """Add measured nodes to the memory of the terms that have one. Only training calls this."""
        for name, term in self._with_memory():
            call(f"reward term {name!r}", term.remember, list(nodes))

    @property
    def comparable(self) -> "Reward":
        """The reward without terms that have a memory: the same probe gets the same reward throughout a run."""
        with_memory = dict(self._with_memory())
        return replace(self, terms={name: term for name, term in self.terms.items() if name not in with_memory})

    def state_dict(self) -> dict[str, Any]:
        """Return the memory of the terms, as JSON."""
        state = {name: call(f"reward term {name!r}", term.state_dict) for name, term in self._with_memory()}
        for name, memory in state.items():
            try:
                json.dumps(memory)
            except (TypeError, ValueError) as error:
                raise InputError(f"reward term {name!r}: its state_dict() is not JSON: {error}") from error
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory that `state_dict` returned; raise `InputError` if it belongs to different terms."""
        terms = dict(self._with_memory())
        if terms.keys() != state.keys():
            raise InputError(
                f"the checkpoint has the memory of reward terms {', '.join(state) or 'none'}, and the reward's are "
                f"{', '.join(terms) or 'none'}: resume with the reward that the run was started with"
            )
        for name, term in terms.items():
            call(f"reward term {name!r}", term.load_state_dict, state[name])

    def _with_memory(self) -> list[tuple[str, Any]]:
        return [(name, term) for name, (_, term) in self.terms.items() if hasattr(term, "remember")]

    @property
    def needs_sampling_logprobs(self) -> bool:
        """`True` if a term reads the log-probabilities that the probe was sampled with."""
        return bool(self._terms_with("needs_sampling_logprobs"))

    @property
    def needs_tester_logprob(self) -> bool:
        """`True` if a term reads the probe's log-probability under the tester at temperature 1."""
        return bool(self._terms_with("needs_tester_logprob"))

    @property
    def needs_logprobs(self) -> list[str]:
        """Names of the terms that read the probe's log-probability under the target."""
        return self._terms_with("needs_logprobs")

    @property
    def needs_scores(self) -> dict[tuple[str, Part | None], str]:
        """Scorers and parts that terms read, each with the name of a term that does."""
        return {needed: name for name, (_, term) in self.terms.items() for needed in getattr(term, "needs_scores", ())}

    def _terms_with(self, need: str) -> list[str]:
        return [name for name, (_, term) in self.terms.items() if getattr(term, need, False)]


def _check_term(what: str, term: Any) -> None:
    check_callable(what, term, "nodes")
    if hasattr(term, "remember"):
        for method in ("state_dict", "load_state_dict"):
            if not hasattr(term, method):
                raise InputError(f"{what} has remember() but not {method}(): checkpoints save its memory with that")
    for needed in getattr(term, "needs_scores", ()):
        if not (isinstance(needed, tuple | list) and len(needed) == 2):
            raise InputError(f"{what}: needs_scores holds {needed!r}, but must hold pairs such as ('harm', 'probe')")
        if needed[1] is not None:
            validate_part(needed[1])
