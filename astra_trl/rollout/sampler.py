"""Grows every tree of a batch one level at a time."""

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from astra_trl.backends.base import Logprobs, OutOfMemory, Sample, SavedRow, Session, derive_seed
from astra_trl.conversation import Conversation, Exchange, Opening, Turn, as_conversation
from astra_trl.errors import InputError
from astra_trl.prompts.base import openings_of
from astra_trl.rewards.credit import looks_ahead
from astra_trl.rollout.records import Records
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
OnExchanges = Callable[[int], None]  # is told how many exchanges have been added


def ignored(count: int) -> None:
    """Tells nobody about new exchanges."""


@dataclass(frozen=True)
class Context:
    """Where the tester is to speak: a conversation so far, and what each side goes on from.

    Args:
        conversation (`Conversation`):
            The opening and the exchanges since.
        tree (`int`), path (`tuple[int, ...]`):
            The tree it is from, and the child indices that lead to its last exchange.
        tester (`SavedRow`), target (`SavedRow`):
            Each side's.
        reader (`SavedRow`, *optional*):
            The baseline's, where that tells how likely a probe is.
    """

    conversation: Conversation
    tree: int
    path: tuple[int, ...]
    tester: SavedRow
    target: SavedRow
    reader: SavedRow | None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Context":
        """The context whose fields these are, as `dataclasses.asdict` gives them."""
        return cls(
            tuple(Turn(**turn) for turn in data["conversation"]),
            data["tree"],
            tuple(data["path"]),
            SavedRow(**data["tester"]),
            SavedRow(**data["target"]),
            None if data["reader"] is None else SavedRow(**data["reader"]),
        )


# Each side's row behind an exchange or an opening; a dictionary, as a part that runs out of memory is grown again.
Saved = dict[Tree | Node, list[SavedRow]]


class ASTSampler:
    """Grows conversation trees from a system and a prompt set.

    Args:
        system (`System`):
            Who talks.
        prompts (`Sequence[Opening]` or `str`):
            Openings (texts, or conversations of several turns), a `datasets.Dataset` of them, or what `load_prompts`
            takes: a named prompt set, a local file, a Hub dataset id.
        tree_width (`int`, *optional*):
            Probes per node; the siblings that are compared. Defaults to the system's, 2 in most.
        tree_depth (`int`, *optional*):
            Turns. Defaults to the system's, 3 in most.
    """

    def __init__(
        self,
        system: System,
        prompts: Sequence[Opening] | str,
        tree_width: int | None = None,
        tree_depth: int | None = None,
    ) -> None:
        tree_width = system.tree_width if tree_width is None else tree_width
        tree_depth = system.tree_depth if tree_depth is None else tree_depth
        for name, value in (("tree_width", tree_width), ("tree_depth", tree_depth)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.system = system
        self.prompts = openings_of(prompts)
        self.tree_width = tree_width
        self.tree_depth = tree_depth
        self._rows_that_fit: int | None = None  # known once memory has run out

    @property
    def groups_per_tree(self) -> int:
        """Sibling groups of a whole tree: 1 + width + ... + width^(depth - 1)."""
        return sum(self.tree_width**level for level in range(self.tree_depth))

    def draw(self, seed: int, count: int) -> list[Opening]:
        """`count` random openings: without repetition as far as the set goes, as a round should not see the same one
        twice for no reason."""
        drawn = random.Random(seed).sample(range(len(self.prompts)), min(len(self.prompts), count))
        return [self.prompts[drawn[number % len(drawn)]] for number in range(count)]

    def collect(self, trees: int, seed: int = 0, on_exchanges: OnExchanges = ignored) -> Records:
        """Trees grown from random openings by the tester as it is now: `preferences()`, `groups()` or `transitions()`
        of what is returned are data sets for any of TRL's trainers.

        Equal seeds give equal trees as long as the models are the same.
        """
        if trees < 1:
            raise InputError(f"trees must be at least 1, got {trees}")
        seeds = [derive_seed(seed, number) for number in range(trees)]
        return Records(self.grow(self.draw(seed, trees), seeds, on_exchanges))

    def grow(
        self, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
    ) -> list[Tree]:
        """One measured tree an opening, all grown together level by level, in parts where they are too many at a time.

        A tree depends on its opening and its seed alone, not on the trees beside it.
        """
        trees = self._grown(openings, seeds, self.tree_depth, on_exchanges)
        self.system.measure([node for tree in trees for node in tree.nodes()])
        for tree in trees:
            self.system.credit(tree)
        return trees

    def contexts(
        self, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
    ) -> list[Context]:
        """Wherever the tester speaks in one tree an opening: at the openings and after every exchange but the last
        turn's, which is not grown. Nothing is measured; what follows a failed exchange is left out."""
        saved: Saved = {}
        trees = self._grown(openings, seeds, self.tree_depth - 1, on_exchanges, saved)

        def context(conversation: Conversation, index: int, path: tuple[int, ...], place: Tree | Node) -> Context:
            tester, target, *reader = saved[place]
            return Context(conversation, index, path, tester, target, reader[0] if reader else None)

        contexts = []
        for index, tree in enumerate(trees):
            contexts.append(context(tree.opening, index, (), tree))
            contexts += [
                context(node.exchange.conversation, index, path, node)
                for path, node in tree.walk()
                if node.error is None
            ]
        return contexts

    def answer(self, contexts: Sequence[Context], probes: Sequence[Sample], seeds: Sequence[int]) -> list[Node]:
        """The measured exchange that each probe leads to: what the target answers in its context; and below it the
        turns that the tree had left, where the system's credit needs them."""
        system = self.system
        ahead = looks_ahead(system.credit)
        reader = system.likelihood_backend

        def sessions(part: Sequence[int]) -> list[Session]:
            some = [contexts[index] for index in part]
            target = [context.target for context in some]
            opened: list[Session] = [system.target.reopen(target, logprobs=reader is system.target)]
            if reader is not None and reader is not system.target:
                rows = [context.reader for context in some if context.reader is not None]
                opened.append(reader.reopen(rows, logprobs=True))
            return opened

        def answer_part(part: Sequence[int]) -> list[Node]:
            # As a child of the context, so that one context is answered anew with each seed.
            children = [(row, seeds[index]) for row, index in enumerate(part)]
            target, *reader = [session.branch(children) for session in sessions(part)]
            said, texts = system.probes_in([probes[i] for i in part])
            nodes = _exchanges(system, [contexts[i].conversation for i in part], said, texts, target, *reader)
            if ahead:
                tester = system.tester.reopen([contexts[i].tester for i in part]).branch(children)
                tester.say(said)
                for session in (tester, *reader):
                    session.append(system.tester_hears(nodes))
                self._grow_on(nodes, [contexts[i].path for i in part], [tester, target, *reader])
            return nodes

        everything = range(len(contexts))
        nodes = self.in_parts(everything, sessions(everything), answer_part)
        trees = [Tree(node.exchange.context, [node]) for node in nodes]
        _pass_errors_on(trees)
        system.measure([node for tree in trees for node in tree.nodes()])
        for tree in trees:
            system.credit(tree)
        return nodes

    def _grow_on(self, nodes: Sequence[Node], paths: Sequence[tuple[int, ...]], sessions: Sequence[Session]) -> None:
        """Grows what its tree has left below each node, which stands below its path and in its row of the sessions."""
        left = [self.tree_depth - 1 - len(path) for path in paths]
        for turns in set(left) - {0}:
            rows = [row for row, count in enumerate(left) if count == turns]
            some = [session.branch([(row, 0) for row in rows]) for session in sessions]
            conversations = [nodes[row].exchange.conversation for row in rows]
            for row, group in zip(rows, self._grow(conversations, some, turns, ignored, None), strict=True):
                nodes[row].children = group

    def _grown(
        self,
        openings: Sequence[Opening],
        seeds: Sequence[int],
        turns: int,
        on_exchanges: OnExchanges,
        saved: Saved | None = None,
    ) -> list[Tree]:
        opened = self.system.opened
        trees = [Tree(opened(as_conversation(opening), seed)) for opening, seed in zip(openings, seeds, strict=True)]

        def grow_part(part: Sequence[int]) -> list[list[Node]]:
            sessions = self._open([(trees[index], seeds[index]) for index in part])
            if saved is not None:
                saved.update(_saved([trees[index] for index in part], sessions))
            return self._grow([trees[index].opening for index in part], sessions, turns, on_exchanges, saved)

        everything = self._open(list(zip(trees, seeds, strict=True)))
        for tree, children in zip(trees, self.in_parts(range(len(trees)), everything, grow_part), strict=True):
            tree.children = children
        _pass_errors_on(trees)
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
        turns: int,
        on_exchanges: OnExchanges,
        saved: Saved | None,
    ) -> list[list[Node]]:
        """The sibling group below each context, and all below it for that many turns; the sessions hold a row for each
        context. What all sides go on from behind each exchange is put into `saved`."""
        if turns == 0:
            return [[] for _ in contexts]

        def grow_part(children: Sequence[tuple[int, int]]) -> list[Node]:
            branches = [session.branch(children) for session in sessions]
            tester, target, *reader = branches
            sampled = tester.sample()
            said, texts = self.system.probes_in(sampled)
            if said != sampled:
                # The tester remembers of an utterance what was heard of it.
                branches[0] = tester = sessions[0].branch(children)
                tester.say(said)
            nodes = _exchanges(self.system, [contexts[row] for row, _ in children], said, texts, target, *reader)
            on_exchanges(len(nodes))
            if turns > 1 or saved is not None:
                for session in (tester, *reader):
                    session.append(self.system.tester_hears(nodes))
            if saved is not None:
                saved.update(_saved(nodes, branches))
            conversations = [node.exchange.conversation for node in nodes]
            below = self._grow(conversations, branches, turns - 1, on_exchanges, saved)
            for node, group in zip(nodes, below, strict=True):
                node.children = group
            return nodes

        width = self.tree_width
        children = [(row, sibling) for row in range(len(contexts)) for sibling in range(width)]
        nodes = self.in_parts(children, sessions, grow_part)
        return [nodes[start : start + width] for start in range(0, len(nodes), width)]

    def in_parts(
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
            results += self.in_parts(items[start:stop], sessions, work)
        return results

    def _fewer_rows(self, rows: int, reason: str) -> None:
        if self._rows_that_fit is None:
            logger.warning("out of memory, so conversations are grown %d at a time from here on: %s", rows, reason)
        self._rows_that_fit = rows


def _exchanges(
    system: System,
    contexts: Sequence[Conversation],
    said: Sequence[Sample],
    texts: Sequence[str],
    target: Session,
    reader: Session | None = None,
) -> list[Node]:
    """The exchange of each probe. The probes' likelihood is read by the target's session or, if there is one, by the
    reader's."""
    likelihoods = target.append(system.target_hears(contexts, texts))
    if reader is not None:
        likelihoods = reader.append(texts)
    return [
        Node(
            Exchange(context, text, response.text),
            probe.prompt_ids,
            probe.ids,
            _mean(likelihood),
            probe.logprobs,
            tester_logprob=math.fsum(probe.untempered_logprobs) if probe.untempered_logprobs else math.nan,
            error=probe.error or response.error,
        )
        for context, probe, text, likelihood, response in zip(
            contexts, said, texts, likelihoods or [[]] * len(said), target.sample(), strict=True
        )
    ]


def _pass_errors_on(trees: Sequence[Tree]) -> None:
    for tree in trees:
        for node in tree.nodes():  # parents before children
            if node.error is not None:
                for child in node.children:
                    child.error = child.error or "an earlier exchange of this conversation failed"


def _saved(places: Sequence[T], sessions: Sequence[Session]) -> dict[T, list[SavedRow]]:
    rows = zip(*(session.saved() for session in sessions), strict=True)
    return {place: list(row) for place, row in zip(places, rows, strict=True)}


def _mean(logprobs: Logprobs) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
