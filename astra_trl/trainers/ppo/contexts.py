"""Contexts of fresh trees: collected at the beginning of a round, continued later with a probe that TRL samples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast

from astra_trl.backends.base import Backend, Logprobs, Sample, SavedRow, Session
from astra_trl.backends.hf import HFBackend
from astra_trl.backends.hf.refeeding import Feed, score
from astra_trl.conversation import Conversation, Opening, Turn, as_text
from astra_trl.errors import InputError
from astra_trl.rewards.base import Reward
from astra_trl.rewards.credit import looks_ahead
from astra_trl.rollout.collector import Draw, Draws
from astra_trl.rollout.records import Record
from astra_trl.rollout.sampler import (
    ASTSampler,
    OnExchanges,
    answer_probes,
    ignored,
    measure_trees,
    pass_errors_down,
)
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree, exchanges_in_tree


class SavableSession(Session, Protocol):
    """A session whose rows can be saved."""

    def saved(self) -> list[SavedRow]:
        """Return every row as plain data, without what was computed for it."""


class SavableBackend(Backend, Protocol):
    """A backend whose rows can be saved, and continued in another session, process or run."""

    def reopen(self, rows: Sequence[SavedRow], *, logprobs: bool = False) -> SavableSession:
        """Return a session with these rows, which may come from several sessions of this backend."""


def check_savable(system: System) -> None:
    """Raise `InputError` if conversations of one of the models cannot be saved."""
    for backend in (system.tester, system.target, system.likelihood_backend):
        if backend is not None and not hasattr(backend, "reopen"):
            raise InputError(
                f"PPO saves conversations, and {type(backend).__name__} cannot reopen them: implement its `reopen` "
                "and the `saved` of its sessions, or train with another algorithm"
            )


@dataclass(frozen=True)
class Context:
    """A conversation that the tester continues, with the saved row of each side.

    Args:
        conversation (`Conversation`):
            The opening and the exchanges since.
        tree (`int`), path (`tuple[int, ...]`):
            The tree it is from, and the child indices that lead to its last exchange.
        tester (`SavedRow`), target (`SavedRow`):
            Each side's row.
        reader (`SavedRow`, *optional*):
            The baseline's row, if the baseline gives the likelihood of probes.
    """

    conversation: Conversation
    tree: int
    path: tuple[int, ...]
    tester: SavedRow
    target: SavedRow
    reader: SavedRow | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Context":
        """Return the context whose fields `dataclasses.asdict` gave."""
        return cls(
            tuple(Turn(**turn) for turn in data["conversation"]),
            data["tree"],
            tuple(data["path"]),
            SavedRow(**data["tester"]),
            SavedRow(**data["target"]),
            None if data["reader"] is None else SavedRow(**data["reader"]),
        )

    @classmethod
    def from_record(cls, record: Record) -> "Context":
        """Return the context of a round's record."""
        return cls.from_json(json.loads(record["context"]))

    def to_record(self) -> Record:
        """Return a record for a round."""
        return {
            "tree": self.tree,
            "depth": len(self.path),
            "prompt": as_text(self.conversation),
            "prompt_ids": self.tester.prompt_ids,
            "context": json.dumps(asdict(self)),
        }


def grow_contexts(
    sampler: ASTSampler, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
) -> list[Context]:
    """Return every context of one tree per opening: the openings, and the conversations after every exchange but those
    of the last turn, which is not grown. Nothing is measured; contexts below a failed exchange are left out."""
    rows: dict[Tree | Node, tuple[SavedRow, ...]] = {}  # by place: a part that runs out of memory is grown again

    def save(places: Sequence[Tree | Node], sessions: Sequence[Session]) -> None:
        columns = [cast(SavableSession, session).saved() for session in sessions]
        rows.update(zip(places, zip(*columns, strict=True), strict=True))

    trees = sampler.grow_unmeasured(openings, seeds, sampler.tree_depth - 1, on_exchanges, save)
    pass_errors_down(trees)
    contexts = []
    for index, tree in enumerate(trees):
        contexts.append(Context(tree.opening, index, (), *rows[tree]))
        contexts += [
            Context(node.exchange.conversation, index, path, *rows[node])
            for path, node in tree.walk()
            if node.error is None
        ]
    return contexts


def collect_contexts(sampler: ASTSampler, draws: Draws, size: int) -> list[Context]:
    """Grow trees until they have `size` contexts or no draw is left, and return the contexts. A context's tree has the
    number of its draw. Every process grows its share, and all return the same."""
    contexts: list[Context] = []
    drawn, per_tree = 0, exchanges_in_tree(sampler.tree_width, sampler.tree_depth - 1)

    def grow(batch: Sequence[Draw]) -> list[list[Context]]:
        by_draw: list[list[Context]] = [[] for _ in batch]
        openings, seeds = [draw.opening for draw in batch], [draw.seed for draw in batch]
        for context in grow_contexts(sampler, openings, seeds, bar.update):
            by_draw[context.tree].append(replace(context, tree=batch[context.tree].number))
        return by_draw

    with draws.bar(draws.fewest_left(0, size, sampler.groups_per_tree) * per_tree) as bar:
        for batch in draws.batches(sampler):
            contexts += [context for by_draw in draws.share_out(batch, grow) for context in by_draw]
            drawn += len(batch)
            bar.total = (drawn + draws.fewest_left(drawn, size - len(contexts), sampler.groups_per_tree)) * per_tree
            bar.count_to(drawn * per_tree)
            if len(contexts) >= size:
                break
    return contexts


def answer_contexts(
    sampler: ASTSampler, contexts: Sequence[Context], utterances: Sequence[Sample], seeds: Sequence[int]
) -> list[Node]:
    """Return the measured exchange of each probe after the target has answered it in its context. If the system's
    credit looks ahead, the remaining turns of the tree are grown below it."""
    system = sampler.system
    reader = system.likelihood_backend
    ahead = looks_ahead(system.credit)

    def reopen(part: Sequence[int]) -> list[Session]:
        some = [contexts[index] for index in part]
        models: list[tuple[Any, list[SavedRow], bool]] = [
            (system.target, [context.target for context in some], reader is system.target)
        ]
        if reader is not None and reader is not system.target:
            models.append((reader, [context.reader for context in some if context.reader is not None], True))
        return [backend.reopen(rows, logprobs=logprobs) for backend, rows, logprobs in models]

    def answer(part: Sequence[int], sessions: Sequence[Session]) -> list[Node]:
        # As a child of the context, so that one context is answered differently with each seed.
        children = [(row, seeds[index]) for row, index in enumerate(part)]
        target, *readers = [session.branch(children) for session in sessions]
        kept, probes = system.probes_in([utterances[index] for index in part])
        nodes = answer_probes(system, [contexts[index].conversation for index in part], kept, probes, target, *readers)
        if ahead:
            rows = [contexts[index].tester for index in part]
            tester = cast(SavableBackend, system.tester).reopen(rows).branch(children)
            tester.say(kept)
            for session in (tester, *readers):
                session.append(system.tester_hears(nodes))
            turns = [sampler.tree_depth - 1 - len(contexts[index].path) for index in part]
            _grow_remaining(sampler, nodes, turns, [tester, target, *readers])
        return nodes

    nodes = sampler.parts.work(range(len(contexts)), reopen, answer)
    measure_trees(system, [Tree(node.exchange.context, [node]) for node in nodes])
    return nodes


def _grow_remaining(
    sampler: ASTSampler, nodes: Sequence[Node], turns: Sequence[int], sessions: Sequence[Session]
) -> None:
    for count in set(turns) - {0}:
        rows = [row for row, remaining in enumerate(turns) if remaining == count]
        branches = [session.branch([(row, 0) for row in rows]) for session in sessions]
        conversations = [nodes[row].exchange.conversation for row in rows]
        for row, group in zip(rows, sampler.grow_below(conversations, branches, count), strict=True):
            nodes[row].children = group


def with_logprobs(tester: HFBackend, samples: Sequence[Sample], reward: Reward) -> list[Sample]:
    """Return the samples with the log-probabilities under the tester that the reward needs: those at the sampling
    temperature, those at temperature 1, both or none."""
    changes: list[dict[str, Any]] = [{} for _ in samples]
    for name, temperature, needed in (
        ("logprobs", tester.sampling.temperature, reward.needs_sampling_logprobs),
        ("untempered_logprobs", 1.0, reward.needs_tester_logprob),
    ):
        if needed:
            for change, logprobs in zip(changes, sampling_logprobs(tester, samples, temperature), strict=True):
                change[name] = logprobs
    return [replace(sample, **change) for sample, change in zip(samples, changes, strict=True)]


def sampling_logprobs(tester: HFBackend, samples: Sequence[Sample], temperature: float) -> list[Logprobs]:
    """Return the natural log-probability of every id of the samples, after their prompts, at a temperature."""
    ids = [(sample.prompt_ids, sample.prompt_ids + sample.ids) for sample in samples]
    rows = [Feed(whole, len(prompt), len(whole)) for prompt, whole in ids]
    logprobs: list[Logprobs] = []
    with tester.inference():
        for start in range(0, len(rows), tester.max_rows):
            logprobs += score(tester, rows[start : start + tester.max_rows], temperature)
    return logprobs
