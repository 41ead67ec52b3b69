"""Screening: probes that look harmful by themselves, as a start where the target fails rarely."""

import math
from collections.abc import Sequence

from astra_trl.backends.base import Sample, Session, derive_seed
from astra_trl.conversation import Exchange, as_conversation
from astra_trl.processes import share_out
from astra_trl.progress import ProgressBar
from astra_trl.rollout.sampler import ASTSampler
from astra_trl.scorers.base import measuring, validate_scores

AT_A_TIME = 8  # openings


def screen_probes(
    sampler: ASTSampler, count: int, seed: int, min_score: float = 0.5, disable_tqdm: bool | None = None
) -> dict[str, tuple[float, bool]]:
    """Sample first probes without asking the target, and return those that the scorer of harm finds harmful.

    All processes work together, and return the same.

    Args:
        count (`int`): Probes to sample, `tree_width` of them per opening.
        min_score (`float`, *optional*, defaults to `0.5`): Score of the probe alone, at or above which it is returned.

    Returns:
        `dict[str, tuple[float, bool]]`: By the probe's text, its score and whether a limit has cut it.
    """
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

    def screen(parts: Sequence[Sequence[int]]) -> list[list[tuple[str, float, bool]]]:
        screened = []
        for rows in parts:
            groups = sampler.parts.work(rows, open_rows, sample_part)
            drawn = [(contexts[row], *pair) for row, group in zip(rows, groups, strict=True) for pair in group]
            drawn = [one for one in drawn if one[1].error is None and one[2].strip()]
            exchanges = [Exchange(context, probe, "") for context, _, probe in drawn]
            scores = validate_scores(system.harm, measuring(system.scorers[system.harm], "probe"), exchanges)
            screened.append(
                [(probe, score, sample.cut) for (_, sample, probe), score in zip(drawn, scores, strict=True)]
            )
            bar.update(len(drawn))
        return screened

    parts = [numbers[start : start + AT_A_TIME] for start in range(0, len(numbers), AT_A_TIME)]
    with ProgressBar("screening", len(numbers) * width, "probes", disable=disable_tqdm) as bar:
        found = [one for part in share_out(parts, screen) for one in part]
    return {probe: (score, cut) for probe, score, cut in found if score >= min_score}
