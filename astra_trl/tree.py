"""What grew from an opening: nodes (one exchange each) and trees, and their JSON form."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from astra_trl.conversation import Conversation, Exchange, Speaker, Turn
from astra_trl.errors import InputError

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Node:
    """One exchange of a tree with everything that was measured on it.

    Args:
        exchange (`Exchange`):
            What was said.
        prompt_ids (`list[int]`):
            Token ids the tester saw, exactly as fed (left-truncated where its window was full).
        probe_ids (`list[int]`):
            Token ids the tester sampled, the end-of-sequence token included if it was sampled.
        probe_logprob_per_token (`float`):
            Mean natural log-probability per token of the probe under the target; nan where there is none (an empty
            probe, a target that gives no log-probabilities).
        baseline_logprob_per_token (`float`):
            The same under the baseline; nan where evaluation has not asked it.
        sampling_logprobs (`list[float]`):
            Natural log-probability of each of the probe's ids under the tester that sampled it, at its temperature;
            empty where its backend gives none.
        tester_logprob (`float`):
            Natural log-probability of the probe's ids under the tester at temperature 1, their sum; nan if its backend
            gives none.
        scores (`dict[str, float]`):
            Harm in [0, 1] by scorer name; nan if the scorer could not tell, or if the response is empty.
        terms (`dict[str, float]`):
            Unweighted value of each reward term by name.
        reward (`float`, *optional*):
            What this exchange is worth by itself; `None` if a term is nan or the response is empty.
        credit (`float`, *optional*):
            The number the tester is trained on and siblings are compared by: the reward, or the reward with what
            follows backed up; `None` where there is no reward.
        error (`str`, *optional*):
            Why this exchange could not be completed.
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
        """Whether the target said anything. A failed exchange and an empty response are no answer."""
        return self.error is None and bool(self.exchange.response.strip())

    def to_json(self) -> dict[str, Any]:
        """A JSON object of everything but the children; nan becomes null, as JSON has no nan."""
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
        """The node that `to_json` wrote; `InputError` where it did not write that."""
        data = _typed(data, dict, "the exchange")
        probe, response = (_typed(data.get(name), str, name) for name in ("probe", "response"))
        return cls(
            exchange=Exchange(_turns(data.get("context"), "context"), probe, response),
            prompt_ids=_ids(data, "prompt_ids"),
            probe_ids=_ids(data, "probe_ids"),
            probe_logprob_per_token=_nan_if_null(data.get("probe_logprob_per_token"), "probe_logprob_per_token"),
            baseline_logprob_per_token=_nan_if_null(
                data.get("baseline_logprob_per_token"), "baseline_logprob_per_token"
            ),
            sampling_logprobs=[
                _number(value, "sampling_logprobs")
                for value in _typed(data.get("sampling_logprobs"), list, "sampling_logprobs")
            ],
            tester_logprob=_nan_if_null(data.get("tester_logprob"), "tester_logprob"),
            scores=_by_name(data, "scores"),
            terms=_by_name(data, "terms"),
            reward=_none_if_nan(data.get("reward"), "reward"),
            credit=_none_if_nan(data.get("credit"), "credit"),
            error=None if data.get("error") is None else _typed(data["error"], str, "error"),
        )


@dataclass(slots=True, eq=False)
class Tree:
    """An opening and all that grew from it."""

    opening: Conversation
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[tuple[int, ...], Node]]:
        """Every node with its path (child indices from the root), parents before children."""
        stack: list[tuple[tuple[int, ...], Node]] = [
            ((index,), node) for index, node in reversed(list(enumerate(self.children)))
        ]
        while stack:
            path, node = stack.pop()
            yield path, node
            stack.extend(((*path, index), child) for index, child in reversed(list(enumerate(node.children))))

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children."""
        return (node for _, node in self.walk())

    def sibling_groups(self) -> Iterator[list[Node]]:
        """The children of the opening, then the children of every node that has any."""
        if self.children:
            yield self.children
        yield from (node.children for node in self.nodes() if node.children)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns into an equal tree."""
        return {
            "opening": [[turn.speaker, turn.text] for turn in self.opening],
            "nodes": [{"path": list(path), **node.to_json()} for path, node in self.walk()],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tree":
        """The tree that `to_json` wrote; `InputError` where it did not write that."""
        data = _typed(data, dict, "the tree")
        tree = cls(_turns(data.get("opening"), "opening"))
        by_path: dict[tuple[int, ...], Tree | Node] = {(): tree}
        for entry in _typed(data.get("nodes"), list, "nodes"):
            node = Node.from_json(entry)
            path = tuple(_ids(entry, "path"))
            above = by_path.get(path[:-1])
            if not path or above is None or path[-1] != len(above.children):
                raise InputError(f"a tree's JSON has no place for a node of path {list(path)}: restore its file")
            by_path[path] = node
            above.children.append(node)
        return tree


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan_if_null(value: Any, name: str) -> float:
    return math.nan if value is None else _number(value, name)


def _none_if_nan(value: Any, name: str) -> float | None:
    number = _nan_if_null(value, name)
    return None if math.isnan(number) else number


def _number(value: Any, name: str) -> float:
    try:
        return float(value if isinstance(value, float) else _typed(value, int, name))
    except OverflowError:
        raise InputError(f"{name} holds a number of {len(str(value))} digits: restore the file it is from") from None


def _by_name(data: dict[str, Any], name: str) -> dict[str, float]:
    return {key: _nan_if_null(value, f"{name} {key}") for key, value in _typed(data.get(name), dict, name).items()}


def _ids(data: dict[str, Any], name: str) -> list[int]:
    return [_typed(value, int, name) for value in _typed(data.get(name), list, name)]


def _turns(data: Any, name: str) -> Conversation:
    turns = []
    for pair in _typed(data, list, name):
        speaker, text = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        known = next((known for known in get_args(Speaker) if known == speaker), None)
        if known is None:
            raise InputError(
                f"{name} holds {pair!r:.80}, no pair of a speaker and a text: restore the file it is from"
            )
        turns.append(Turn(known, _typed(text, str, name)))
    return tuple(turns)


def _typed(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(f"{name} holds {found} in place of {kind.__name__}: restore the file it is from")
    return value
