"""Grows every tree of a batch one level at a time."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from astra_trl.backends.base import Logprobs, OutOfMemory, Session, derive_seed
from astra_trl.conversation import Conversation, Exchange, Opening, Turn, as_conversation
from astra_trl.errors import InputError
from astra_trl.prompts.base import cleaned, load_prompts
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class ASTSampler:
    """Grows conversation trees from a system and a prompt set.

    Args:
        system (`System`):
            Who talks.
        prompts (`Sequence[Opening]` or `str`):
            Openings (texts, or conversations of several turns), or what `load_prompts` takes: a named prompt set, a
            local file, a Hub dataset id.
        tree_width (`int`, *optional*, defaults to `2`):
            Probes per node; the siblings that are compared.
        tree_depth (`int`, *optional*, defaults to `3`):
            Turns.
    """

    def __init__(
        self, system: System, prompts: Sequence[Opening] | str, tree_width: int = 2, tree_depth: int = 3
    ) -> None:
        for name, value in (("tree_width", tree_width), ("tree_depth", tree_depth)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.system = system
        self.prompts = checked_prompts(load_prompts(prompts) if isinstance(prompts, str) else prompts)
        self.tree_width = tree_width
        self.tree_depth = tree_depth
        self._rows_that_fit: int | None = None  # known once memory has run out

    @property
    def groups_per_tree(self) -> int:
        """Sibling groups of a whole tree: 1 + width + ... + width^(depth - 1)."""
        return sum(self.tree_width**level for level in range(self.tree_depth))

    def grow(
        self,
        openings: Sequence[Opening],
        seeds: Sequence[int],
        on_exchanges: Callable[[int], None] = lambda count: None,
        held_out: bool = True,
    ) -> list[Tree]:
        """One measured tree an opening, all grown together level by level, in parts where they are too many at a time.

        A tree depends on its opening and its seed alone, not on the trees beside it. `on_exchanges` is told how many
        exchanges have been added; `held_out=False` leaves out the scorers that only evaluation reports.
        """
        trees = [Tree(as_conversation(opening)) for opening in openings]

        def grow_part(part: Sequence[int]) -> list[list[Node]]:
            sessions = self._open([(trees[index], seeds[index]) for index in part])
            return self._grow([trees[index].opening for index in part], sessions, 1, on_exchanges)

        everything = self._open(list(zip(trees, seeds, strict=True)))
        for tree, children in zip(trees, self._in_parts(range(len(trees)), everything, grow_part), strict=True):
            tree.children = children
        nodes = [node for tree in trees for node in tree.nodes()]
        for node in nodes:  # parents before children
            if node.error is not None:
                for child in node.children:
                    child.error = child.error or "an earlier exchange of this conversation failed"
        self.system.measure(nodes, held_out)
        return trees

    def _open(self, trees: Sequence[tuple[Tree, int]]) -> list[Session]:
        """Sessions of tester and target, and of the baseline where that tells how likely a probe is."""
        system = self.system
        reader = system.likelihood_backend
        tester_prompts = [system.tester_prompt(tree.opening) for tree, _ in trees]
        sessions: list[Session] = [
            system.tester.open(tester_prompts, seeds=[derive_seed(seed, "tester") for _, seed in trees]),
            system.target.open(
                [system.target_prompt(tree.opening) for tree, _ in trees],
                seeds=[derive_seed(seed, "target") for _, seed in trees],
                logprobs=reader is system.target,
            ),
        ]
        if reader is not None and reader is not system.target:
            sessions.append(reader.open(tester_prompts, seeds=[seed for _, seed in trees], logprobs=True))
        return sessions

    def _grow(
        self,
        contexts: Sequence[Conversation],
        sessions: Sequence[Session],
        turn: int,
        on_exchanges: Callable[[int], None],
    ) -> list[list[Node]]:
        """The sibling group below each context, and all below it; the sessions hold a row for each context."""
        last = turn == self.tree_depth

        def grow_part(children: Sequence[tuple[int, int]]) -> list[Node]:
            branches = [session.branch(children) for session in sessions]
            tester, target, *reader = branches
            probes = tester.sample()
            texts = [probe.text for probe in probes]
            likelihoods = target.append(texts)
            for session in reader:
                likelihoods = session.append(texts)
            responses = target.sample()
            for session in () if last else (tester, *reader):
                session.append([response.text for response in responses])
            nodes = [
                Node(
                    Exchange(contexts[row], probe.text, response.text),
                    probe.prompt_ids,
                    probe.ids,
                    _mean(likelihood),
                    probe.logprobs,
                    error=probe.error or response.error,
                )
                for (row, _), probe, likelihood, response in zip(
                    children, probes, likelihoods or [[]] * len(children), responses, strict=True
                )
            ]
            on_exchanges(len(nodes))
            if not last:
                below = self._grow([node.exchange.conversation for node in nodes], branches, turn + 1, on_exchanges)
                for node, group in zip(nodes, below, strict=True):
                    node.children = group
            return nodes

        width = self.tree_width
        children = [(row, sibling) for row in range(len(contexts)) for sibling in range(width)]
        nodes = self._in_parts(children, sessions, grow_part)
        return [nodes[start : start + width] for start in range(0, len(nodes), width)]

    def _in_parts(
        self, items: Sequence[T], sessions: Iterable[Session], work: Callable[[Sequence[T]], list[R]]
    ) -> list[R]:
        """The results for all items: at once, or part after part, each with all that grows from it, where they are
        more than the sessions take or turn out not to fit in memory."""
        limits = [session.max_rows for session in sessions]
        limit = min(limit for limit in (*limits, self._rows_that_fit, len(items)) if limit is not None)
        count = math.ceil(len(items) / max(limit, 1))
        if count <= 1:
            try:
                return work(items)
            except OutOfMemory as error:
                if len(items) == 1:
                    raise
                reason = str(error).strip().split("\n")[0]
            # Here, where the failed attempt is no longer held by its error.
            self._fewer_rows(len(items) // 2, reason)
            count = 2
        bounds = [len(items) * part // count for part in range(count + 1)]
        results = []
        for start, stop in itertools.pairwise(bounds):
            results += self._in_parts(items[start:stop], sessions, work)
        return results

    def _fewer_rows(self, rows: int, reason: str) -> None:
        if self._rows_that_fit is None:
            logger.warning("out of memory, so conversations are grown %d at a time from here on: %s", rows, reason)
        self._rows_that_fit = rows


def checked_prompts(prompts: Sequence[Opening]) -> Sequence[Opening]:
    """The prompts; `InputError` where there are none or one is neither text nor turns, broken or blank."""
    if not len(prompts):
        raise InputError("the prompt set is empty: give at least one opening")
    for index, prompt in enumerate(prompts):
        turns = prompt if isinstance(prompt, tuple) else (prompt,)
        for turn in turns:
            if not isinstance(turn, Turn if turns is prompt else str):
                raise InputError(
                    f"prompt {index} is not text but {type(turn).__name__}: a prompt set is a list of strings, or of "
                    "tuples of Turn"
                )
        try:
            texts = [cleaned(turn.text) for turn in as_conversation(prompt)]
        except ValueError as error:
            raise InputError(f"prompt {index} {error}: mend or remove it") from None
        if not any(texts):
            raise InputError(f"prompt {index} is empty: drop blank openings")
    return prompts


def _mean(logprobs: Logprobs) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
