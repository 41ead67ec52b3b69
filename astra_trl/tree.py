"""Nodes (one exchange each), trees, and their JSON form."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from astra_trl.conversation import Conversation, Exchange, Speaker, Turn
from astra_trl.errors import InputError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Node:
    """One exchange of a tree and all its measurements.

    Args:
        exchange (`Exchange`):
            The context, the probe and the response.
        prompt_ids (`list[int]`):
            Token ids that the tester saw, exactly as fed (left-truncated if its window was full).
        probe_ids (`list[int]`):
            Token ids that the tester sampled, the end-of-sequence token included if it was sampled.
        probe_logprob_per_token (`float`):
            Mean natural log-probability per token of the probe under the target; nan for an empty probe or a target
            that gives no log-probabilities.
        baseline_logprob_per_token (`float`):
            The same under the baseline, which only evaluation measures; nan otherwise.
        sampling_logprobs (`list[float]`):
            Natural log-probability of each id of the probe under the tester that sampled it, at its temperature; empty
            if its backend gives none.
        tester_logprob (`float`):
            Sum of the natural log-probabilities of the probe's ids under the tester at temperature 1; nan if its
            backend gives none.
        scores (`dict[str, float]`):
            Harm in [0, 1] by scorer name; nan if the scorer could not score it, or if the response is empty.
        terms (`dict[str, float]`):
            Unweighted value of each reward term by name.
        reward (`float`, *optional*):
            The reward of this exchange by itself; `None` if a term is nan or the response is empty.
        credit (`float`, *optional*):
            The number that the tester is trained on and that siblings are compared by: the reward, with or without
            the rewards of later turns backed up; `None` if there is no reward.
        error (`str`, *optional*):
            The reason why this exchange could not be completed.
        children (`list[Node]`):
            The exchanges that followed this one.
    """

    exchange: Exchange
    prompt_ids: list[int]
    probe_ids: list[int]
    probe_logprob_per_token: float = math.nan
    baseline_logprob_per_token: float = field(default=math.nan, kw_only=True)
    sampling_logprobs: list[float] = field(default_factory=list)
    tester_logprob: float = field(default=math.nan, kw_only=True)
    scores: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    credit: float | None = None
    error: str | None = None
    children: list["Node"] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """`True` if the exchange has not failed and its response is not empty."""
        return self.error is None and bool(self.exchange.response.strip())

    def to_json(self) -> dict[str, Any]:
        """Return everything but the children as a JSON object; nan becomes null, because JSON has no nan."""
        return {
            "context": [[turn.speaker, turn.text] for turn in self.exchange.context],
            "probe": self.exchange.probe,
            "response": self.exchange.response,
            "probe_logprob_per_token": _null_if_nan(self.probe_logprob_per_token),
            "baseline_logprob_per_token": _null_if_nan(self.baseline_logprob_per_token),
            "scores": {name: _null_if_nan(value) for name, value in self.scores.items()},
            "terms": {name: _null_if_nan(value) for name, value in self.terms.items()},
            "reward": self.reward,
            "credit": self.credit,
            "error": self.error,
            "prompt_ids": self.prompt_ids,
            "probe_ids": self.probe_ids,
            "sampling_logprobs": self.sampling_logprobs,
            "tester_logprob": _null_if_nan(self.tester_logprob),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Node":
        """Return the node that `to_json` wrote; raises `InputError` for any other data."""
        data = _check(data, dict, "the exchange")
        probe, response = (_check(data.get(name), str, name) for name in ("probe", "response"))
        logprobs = _check(data.get("sampling_logprobs"), list, "sampling_logprobs")
        fields: dict[str, Any] = {name: _ids(data, name) for name in ("prompt_ids", "probe_ids")}
        for name in ("probe_logprob_per_token", "baseline_logprob_per_token", "tester_logprob"):
            fields[name] = _nan_if_null(data.get(name), name)
        for name in ("scores", "terms"):
            values = _check(data.get(name), dict, name)
            fields[name] = {key: _nan_if_null(value, f"{name} {key}") for key, value in values.items()}
        for name in ("reward", "credit"):
            value = _nan_if_null(data.get(name), name)
            fields[name] = None if math.isnan(value) else value
        return cls(
            Exchange(_turns(data.get("context"), "context"), probe, response),
            sampling_logprobs=[_number(value, "sampling_logprobs") for value in logprobs],
            error=None if data.get("error") is None else _check(data["error"], str, "error"),
            **fields,
        )


@dataclass(slots=True, eq=False)
class Tree:
    """An opening and all nodes that grew from it."""

    opening: Conversation
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[tuple[int, ...], Node]]:
        """Yield every node with its path (child indices from the root), parents before children."""
        stack: list[tuple[tuple[int, ...], Node]] = [
            ((index,), node) for index, node in reversed(list(enumerate(self.children)))
        ]
        while stack:
            path, node = stack.pop()
            yield path, node
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(node.children))))

    def nodes(self) -> Iterator[Node]:
        """Yield every node, parents before children."""
        return (node for _, node in self.walk())

    def sibling_groups(self) -> Iterator[list[Node]]:
        """Yield the children of the opening, then the children of every node that has any."""
        if self.children:
            yield self.children
        yield from (node.children for node in self.nodes() if node.children)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` turns into an equal tree."""
        return {
            "opening": [[turn.speaker, turn.text] for turn in self.opening],
            "nodes": [{"path": list(path), **node.to_json()} for path, node in self.walk()],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tree":
        """Return the tree that `to_json` wrote; raises `InputError` for any other data."""
        data = _check(data, dict, "the tree")
        tree = cls(_turns(data.get("opening"), "opening"))
        by_path: dict[tuple[int, ...], Tree | Node] = {(): tree}
        for entry in _check(data.get("nodes"), list, "nodes"):
            node = Node.from_json(entry)
            path = tuple(_ids(entry, "path"))
            parent = by_path.get(path[:-1])
            if not path or parent is None or path[-1] != len(parent.children):
                raise InputError(f"the JSON of a tree has no parent of the node {list(path)}: restore its file")
            by_path[path] = node
            parent.children.append(node)
        return tree


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_if_null(value: Any, name: str) -> float:
    return math.nan if value is None else _number(value, name)


def _number(value: Any, name: str) -> float:
    try:
        return float(value if isinstance(value, float) else _check(value, int, name))
    except OverflowError:
        raise InputError(f"{name} holds a number of {len(str(value))} digits: restore the file it is from") from None


def _ids(data: dict[str, Any], name: str) -> list[int]:
    return [_check(value, int, name) for value in _check(data.get(name), list, name)]


def _turns(data: Any, name: str) -> Conversation:
    turns = []
    for pair in _check(data, list, name):
        speaker, text = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        known = next((known for known in get_args(Speaker) if known == speaker), None)
        if known is None:
            raise InputError(
                f"{name} holds {pair!r:.80}, not a pair of a speaker and a text: restore the file it is from"
            )
        turns.append(Turn(known, _check(text, str, name)))
    return tuple(turns)


def _check(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        actual = "nothing" if value is None else type(value).__name__
        raise InputError(f"{name} holds {actual} instead of {kind.__name__}: restore the file it is from")
    return value
