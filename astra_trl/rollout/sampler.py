"""Growth of conversation trees: all trees of a batch grow one level at a time."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from astra_trl.backends.base import CachingSession, Logprobs, Sample, Session, derive_seed
from astra_trl.callables import describe
from astra_trl.conversation import Conversation, Exchange, Opening, as_conversation
from astra_trl.errors import InputError
from astra_trl.numbers import require_numbers
from astra_trl.progress import ProgressBar
from astra_trl.prompts.base import openings_of
from astra_trl.rewards.credit import set_credit
from astra_trl.rollout.parts import Parts, split
from astra_trl.rollout.records import Records
from astra_trl.rollout.replay import ReplayBuffer
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree, exchanges_in_tree

OnExchanges = Callable[[int], None]  # takes the number of exchanges that were added
# Takes openings (as trees) or exchanges, and the sessions that hold a row for each of them: those of the tester, of
# the target and, if a third model reads the probes, of that one.
OnRows = Callable[[Sequence[Tree | Node], Sequence[Session]], None]


def ignored(count: int) -> None:
    """Do nothing about new exchanges."""


class ASTSampler:
    """Grows conversation trees from a system and a prompt set.

    Args:
        system (`System`):
            Tester, target and reward.
        prompts (`Sequence[Opening]` or `str`):
            Openings (texts, or conversations of several turns), a `datasets.Dataset` of them, or an argument of
            `load_prompts`: a named prompt set, a local file, a Hub dataset id.
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
        if not hasattr(system, "tree_width"):
            raise InputError(f"the first argument must be a system, e.g. HFASTSystem(...), got {describe(system)}")
        tree_width = system.tree_width if tree_width is None else tree_width
        tree_depth = system.tree_depth if tree_depth is None else tree_depth
        require_numbers(tree_width=tree_width, tree_depth=tree_depth)
        self.system = system
        self.prompts = openings_of(prompts)
        self.tree_width = tree_width
        self.tree_depth = tree_depth
        self.parts = Parts()
        self.replay: ReplayBuffer | None = None  # within `replaying`

    @property
    def groups_per_tree(self) -> int:
        """Sibling groups of a whole tree: 1 + width + ... + width^(depth - 1)."""
        return sum(self.tree_width**level for level in range(self.tree_depth))

    @contextmanager
    def replaying(self, replay: ReplayBuffer) -> Iterator[None]:
        """Ask probes of a buffer again in the trees that are grown within the block."""
        self.replay = replay
        try:
            yield
        finally:
            self.replay = None

    def draw(self, seed: int, count: int) -> list[Opening]:
        """Return `count` random openings; none is repeated before each was drawn once."""
        order = random.Random(seed).sample(range(len(self.prompts)), min(len(self.prompts), count))
        return [self.prompts[order[number % len(order)]] for number in range(count)]

    def collect(self, trees: int, seed: int = 0, disable_tqdm: bool | None = None) -> Records:
        """Grow trees from random openings with the tester as it is now.

        `preferences()`, `groups()` and `transitions()` of the result are data sets for TRL's trainers. Equal seeds
        give equal trees as long as the models are the same. The progress bar is shown on a terminal; `disable_tqdm`
        hides it (`True`), or shows it everywhere (`False`). Raises `InputError` if `trees` is below 1.
        """
        require_numbers(trees=trees)
        seeds = [derive_seed(seed, number) for number in range(trees)]
        exchanges = trees * exchanges_in_tree(self.tree_width, self.tree_depth)
        with ProgressBar("collecting", exchanges, disable=disable_tqdm) as bar:
            return Records(self.grow(self.draw(seed, trees), seeds, bar.update))

    def grow(
        self, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
    ) -> list[Tree]:
        """Return one measured tree per opening. Trees that are too many for one batch are grown in several.

        A tree depends on its opening and its seed alone, not on the trees beside it.
        """
        trees = self.grow_unmeasured(openings, seeds, self.tree_depth, on_exchanges)
        measure_trees(self.system, trees)
        return trees

    def grow_unmeasured(
        self,
        openings: Sequence[Opening],
        seeds: Sequence[int],
        turns: int,
        on_exchanges: OnExchanges = ignored,
        on_rows: OnRows | None = None,
    ) -> list[Tree]:
        """Return one tree per opening with that many turns and without scores, rewards and credits."""
        system = self.system
        pairs = zip(openings, seeds, strict=True)
        trees = [Tree(system.prepare_opening(as_conversation(opening), seed)) for opening, seed in pairs]

        def grow_part(part: Sequence[int], sessions: Sequence[Session]) -> list[list[Node]]:
            if on_rows is not None:
                on_rows([trees[index] for index in part], sessions)
            return self.grow_below([trees[index].opening for index in part], sessions, turns, on_exchanges, on_rows)

        def open_part(part: Sequence[int]) -> list[Session]:
            return self._open([(trees[index], seeds[index]) for index in part])

        models = (system.tester, system.target, system.likelihood_backend)
        limits = [rows for model in models if (rows := getattr(model, "max_rows", None)) is not None]
        groups = self.parts.work(range(len(trees)), open_part, grow_part, min(limits, default=None))
        for tree, children in zip(trees, groups, strict=True):
            tree.children = children
        return trees

    def _open(self, trees: Sequence[tuple[Tree, int]]) -> list[Session]:
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

    def grow_below(
        self,
        contexts: Sequence[Conversation],
        sessions: Sequence[Session],
        turns: int,
        on_exchanges: OnExchanges = ignored,
        on_rows: OnRows | None = None,
    ) -> list[list[Node]]:
        """Return the sibling group of each context, with all exchanges below it. The sessions hold one row per
        context."""
        if turns == 0:
            return [[] for _ in contexts]
        width = self.tree_width
        children = [(row, sibling) for row in range(len(contexts)) for sibling in range(width)]
        unbranched = set(children)

        def grow_part(children: Sequence[tuple[int, int]], sessions: Sequence[Session]) -> list[Node]:
            branches = [session.branch(children) for session in sessions]
            tester, target, *reader = branches
            samples = tester.sample()
            part = [contexts[row] for row, _ in children]
            utterances, probes = self.system.probes_in(self._replay(children, part, samples))
            if utterances != samples:
                # The tester remembers only the part of an utterance that the target heard.
                branches[0] = tester = sessions[0].branch(children)
                tester.say(utterances)
            unbranched.difference_update(children)
            if not unbranched:
                release(sessions)
            nodes = answer_probes(self.system, part, utterances, probes, target, *reader)
            on_exchanges(len(nodes))
            if turns > 1 or on_rows is not None:
                for session in (tester, *reader):
                    session.append(self.system.tester_hears(nodes))
            if on_rows is not None:
                on_rows(nodes, branches)
            conversations = [node.exchange.conversation for node in nodes]
            below = self.grow_below(conversations, branches, turns - 1, on_exchanges, on_rows)
            for node, group in zip(nodes, below, strict=True):
                node.children = group
            return nodes

        nodes = self.parts.work(children, lambda _: sessions, grow_part, row_of=lambda child: child[0])
        return [list(siblings) for siblings in split(nodes, width)]

    def _replay(
        self, children: Sequence[tuple[int, int]], contexts: Sequence[Conversation], samples: Sequence[Sample]
    ) -> list[Sample]:
        """Return the samples, with earlier probes in place of some of them."""
        if self.replay is None:
            return list(samples)
        tester: Any = self.system.tester  # of transformers: no other can be trained
        replayed = []
        for (_, sibling), context, sample in zip(children, contexts, samples, strict=True):
            entry = self.replay.draw(context, sibling)
            if entry is not None:
                ids = tester.utterance_ids(entry.probe, ended=not entry.cut)
                sample = Sample(entry.probe, sample.prompt_ids, ids, cut=entry.cut, replayed=True)
            replayed.append(sample)
        return replayed


def release(sessions: Sequence[Session]) -> None:
    """Free what the sessions have computed, as the last branches were made."""
    for session in sessions:
        if isinstance(session, CachingSession):
            session.release()


def answer_probes(
    system: System,
    contexts: Sequence[Conversation],
    utterances: Sequence[Sample],
    probes: Sequence[str],
    target: Session,
    reader: Session | None = None,
) -> list[Node]:
    """Return the exchange of each probe, with the target's response and the probe's likelihood.

    The likelihood is read by the target's session or, if there is one, by the reader's.
    """
    likelihoods = target.append(system.target_hears(contexts, probes))
    if reader is not None:
        likelihoods = reader.append(probes)
    return [
        Node(
            Exchange(context, probe, response.text),
            utterance.prompt_ids,
            utterance.ids,
            _mean(likelihood),
            utterance.logprobs,
            tester_logprob=math.fsum(utterance.untempered_logprobs) if utterance.untempered_logprobs else math.nan,
            error=utterance.error or response.error,
            probe_cut=utterance.cut,
            response_cut=response.cut,
            replayed=utterance.replayed,
        )
        for context, utterance, probe, likelihood, response in zip(
            contexts, utterances, probes, likelihoods or [[]] * len(probes), target.sample(), strict=True
        )
    ]


def measure_trees(system: System, trees: Sequence[Tree]) -> None:
    """Set scores, rewards and credits of all exchanges. An exchange below a failed one has failed, too."""
    pass_errors_down(trees)
    system.measure([node for tree in trees for node in tree.nodes()])
    for tree in trees:
        set_credit(system.credit, tree)


def pass_errors_down(trees: Iterable[Tree]) -> None:
    """Set an error on every exchange below a failed one."""
    for tree in trees:
        for node in tree.nodes():  # parents before children
            if node.error is not None:
                for child in node.children:
                    child.error = child.error or "an earlier exchange of this conversation failed"


def _mean(logprobs: Logprobs) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
