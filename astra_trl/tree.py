"""Nodes (one exchange each), trees, and their JSON form."""

import math
from collections.abc import Callable, Iterator
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
            the rewards of later turns backed up; `None` without a reward.
        error (`str`, *optional*):
            The reason why this exchange could not be completed.
        probe_cut, response_cut (`bool`):
            Whether a limit (`max_new_tokens`) has cut the probe, or the response.
        replayed (`bool`):
            Whether the probe was put in place of a sample: one of an earlier exchange, or a variation of such probes.
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
    probe_cut: bool = field(default=False, kw_only=True)
    response_cut: bool = field(default=False, kw_only=True)
    replayed: bool = field(default=False, kw_only=True)
    children: list["Node"] = field(default_factory=list)

    @property
    def has_response(self) -> bool:
        """`True` if the exchange has not failed and its response is not empty."""
        return self.error is None and bool(self.exchange.response.strip())

    def to_json(self) -> dict[str, Any]:
        """Return everything but the children as a JSON object; nan becomes null, because JSON has no nan."""
        exchange = self.exchange
        return {
            "context": [[turn.speaker, turn.text] for turn in exchange.context],
            "probe": exchange.probe,
            "response": exchange.response,
            **{name: _null_if_nan(getattr(self, name)) for name in _READERS},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Node":
        """Return the node that `to_json` wrote; raises `InputError` for any other data."""
        data = _check(data, dict, "the exchange")
        probe, response = (_check(data.get(name), str, name) for name in ("probe", "response"))
        exchange = Exchange(_turns(data.get("context"), "context"), probe, response)
        return cls(exchange, **{name: read(data.get(name), name) for name, read in _READERS.items()})


@dataclass(slots=True, eq=False)
class Tree:
    """An opening and all nodes that grew from it."""

    opening: Conversation
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[tuple[int, ...], Node]]:
        """Yield every node with its path (child indices from the root), parents before children."""
        stack: list[tuple[tuple[int, ...], Tree | Node]] = [((), self)]
        while stack:
            path, parent = stack.pop()
            if isinstance(parent, Node):
                yield path, parent
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(parent.children))))

    def nodes(self) -> Iterator[Node]:
        """Yield every node, parents before children."""
        return (node for _, node in self.walk())

    def sampled_nodes(self) -> Iterator[Node]:
        """Yield the nodes of conversations in which no probe was replayed."""
        replayed = {path for path, node in self.walk() if node.replayed}
        for path, node in self.walk():
            if not any(path[: end + 1] in replayed for end in range(len(path))):
                yield node

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
            path = tuple(_ids(entry.get("path"), "path"))
            parent = by_path.get(path[:-1])
            if not path or parent is None or path[-1] != len(parent.children):
                raise InputError(f"the JSON of a tree has no parent of the node {list(path)}: restore its file")
            by_path[path] = node
            parent.children.append(node)
        return tree


def exchanges_in_tree(width: int, turns: int) -> int:
    """Return the number of exchanges in a whole tree: width + width^2 + ... + width^turns."""
    return sum(width**turn for turn in range(1, turns + 1))


def _null_if_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _null_if_nan(number) for name, number in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _check(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        actual = "nothing" if value is None else type(value).__name__
        raise InputError(f"{name} holds {actual} instead of {kind.__name__}: restore the file it is from")
    return value


def _number(value: Any, name: str) -> float:
    try:
        return float(value if isinstance(value, float) else _check(value, int, name))
    except OverflowError:
        raise InputError(f"{name} holds a number of {len(str(value))} digits: restore the file it is from") from None


def _nan_if_null(value: Any, name: str) -> float:
    return math.nan if value is None else _number(value, name)


def _none_if_nan(value: Any, name: str) -> float | None:
    number = _nan_if_null(value, name)
    return None if math.isnan(number) else number


def _false_if_null(value: Any, name: str) -> bool:
    if value not in (None, False, True):
        raise InputError(f"{name} holds {value!r:.80}, not true or false: restore the file it is from")
    return bool(value)


def _named_numbers(value: Any, name: str) -> dict[str, float]:
    return {key: _nan_if_null(number, f"{name} {key}") for key, number in _check(value, dict, name).items()}


def _ids(value: Any, name: str) -> list[int]:
    return [_check(number, int, name) for number in _check(value, list, name)]


def _turns(data: Any, name: str) -> Conversation:
    turns = []
    for pair in _check(data, list, name):
        speaker: Any
        speaker, text = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if speaker not in get_args(Speaker):
            raise InputError(
                f"{name} holds {pair!r:.80}, not a pair of a speaker and a text: restore the file it is from"
            )
        turns.append(Turn(speaker, _check(text, str, name)))
    return tuple(turns)


# The fields of a node in the order of its JSON, and the function that reads each.
_READERS: dict[str, Callable[[Any, str], Any]] = {
    "probe_logprob_per_token": _nan_if_null,
    "baseline_logprob_per_token": _nan_if_null,
    "scores": _named_numbers,
    "terms": _named_numbers,
    "reward": _none_if_nan,
    "credit": _none_if_nan,
    "error": lambda value, name: None if value is None else _check(value, str, name),
    "probe_cut": _false_if_null,  # older files have none
    "response_cut": _false_if_null,
    "replayed": _false_if_null,
    "prompt_ids": _ids,
    "probe_ids": _ids,
    "sampling_logprobs": lambda values, name: [_number(value, name) for value in _check(values, list, name)],
    "tester_logprob": _nan_if_null,
}
