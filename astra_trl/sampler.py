"""Grows every tree of a batch one level at a time."""

import math
from collections.abc import Callable, Sequence

from astra_trl.backends.base import Logprobs, derive_seed
from astra_trl.conversation import Conversation, Exchange, Turn
from astra_trl.errors import InputError
from astra_trl.prompts.base import load_prompts
from astra_trl.systems.base import System
from astra_trl.tree import Node, Tree


class ASTSampler:
    """Grows conversation trees from a system and a prompt set.

    Args:
        system (`System`):
            Who talks.
        prompts (`Sequence[str]` or `str`):
            Openings, or what `load_prompts` takes: a named prompt set, a local file, a Hub dataset id.
        tree_width (`int`, *optional*, defaults to `2`):
            Probes per node; the siblings that are compared.
        tree_depth (`int`, *optional*, defaults to `3`):
            Turns.
    """

    def __init__(self, system: System, prompts: Sequence[str] | str, tree_width: int = 2, tree_depth: int = 3) -> None:
        for name, value in (("tree_width", tree_width), ("tree_depth", tree_depth)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.system = system
        self.prompts = checked_prompts(load_prompts(prompts) if isinstance(prompts, str) else prompts)
        self.tree_width = tree_width
        self.tree_depth = tree_depth

    @property
    def groups_per_tree(self) -> int:
        """Sibling groups of a whole tree: 1 + width + ... + width^(depth - 1)."""
        return sum(self.tree_width**level for level in range(self.tree_depth))

    def grow(
        self, openings: Sequence[str], seed: int, on_exchanges: Callable[[int], None] = lambda count: None
    ) -> list[Tree]:
        """One measured tree an opening, all grown together, level by level.

        `on_exchanges` is told how many exchanges each level has added.
        """
        system, width = self.system, self.tree_width
        trees = [Tree((Turn("opening", opening),)) for opening in openings]
        parents: list[Tree | Node] = list(trees)
        tester = system.tester.open(
            [system.tester_prompt(tree.opening) for tree in trees], seed=derive_seed(seed, "tester")
        )
        target = system.target.open(
            [system.target_prompt(tree.opening) for tree in trees],
            seed=derive_seed(seed, "target"),
            logprobs=system.target.gives_logprobs,
        )
        for _ in range(self.tree_depth):
            tester.branch(width)
            target.branch(width)
            probes = tester.sample()
            logprobs = target.append([probe.text for probe in probes])
            responses = target.sample()
            tester.append([response.text for response in responses])

            children: list[Tree | Node] = []
            for row, (probe, response) in enumerate(zip(probes, responses, strict=True)):
                parent = parents[row // width]
                context: Conversation = parent.opening if isinstance(parent, Tree) else parent.exchange.conversation
                exchange = Exchange(context, probe.text, response.text)
                node = Node(exchange, probe.prompt_ids, probe.ids, _mean(logprobs[row] if logprobs else []))
                parent.children.append(node)
                children.append(node)
            parents = children
            on_exchanges(len(children))
        system.measure([node for tree in trees for node in tree.nodes()])
        return trees


def checked_prompts(prompts: Sequence[str]) -> Sequence[str]:
    """The prompts; `InputError` where there are none or one is not text."""
    if not len(prompts):
        raise InputError("the prompt set is empty: give at least one opening")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(
                f"prompt {index} is not text but {type(prompt).__name__}: a prompt set is a list of strings"
            )
        if not prompt.strip():
            raise InputError(f"prompt {index} is empty: drop blank openings")
    return prompts


def _mean(logprobs: Logprobs) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
