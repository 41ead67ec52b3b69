"""Trees to records: pairs, groups and single exchanges that a tester can be trained on."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import Dataset

from astra_trl.conversation import TESTER_ROLES, Turn, as_messages, as_text
from astra_trl.errors import InputError
from astra_trl.tree import Node, Tree

Record = dict[str, Any]

# How contexts and probes are written: "text", "conversational" (messages in which the tester is the assistant), or
# "ids" (token ids exactly as the tester saw and sampled them).
Format = Literal["text", "conversational", "ids"]


@dataclass(frozen=True)
class Records:
    """Grown and measured trees, and what there is in them to train on, as `datasets` in TRL's formats.

    Plain text puts a line break behind each utterance, as [`HFBackend`] does unless told otherwise. Ids are exact
    whatever the system is; their columns are named `prompt_ids`, `chosen_ids` and so on.
    """

    trees: Sequence[Tree]

    def preferences(self, format: Format = "text", min_margin: float = 0.0) -> Dataset:
        """A row a sibling group, in TRL's preference format: `prompt`, `chosen` (highest credit), `rejected` (lowest),
        and the credits as `chosen_reward` and `rejected_reward`.

        See `preference_pair` for the groups that are left out. Raises `InputError` where none is left.
        """
        ids = _ids(format)
        rows = [
            {
                f"prompt{ids}": _context(chosen, format),
                f"chosen{ids}": _probe(chosen, format),
                f"rejected{ids}": _probe(rejected, format),
                "chosen_reward": chosen.credit,
                "rejected_reward": rejected.credit,
            }
            for _, _, chosen, rejected in _pairs(self.trees, min_margin)
        ]
        return self._dataset(rows, "pair")

    def groups(self, format: Format = "text", min_margin: float | None = None) -> Dataset:
        """A row a sibling group, in TRL's prompt-only format: `prompt`, and lists with an entry a sibling of what was
        said to it: `probe`, `response`, `reward` (the credit) and `sampling_logprobs`.

        See `usable_group` for the groups that are left out. Raises `InputError` where none is left.
        """
        ids = _ids(format)
        rows = [
            {
                f"prompt{ids}": _context(group[0], format),
                f"probe{ids}": [_probe(node, format) for node in group],
                "response": [_encodable(node.exchange.response) for node in group],
                "reward": [_credit(node) for node in group],
                "sampling_logprobs": [node.sampling_logprobs for node in group],
            }
            for _, _, group in _usable_groups(self.trees, min_margin)
        ]
        return self._dataset(rows, "group")

    def transitions(self, format: Format = "text") -> Dataset:
        """A row an exchange that has a credit, in TRL's prompt-completion format: `prompt`, `completion` (the probe),
        `response`, `scores`, `reward` (the credit) and `depth` (exchanges before it).

        With a column `label` made of `reward` or `scores` it is TRL's unpaired preference format, as for KTO; filtered
        by them it is what SFT may learn from. Raises `InputError` where no exchange has a credit.
        """
        ids = _ids(format)
        rows = [
            {
                f"prompt{ids}": _context(node, format),
                f"completion{ids}": _probe(node, format),
                "response": _encodable(node.exchange.response),
                "scores": {_encodable(name): score for name, score in node.scores.items()},
                "reward": node.credit,
                "depth": depth_of(tree, node),
            }
            for tree in self.trees
            for node in tree.nodes()
            if _credit(node) is not None
        ]
        return self._dataset(rows, "exchange")

    def _dataset(self, rows: list[Record], unit: str) -> Dataset:
        if not rows:
            raise InputError(no_records_reason(self.trees, unit))
        return Dataset.from_list(rows)


def preference_pair(siblings: Sequence[Node], min_margin: float = 0.0) -> tuple[Node, Node] | None:
    """The sibling of highest and that of lowest credit, or `None` where they are no pair.

    They are none where the credits differ by `min_margin` or less, where the texts are equal, or where fewer than two
    siblings have a credit; nan is none.
    """
    credited = [(credit, node) for node in siblings if (credit := _credit(node)) is not None]
    if len(credited) < 2:
        return None
    highest, best = max(credited, key=lambda pair: pair[0])
    lowest, worst = min(credited, key=lambda pair: pair[0])
    if not highest - lowest > min_margin or best.exchange.probe == worst.exchange.probe:
        return None
    return best, worst


def usable_group(siblings: Sequence[Node], min_margin: float | None = None) -> bool:
    """Whether a policy gradient can compare the siblings: at least two have a credit, and the highest and the lowest
    differ by more than `min_margin`. `None` lets ties stand too."""
    credits = [credit for node in siblings if (credit := _credit(node)) is not None]
    return len(credits) >= 2 and (min_margin is None or max(credits) - min(credits) > min_margin)


def preference_records(trees: Iterable[Tree], min_margin: float = 0.0) -> list[Record]:
    """One record a pair: token ids exactly as sampled, for `DPOTrainer`'s collator, and the same as text.

    The ids are not the texts encoded again: that would change a few of them, and would put an EOS behind a probe that
    was cut at `max_new_tokens`.
    """
    return [
        {
            **_place(index, tree, chosen),
            "chosen": _encodable(chosen.exchange.probe),
            "rejected": _encodable(rejected.exchange.probe),
            "chosen_reward": chosen.credit,
            "rejected_reward": rejected.credit,
            "chosen_ids": chosen.probe_ids,
            "rejected_ids": rejected.probe_ids,
        }
        for index, tree, chosen, rejected in _pairs(trees, min_margin)
    ]


def group_records(trees: Iterable[Tree], min_margin: float | None = None) -> list[Record]:
    """One record a usable sibling group: its context, and a list with an entry a sibling of all else. The ids and
    their log-probabilities are those that the tree was grown with."""
    return [
        {
            **_place(index, tree, group[0]),
            "probe": [_encodable(node.exchange.probe) for node in group],
            "response": [_encodable(node.exchange.response) for node in group],
            "reward": [_credit(node) for node in group],
            "probe_ids": [node.probe_ids for node in group],
            "sampling_logprobs": [node.sampling_logprobs for node in group],
        }
        for index, tree, group in _usable_groups(trees, min_margin)
    ]


def supervised_records(trees: Iterable[Tree], chosen: Callable[[Iterable[Node]], Sequence[Node]]) -> list[Record]:
    """One record an exchange that is chosen: `input_ids` of its context and probe, and `labels` that are learnt of
    them, those of the probe, for `SFTTrainer`'s collator; and the same as text."""
    return [
        {
            **_place(index, tree, node),
            "completion": _encodable(node.exchange.probe),
            "input_ids": node.prompt_ids + node.probe_ids,
            "labels": [-100] * len(node.prompt_ids) + node.probe_ids,
        }
        for index, tree in enumerate(trees)
        for node in chosen(tree.nodes())
    ]


def no_records_reason(trees: Sequence[Tree], unit: str) -> str:
    """Why these trees hold no pair, group, ... to train on, in one line with the mend."""
    nodes = [node for tree in trees for node in tree.nodes()]
    rewards = {credit for node in nodes if (credit := _credit(node)) is not None}
    start = f"{len(trees)} trees with {len(nodes)} exchanges hold no {unit} to train on"
    if not rewards:
        return (
            f"{start}: no exchange has a reward, as in each one the call failed, the response is empty or a reward "
            "term is nan: check the target and the scorer"
        )
    if len(rewards) == 1:
        return f"{start}: all rewards tie at {rewards.pop():g}: choose a scorer that tells the responses apart"
    return (
        f"{start}: in every sibling group the best and the worst probe tie or say the same: raise the temperature or "
        "tree_width, or lower min_margin"
    )


def depth_of(tree: Tree, node: Node) -> int:
    """Exchanges before this one."""
    return (len(node.exchange.context) - len(tree.opening)) // 2


def _pairs(trees: Iterable[Tree], min_margin: float) -> Iterator[tuple[int, Tree, Node, Node]]:
    for index, tree in enumerate(trees):
        for group in tree.sibling_groups():
            pair = preference_pair(group, min_margin)
            if pair is not None:
                yield index, tree, *pair


def _usable_groups(trees: Iterable[Tree], min_margin: float | None) -> Iterator[tuple[int, Tree, Sequence[Node]]]:
    for index, tree in enumerate(trees):
        for group in tree.sibling_groups():
            if usable_group(group, min_margin):
                yield index, tree, group


def _place(index: int, tree: Tree, node: Node) -> Record:
    return {
        "tree": index,
        "depth": depth_of(tree, node),
        "prompt": _encodable(as_text(node.exchange.context)),
        "prompt_ids": node.prompt_ids,
    }


def _ids(format: Format) -> str:
    # What is behind the name of a column.
    if format not in get_args(Format):
        raise InputError(f"format={format!r}: choose one of {', '.join(get_args(Format))}")
    return "_ids" if format == "ids" else ""


def _context(node: Node, format: Format) -> Any:
    if format == "ids":
        return node.prompt_ids
    context = [Turn(turn.speaker, _encodable(turn.text)) for turn in node.exchange.context]
    return as_text(tuple(context)) if format == "text" else as_messages(context, TESTER_ROLES)


def _probe(node: Node, format: Format) -> Any:
    if format == "ids":
        return node.probe_ids
    text = _encodable(node.exchange.probe)
    return text if format == "text" else [{"role": "assistant", "content": text}]


def _credit(node: Node) -> float | None:
    return None if node.credit is None or math.isnan(node.credit) else node.credit


def _encodable(text: str) -> str:
    # Half a surrogate pair, which Arrow has no bytes for, as a question mark.
    return text.encode("utf-8", "replace").decode("utf-8")
