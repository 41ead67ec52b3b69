"""Records of trees: pairs, groups and single exchanges that a tester can be trained on."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import Dataset

from astra_trl.conversation import TESTER_ROLES, Turn, as_messages, as_text
from astra_trl.errors import InputError
from astra_trl.tree import Node, Tree

Record = dict[str, Any]

# Format of contexts and probes: "text", "conversational" (messages in which the tester is the assistant), or "ids"
# (the token ids that the tester saw and sampled).
Format = Literal["text", "conversational", "ids"]


@dataclass(frozen=True)
class Records:
    """Data sets of grown and measured trees in TRL's formats.

    Plain text has a line break after each utterance, as with [`HFBackend`] unless specified otherwise. Ids are exact
    for every system; their columns are named `prompt_ids`, `chosen_ids` and so on.
    """

    trees: Sequence[Tree]

    def preferences(self, format: Format = "text", min_margin: float = 0.0) -> Dataset:
        """Return one row per sibling group in TRL's preference format: `prompt`, `chosen` (highest credit), `rejected`
        (lowest), and their credits as `chosen_reward` and `rejected_reward`.

        See `preference_pair` for the groups that are left out. Raises `InputError` if no group is left.
        """
        ids = _suffix(format)
        rows = [
            {
                f"prompt{ids}": _context(best, format),
                f"chosen{ids}": _probe(best, format),
                f"rejected{ids}": _probe(worst, format),
                "chosen_reward": best.credit,
                "rejected_reward": worst.credit,
            }
            for _, _, best, worst in _pairs(self.trees, min_margin)
        ]
        return self._dataset(rows, "pair")

    def groups(self, format: Format = "text", min_margin: float | None = None) -> Dataset:
        """Return one row per sibling group in TRL's prompt-only format: `prompt`, and lists with one entry per
        sibling: `probe`, `response`, `reward` (the credit) and `sampling_logprobs`.

        See `usable_group` for the groups that are left out. Raises `InputError` if no group is left.
        """
        ids = _suffix(format)
        rows = [
            {
                f"prompt{ids}": _context(group[0], format),
                f"probe{ids}": [_probe(node, format) for node in group],
                **_of_siblings(group),
            }
            for _, _, group in _usable_groups(self.trees, min_margin)
        ]
        return self._dataset(rows, "group")

    def transitions(self, format: Format = "text") -> Dataset:
        """Return one row per exchange that has a credit, in TRL's prompt-completion format: `prompt`, `completion`
        (the probe), `response`, `scores`, `reward` (the credit) and `depth` (number of exchanges before it).

        With a column `label` derived from `reward` or `scores` it is TRL's unpaired preference format, e.g. for KTO.
        Filtered by them it is a data set for SFT. Raises `InputError` if no exchange has a credit.
        """
        ids = _suffix(format)
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
    """Return the sibling of the highest and that of the lowest credit.

    Returns `None` if their credits differ by `min_margin` or less, if their texts are equal, or if fewer than two
    siblings have a credit (nan is not a credit).
    """
    ranking = [(credit, node) for node in siblings if (credit := _credit(node)) is not None]
    if len(ranking) < 2:
        return None
    highest, best = max(ranking, key=lambda pair: pair[0])
    lowest, worst = min(ranking, key=lambda pair: pair[0])
    if not highest - lowest > min_margin or best.exchange.probe == worst.exchange.probe:
        return None
    return best, worst


def usable_group(siblings: Sequence[Node], min_margin: float | None = None) -> bool:
    """Return `True` if a policy gradient can compare the siblings: at least two have a credit, and the highest and the
    lowest credit differ by more than `min_margin`. With `None` ties are usable too."""
    credits = [credit for node in siblings if (credit := _credit(node)) is not None]
    return len(credits) >= 2 and (min_margin is None or max(credits) - min(credits) > min_margin)


def preference_records(trees: Iterable[Tree], min_margin: float = 0.0) -> list[Record]:
    """Return one record per pair: the token ids as they were sampled, for `DPOTrainer`'s collator, and the texts.

    Encoding the texts again would change a few ids, and would append an EOS to a probe that was cut at
    `max_new_tokens`.
    """
    return [
        {
            **_place(index, tree, best),
            "chosen": _encodable(best.exchange.probe),
            "rejected": _encodable(worst.exchange.probe),
            "chosen_reward": best.credit,
            "rejected_reward": worst.credit,
            "chosen_ids": best.probe_ids,
            "rejected_ids": worst.probe_ids,
        }
        for index, tree, best, worst in _pairs(trees, min_margin)
    ]


def group_records(trees: Iterable[Tree], min_margin: float | None = None) -> list[Record]:
    """Return one record per usable sibling group: its context, and lists with one entry per sibling. The ids and their
    log-probabilities are those that the tree was grown with."""
    return [
        {
            **_place(index, tree, group[0]),
            "probe": [_encodable(node.exchange.probe) for node in group],
            **_of_siblings(group),
            "probe_ids": [node.probe_ids for node in group],
        }
        for index, tree, group in _usable_groups(trees, min_margin)
    ]


def supervised_records(trees: Iterable[Tree], select: Callable[[Iterable[Node]], Sequence[Node]]) -> list[Record]:
    """Return one record per selected exchange: `input_ids` of context and probe and the `labels` (those of the probe),
    for `SFTTrainer`'s collator, and the texts."""
    return [
        {
            **_place(index, tree, node),
            "completion": _encodable(node.exchange.probe),
            "input_ids": node.prompt_ids + node.probe_ids,
            "labels": [-100] * len(node.prompt_ids) + node.probe_ids,
        }
        for index, tree in enumerate(trees)
        for node in select(tree.nodes())
    ]


def no_records_reason(trees: Sequence[Tree], unit: str) -> str:
    """Return one line that says why these trees hold no pair, group, ... and how to fix it."""
    nodes = [node for tree in trees for node in tree.nodes()]
    rewards = {credit for node in nodes if (credit := _credit(node)) is not None}
    start = f"{len(trees)} trees with {len(nodes)} exchanges hold no {unit} to train on"
    if not rewards:
        return f"{start}: no exchange has a reward, {_why_unrewarded(nodes)}"
    if len(rewards) == 1:
        return f"{start}: all rewards tie at {rewards.pop():g}: choose a scorer that tells the responses apart"
    return (
        f"{start}: in every sibling group the best and the worst probe tie or say the same: raise the temperature or "
        "tree_width, or lower min_margin"
    )


def _why_unrewarded(nodes: Sequence[Node]) -> str:
    # Every cause with its count, and how to fix the first one: those after it may follow from it.
    errors = [node.error for node in nodes if node.error is not None]
    answered = [node for node in nodes if node.has_response]
    causes = [
        (len(errors), f"calls failed ({errors[0] if errors else ''})", "fix the target, or how it is called"),
        (len(nodes) - len(errors) - len(answered), "responses are empty", "raise min_new_tokens, or set chat"),
    ]
    for kind, fix in (("scores", "check the scorer"), ("terms", "check the term, and the model that it reads")):
        for name in dict.fromkeys(name for node in answered for name in getattr(node, kind)):
            nan = sum(math.isnan(getattr(node, kind).get(name, 0.0)) for node in answered)
            causes.append((nan, f"{kind} {name!r} are nan", fix))
    found = [cause for cause in causes if cause[0]]
    said = ", ".join(f"{count} {what}" for count, what, _ in found) or "there is none"
    return f"as {said}: {found[0][2] if found else 'grow more trees'}"


def depth_of(tree: Tree, node: Node) -> int:
    """Return the number of exchanges before this one."""
    return (len(node.exchange.context) - len(tree.opening)) // 2


def _groups(trees: Iterable[Tree]) -> Iterator[tuple[int, Tree, list[Node]]]:
    return ((index, tree, group) for index, tree in enumerate(trees) for group in tree.sibling_groups())


def _pairs(trees: Iterable[Tree], min_margin: float) -> Iterator[tuple[int, Tree, Node, Node]]:
    for index, tree, group in _groups(trees):
        if (pair := preference_pair(group, min_margin)) is not None:
            yield index, tree, *pair


def _usable_groups(trees: Iterable[Tree], min_margin: float | None) -> Iterator[tuple[int, Tree, list[Node]]]:
    return (place for place in _groups(trees) if usable_group(place[-1], min_margin))


def _of_siblings(group: Sequence[Node]) -> Record:
    return {
        "response": [_encodable(node.exchange.response) for node in group],
        "reward": [_credit(node) for node in group],
        "sampling_logprobs": [node.sampling_logprobs for node in group],
    }


def _place(index: int, tree: Tree, node: Node) -> Record:
    context = _encodable(as_text(node.exchange.context))
    return {"tree": index, "depth": depth_of(tree, node), "prompt": context, "prompt_ids": node.prompt_ids}


def _suffix(format: Format) -> str:
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
    # Arrow has no bytes for half a surrogate pair: it becomes a question mark.
    return text.encode("utf-8", "replace").decode("utf-8")
