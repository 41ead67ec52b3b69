"""Arms that a tester is compared with on the same openings, and the likelihood of its probes under the baseline."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from astra_trl.backends.base import Backend, Session, derive_seed
from astra_trl.conversation import ROLES, Conversation, Exchange, Opening, as_conversation
from astra_trl.evaluation.results import BASELINE as BASELINE
from astra_trl.evaluation.results import OPENINGS as OPENINGS
from astra_trl.evaluation.results import TESTER as TESTER
from astra_trl.progress import DELAY, ProgressBar
from astra_trl.rollout.sampler import ASTSampler, OnExchanges, ignored
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree


def replace_roles(system: System, **roles: Any) -> System:
    """Return a copy of the system with other roles or scorers; `InputError` if they do not fit together."""
    changed = copy.copy(system)
    for role, value in roles.items():
        setattr(changed, role, value)
    changed.check()
    return changed


def describe(backend: Backend) -> dict[str, Any]:
    """Return a backend's `description` as JSON, or its kind if it has none."""
    return getattr(backend, "description", None) or {"backend": type(backend).__name__}


def model_name(description: Mapping[str, Any]) -> str:
    """Return the name in figures of the model of a description."""
    return str(description.get("model") or description["backend"])


def answerable_part(opening: Conversation) -> Conversation:
    """Return the part of an opening that the target answers without a tester: through the last turn of its user.

    The assistant's turns at its end are dropped, because they are answers already. The part is empty if the turn
    before them is not a user's (a system message), or if there is none.
    """
    end = len(opening)
    while end and ROLES.get(opening[end - 1].speaker) == "assistant":
        end -= 1
    return opening[:end] if end and ROLES.get(opening[end - 1].speaker) == "user" else ()


def openings_alone(
    sampler: ASTSampler, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
) -> list[Tree]:
    """Return one tree per opening, with the target's response to it without a tester.

    A tree has one measured exchange, whose probe is the user's last turn (see `answerable_part`), or none if there is
    nothing to answer.
    """
    system = sampler.system
    trees = [
        Tree(system.prepare_opening(as_conversation(opening), seed))
        for opening, seed in zip(openings, seeds, strict=True)
    ]
    parts = [answerable_part(tree.opening) for tree in trees]

    def open_rows(rows: Sequence[int]) -> Session:
        prompts = [system.target_prompt(parts[row]) for row in rows]
        return system.target.open(prompts, seeds=[derive_seed(seeds[row], "target") for row in rows])

    def respond(rows: Sequence[int], sessions: Sequence[Session]) -> list[Node]:
        samples = sessions[0].branch([(index, 0) for index in range(len(rows))]).sample()
        on_exchanges(len(rows))
        nodes = []
        for row, response in zip(rows, samples, strict=True):
            *context, last = parts[row]
            exchange = Exchange(tuple(context), last.text, response.text)
            nodes.append(Node(exchange, [], [], error=response.error, response_cut=response.cut))
        return nodes

    rows = [row for row, part in enumerate(parts) if part]
    nodes = sampler.parts.work(rows, lambda some: [open_rows(some)], respond) if rows else []
    for row, node in zip(rows, nodes, strict=True):
        trees[row].children = [node]
    system.measure(nodes)
    return trees


def add_baseline_logprobs(baseline: Backend, sampler: ASTSampler, trees: Sequence[Tree]) -> None:
    """Set `baseline_logprob_per_token` of every exchange: its probe's mean log-probability with the baseline in the
    tester's place."""
    exchanges = sum(1 for tree in trees for _ in tree.nodes())

    def open_rows(rows: Sequence[int]) -> list[Session]:
        prompts = [sampler.system.tester_prompt(trees[row].opening) for row in rows]
        return [baseline.open(prompts, seeds=[0] * len(rows), logprobs=True)]

    def read_part(rows: Sequence[int], sessions: Sequence[Session]) -> list[None]:
        _add_logprobs(sampler, [trees[row].children for row in rows], sessions[0], bar.update)
        return [None] * len(rows)

    with ProgressBar("reading probes", exchanges, delay=DELAY) as bar:
        sampler.parts.work(range(len(trees)), open_rows, read_part)


def _add_logprobs(
    sampler: ASTSampler, groups: Sequence[Sequence[Node]], session: Session, on_exchanges: OnExchanges
) -> None:
    # The sibling group below each of the session's rows, and all exchanges below the group.
    children = [(row, sibling) for row, group in enumerate(groups) for sibling in range(len(group))]
    nodes = [node for group in groups for node in group]

    def read_part(indices: Sequence[int], _: Sequence[Session]) -> list[None]:
        below = session.branch([children[index] for index in indices])
        part = [nodes[index] for index in indices]
        logprobs = below.append([node.exchange.probe for node in part]) or [[]] * len(part)
        for node, row in zip(part, logprobs, strict=True):
            node.baseline_logprob_per_token = math.fsum(row) / len(row) if row else math.nan
        on_exchanges(len(part))
        if any(node.children for node in part):
            below.append(sampler.system.tester_hears(part))
            _add_logprobs(sampler, [node.children for node in part], below, on_exchanges)
        return [None] * len(indices)

    if children:
        sampler.parts.work(
            range(len(children)), lambda _: [session], read_part, row_of=lambda index: children[index][0]
        )
