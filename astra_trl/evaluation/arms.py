"""What a tester is compared with on the same openings, and how likely its probes are to the baseline."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from astra_trl.backends.base import Backend, Session, derive_seed
from astra_trl.conversation import ROLES, Conversation, Exchange, Opening, as_conversation
from astra_trl.rollout.sampler import ASTSampler, OnExchanges, ignored
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree

TESTER, BASELINE, OPENINGS = "tester", "baseline", "openings"


def with_roles(system: System, **roles: Any) -> System:
    """A copy of the system with other roles or scorers; `InputError` where they do not go together."""
    changed = copy.copy(system)
    for role, value in roles.items():
        setattr(changed, role, value)
    changed.check()
    return changed


def described(backend: Backend) -> dict[str, Any]:
    """What is known of a backend as JSON: its `description` where it has one, else its kind."""
    return getattr(backend, "description", None) or {"backend": type(backend).__name__}


def called(description: Mapping[str, Any]) -> str:
    """What the model of a description is called in figures."""
    return str(description.get("model") or description["backend"])


def heard_alone(opening: Conversation) -> Conversation:
    """The part of an opening that the target answers without a tester: through its last user's turn.

    The assistant's turns at its end are dropped, as they are answers already. It is empty if what then stands last is
    not a user's turn (a system message, or nothing): there is nothing to answer.
    """
    end = len(opening)
    while end and ROLES.get(opening[end - 1].speaker) == "assistant":
        end -= 1
    return opening[:end] if end and ROLES.get(opening[end - 1].speaker) == "user" else ()


def openings_alone(
    sampler: ASTSampler, openings: Sequence[Opening], seeds: Sequence[int], on_exchanges: OnExchanges = ignored
) -> list[Tree]:
    """What the target makes of openings without a tester: of each, one measured exchange whose probe is the last
    user's turn (see `heard_alone`); none if there is nothing to answer."""
    system = sampler.system
    trees = [
        Tree(system.opened(as_conversation(opening), seed)) for opening, seed in zip(openings, seeds, strict=True)
    ]
    heard = [heard_alone(tree.opening) for tree in trees]

    def sessions(part: Sequence[int]) -> list[Session]:
        prompts = [system.target_prompt(heard[index]) for index in part]
        return [system.target.open(prompts, seeds=[derive_seed(seeds[index], "target") for index in part])]

    def answered(part: Sequence[int], opened: Sequence[Session]) -> list[Node]:
        (session,) = opened
        said = session.branch([(row, 0) for row in range(len(part))]).sample()
        on_exchanges(len(part))
        nodes = []
        for index, response in zip(part, said, strict=True):
            *context, last = heard[index]
            nodes.append(Node(Exchange(tuple(context), last.text, response.text), [], [], error=response.error))
        return nodes

    asked = [index for index, conversation in enumerate(heard) if conversation]
    nodes = sampler.in_parts(asked, sessions, answered) if asked else []
    for index, node in zip(asked, nodes, strict=True):
        trees[index].children = [node]
    system.measure(nodes)
    return trees


def read_by(baseline: Backend, sampler: ASTSampler, trees: Sequence[Tree]) -> None:
    """Sets every exchange's `baseline_logprob_per_token`: how likely its probe is where the baseline is the tester."""

    def open_rows(part: Sequence[int]) -> list[Session]:
        prompts = [sampler.system.tester_prompt(trees[index].opening) for index in part]
        return [baseline.open(prompts, seeds=[0] * len(part), logprobs=True)]

    def read_part(part: Sequence[int], opened: Sequence[Session]) -> list[None]:
        _read(sampler, [trees[index].children for index in part], opened[0])
        return [None] * len(part)

    sampler.in_parts(range(len(trees)), open_rows, read_part)


def _read(sampler: ASTSampler, groups: Sequence[Sequence[Node]], session: Session) -> None:
    # The sibling groups that stand below each of the session's rows, and all that is below them.
    children = [(row, sibling) for row, group in enumerate(groups) for sibling in range(len(group))]
    nodes = [node for group in groups for node in group]

    def read_part(part: Sequence[int], _: Sequence[Session]) -> list[None]:
        below = session.branch([children[index] for index in part])
        some = [nodes[index] for index in part]
        logprobs = below.append([node.exchange.probe for node in some]) or [[]] * len(some)
        for node, row in zip(some, logprobs, strict=True):
            node.baseline_logprob_per_token = math.fsum(row) / len(row) if row else math.nan
        if any(node.children for node in some):
            below.append(sampler.system.tester_hears(some))
            _read(sampler, [node.children for node in some], below)
        return [None] * len(part)

    if children:
        sampler.in_parts(range(len(children)), lambda _: [session], read_part)
