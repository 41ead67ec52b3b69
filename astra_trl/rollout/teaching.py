"""Weak supervision: pairs of a known harmful continuation and the probe that the tester samples now."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from astra_trl.backends.base import Backend, Sample, Session, derive_seed
from astra_trl.backends.hf import HFBackend
from astra_trl.errors import InputError
from astra_trl.rollout.parts import Parts
from astra_trl.rollout.records import Record

Pair = tuple[str, str]


@dataclass(frozen=True)
class Teaching:
    """Turns some draws of a round into forced pairs (huggingface.co/papers/2407.09447, weak supervision).

    Args:
        pairs (`Sequence[tuple[str, str]]`):
            Prompts with harmful continuations.
        fraction (`float`):
            Probability that a draw is one of them instead of a tree.
    """

    pairs: Sequence[Pair]
    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"teach_fraction must lie above 0 and at most at 1, got {self.fraction}")
        is_pair = [isinstance(pair, tuple | list) and [*map(type, pair)] == [str, str] for pair in self.pairs]
        if isinstance(self.pairs, str | Path) or not all(is_pair):
            raise InputError("teaching_pairs must be pairs of texts: give load_teaching_pairs(...)")
        if not self.pairs:
            raise InputError(
                "teaching_pairs holds no pair to teach from: give at least one (prompt, harmful continuation)"
            )

    def draw(self, seed: int) -> Pair | None:
        """Return the pair of a draw with this seed, or `None` if the draw is a tree."""
        rng = random.Random(derive_seed(seed, "teach"))
        return rng.choice(self.pairs) if rng.random() < self.fraction else None


def teaching_records(tester: Backend, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Record | None]:
    """Return one preference record per pair: the continuation is chosen, the tester's own sample is rejected. The
    record is `None` if the tester samples the continuation itself.

    The records have the keys of `preference_records`; `tree` and the rewards are `None`, as nothing was scored.
    """
    if not isinstance(tester, HFBackend):
        raise InputError(f"a tester of {type(tester).__name__} cannot be taught: use a transformers model")

    def open_rows(rows: Sequence[int]) -> list[Session]:
        return [tester.open([pairs[row][0] for row in rows], seeds=[seeds[row] for row in rows])]

    def sample_part(rows: Sequence[int], sessions: Sequence[Session]) -> list[Sample]:
        return sessions[0].branch([(index, 0) for index in range(len(rows))]).sample()

    samples = Parts().work(range(len(pairs)), open_rows, sample_part)
    return [
        None
        if sample.text.strip() == continuation.strip()
        else {
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
        for (prompt, continuation), sample in zip(pairs, samples, strict=True)
    ]
