"""Screening: probes that look harmful by themselves, as a start where the target fails rarely."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from astra_trl.backends.base import Sample, Session, derive_seed
from astra_trl.conversation import Exchange, as_conversation
from astra_trl.processes import share_out
from astra_trl.progress import ProgressBar
from astra_trl.rollout.replay import Entry, ReplayBuffer
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.variations import write_variations
from astra_trl.scorers.base import measuring, validate_scores
from astra_trl.systems.base import System

OPENINGS_AT_A_TIME = 8
VARIATIONS_AT_A_TIME = 128  # then the next ones have better examples


def start_replay(
    sampler: ASTSampler, writer: Any, buffer: ReplayBuffer, count: int, seed: int, disable_tqdm: bool | None = None
) -> None:
    """Fill a buffer with first probes that the scorer of harm finds harmful by themselves, without asking the target.

    Half of them are sampled in conversations. The others are variations of those that were found so far. All processes
    work together, and have the same buffer afterwards.

    Args:
        writer (`HFBackend`):
            The model that writes variations; see [`write_variations`].
        buffer (`ReplayBuffer`):
            The buffer to fill.
        count (`int`):
            Probes to sample.
    """
    with ProgressBar("screening", count, "probes", disable=disable_tqdm) as bar:
        buffer.start(_sample(sampler, count // 2, seed, bar))
        sampled = count // 2
        while sampled < count and len(buffer):
            number = min(VARIATIONS_AT_A_TIME, count - sampled)
            part_seed = derive_seed(seed, sampled)
            buffer.begin_round(part_seed)
            buffer.start(score_probes(sampler.system, write_variations(writer, buffer, [number], part_seed)))
            sampled += number
            bar.update(number)


def _sample(sampler: ASTSampler, count: int, seed: int, bar: ProgressBar) -> list[Entry]:
    """Return first probes from random openings, `tree_width` of them per opening, with their scores."""
    system, width = sampler.system, sampler.tree_width
    numbers = range(math.ceil(count / width))
    openings = sampler.draw(seed, len(numbers))
    contexts = [
        system.prepare_opening(as_conversation(opening), derive_seed(seed, number))
        for number, opening in zip(numbers, openings, strict=True)
    ]

    def open_rows(rows: Sequence[int]) -> list[Session]:
        prompts = [system.tester_prompt(contexts[row]) for row in rows]
        return [system.tester.open(prompts, seeds=[derive_seed(seed, row, "tester") for row in rows])]

    def sample_part(rows: Sequence[int], sessions: Sequence[Session]) -> list[list[tuple[Sample, str]]]:
        children = [(index, sibling) for index in range(len(rows)) for sibling in range(width)]
        pairs = list(zip(*system.probes_in(sessions[0].branch(children).sample()), strict=True))
        return [pairs[start : start + width] for start in range(0, len(pairs), width)]

    def screen(parts: Sequence[Sequence[int]]) -> list[list[Entry]]:
        screened = []
        for rows in parts:
            groups = sampler.parts.work(rows, open_rows, sample_part)
            drawn = [pair for group in groups for pair in group]
            entries = [
                Entry(probe, 0, sample.cut) for sample, probe in drawn if sample.error is None and probe.strip()
            ]
            screened.append(score_probes(system, entries))
            bar.update(len(rows) * width)
        return screened

    parts = [numbers[start : start + OPENINGS_AT_A_TIME] for start in range(0, len(numbers), OPENINGS_AT_A_TIME)]
    return [entry for part in share_out(parts, screen) for entry in part]


def score_probes(system: System, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with the scores of their probes alone as rewards, 0 for one that could not be scored."""
    exchanges = [Exchange((), entry.probe, "") for entry in entries]
    scores = validate_scores(system.harm, measuring(system.scorers[system.harm], "probe"), exchanges)
    return [
        replace(entry, reward=0.0 if math.isnan(score) else score)
        for entry, score in zip(entries, scores, strict=True)
    ]
