"""Screening: probes that look harmful by themselves, as a start where the target fails rarely."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from astra_trl.backends.base import Sample, Session, derive_seed
from astra_trl.conversation import Conversation, Exchange, as_conversation
from astra_trl.processes import share_out
from astra_trl.progress import ProgressBar
from astra_trl.rollout.parts import split
from astra_trl.rollout.replay import Entry, ReplayBuffer
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.rollout.variations import write_variations
from astra_trl.scorers.base import measuring, validate_scores
from astra_trl.systems.base import System

OPENINGS_AT_A_TIME = 8
PROBES_AT_A_TIME = 128  # then the next variations have better examples


def start_replay(
    sampler: ASTSampler, writer: Any, buffer: ReplayBuffer, count: int, seed: int, disable_tqdm: bool | None = None
) -> int:
    """Fill a buffer with first probes that the scorer of harm finds harmful by themselves, without asking the target.

    If the buffer is to have variations, the second half of the probes are variations of those found so far; all others
    are sampled in conversations. All processes work together, and have the same buffer afterwards.

    Args:
        writer (`HFBackend`):
            The model that writes variations; see [`write_variations`].
        buffer (`ReplayBuffer`):
            The buffer to fill.
        count (`int`):
            Probes to sample, rounded up to whole sibling groups and lists.

    Returns:
        `int`: The number of different probes that were found.
    """
    found, sampled, half = 0, 0, math.ceil(count / 2)
    with ProgressBar("screening", count, "probes", disable=disable_tqdm) as bar:
        while sampled < count:
            part_seed = derive_seed(seed, sampled)
            number = min(PROBES_AT_A_TIME, (half if sampled < half else count) - sampled)
            if sampled >= half and buffer.variation_share and len(buffer):
                buffer.begin_round(part_seed)
                written = write_variations(writer, sampler.parts, buffer, [number], part_seed)
                contexts = _contexts(sampler, len(written), part_seed)
                pairs = list(zip(contexts, written, strict=True))
                screened = share_out(pairs, partial(score_probes, sampler.system))
            else:
                screened = sample_probes(sampler, number, part_seed)
            found += buffer.start(screened)
            sampled += number
            bar.update(number)
    return found


def _contexts(sampler: ASTSampler, count: int, seed: int) -> list[Conversation]:
    """Return random openings."""
    openings = sampler.draw(seed, count)
    return [
        sampler.system.prepare_opening(as_conversation(opening), derive_seed(seed, number))
        for number, opening in enumerate(openings)
    ]


def sample_probes(sampler: ASTSampler, count: int, seed: int) -> list[Entry]:
    """Return first probes from random openings, `tree_width` of them per opening, with their scores."""
    system, width = sampler.system, sampler.tree_width
    contexts = _contexts(sampler, math.ceil(count / width), seed)

    def open_rows(rows: Sequence[int]) -> list[Session]:
        prompts = [system.tester_prompt(contexts[row]) for row in rows]
        return [system.tester.open(prompts, seeds=[derive_seed(seed, row, "tester") for row in rows])]

    def sample_part(rows: Sequence[int], sessions: Sequence[Session]) -> list[list[tuple[Sample, str]]]:
        children = [(index, sibling) for index in range(len(rows)) for sibling in range(width)]
        pairs = list(zip(*system.probes_in(sessions[0].branch(children).sample()), strict=True))
        return [list(group) for group in split(pairs, width)]

    def screen(parts: Sequence[Sequence[int]]) -> list[list[Entry]]:
        screened = []
        for rows in parts:
            groups = sampler.parts.work(rows, open_rows, sample_part)
            drawn = [(contexts[row], *pair) for row, group in zip(rows, groups, strict=True) for pair in group]
            entries = [
                (context, Entry(probe, 0, sample.cut))
                for context, sample, probe in drawn
                if sample.error is None and probe.strip()
            ]
            screened.append(score_probes(system, entries))
        return screened

    parts = split(range(len(contexts)), OPENINGS_AT_A_TIME)
    return [entry for part in share_out(parts, screen) for entry in part]


def score_probes(system: System, entries: Sequence[tuple[Conversation, Entry]]) -> list[Entry]:
    """Return the entries with the scores of their probes alone as rewards, 0 for one that could not be scored."""
    exchanges = [Exchange(context, entry.probe, "") for context, entry in entries]
    scores = validate_scores(system.harm, measuring(system.scorers[system.harm], "probe"), exchanges)
    return [
        replace(entry, reward=0.0 if math.isnan(score) else score)
        for (_, entry), score in zip(entries, scores, strict=True)
    ]
