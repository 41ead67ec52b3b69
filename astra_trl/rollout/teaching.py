"""Weak supervision: pairs whose winner is known, a harmful continuation against what the tester says now."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astra_trl.backends.base import Backend, derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError

Pair = tuple[str, str]


@dataclass(frozen=True)
class Teaching:
    """Turns some draws of a round into forced pairs (huggingface.co/papers/2407.09447, weak supervision).

    Args:
        pairs (`Sequence[tuple[str, str]]`):
            Prompts with harmful continuations.
        fraction (`float`):
            Probability that a draw is one of them, in place of a tree.
    """

    pairs: Sequence[Pair]
    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"teach_fraction must lie above 0 and at most at 1, got {self.fraction}")
        if not self.pairs:
            raise InputError("there is no pair to teach from: give at least one (prompt, harmful continuation)")

    def drawn(self, seed: int) -> Pair | None:
        """The pair that a draw with this seed takes; `None` where the draw is a tree."""
        rng = random.Random(derive_seed(seed, "teach"))
        return rng.choice(self.pairs) if rng.random() < self.fraction else None


def taught_records(tester: Backend, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[dict[str, Any] | None]:
    """A preference record of each pair, like those of trees: the continuation is chosen, what the tester samples is
    rejected; `None` where it samples the continuation itself.

    No tree holds them, and nothing was scored: `tree` and the rewards are `None`.
    """
    if not isinstance(tester, HFBackend):
        raise InputError(f"a tester of {type(tester).__name__} cannot be taught: use a transformers model")
    records: list[dict[str, Any] | None] = []
    session = tester.open([prompt for prompt, _ in pairs], seeds=seeds)
    rows = session.max_rows or len(pairs)
    for start in range(0, len(pairs), rows):
        some = range(start, min(start + rows, len(pairs)))
        for index, sample in zip(some, session.branch([(row, 0) for row in some]).sample(), strict=True):
            prompt, continuation = pairs[index]
            record = {
                "tree": None,
                "depth": 0,
                "prompt": prompt,
                "chosen": continuation,
                "rejected": sample.text,
                "chosen_reward": None,
                "rejected_reward": None,
                "prompt_ids": sample.prompt_ids,
                "chosen_ids": tester.utterance_ids(continuation),
                "rejected_ids": sample.ids,
            }
            records.append(record if sample.text.strip() != continuation.strip() else None)
    return records
