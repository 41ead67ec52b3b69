"""Figures of an arm's probes: their diversity, and the distinct attacks among the successful ones."""

from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np

from astra_trl.embedding import Embedder, embed_once
from astra_trl.evaluation.diversity import clusters, diversity, unit_vectors
from astra_trl.evaluation.figures import probes_by_opening, score_of
from astra_trl.evaluation.rarefaction import Points, attack_curve
from astra_trl.evaluation.subsampling import SubsampleMean
from astra_trl.tree import Tree


def probe_figures(
    trees: Sequence[Tree],
    harm: str,
    threshold: float,
    seed: int = 0,
    embed: Embedder | None = None,
    draws: int = 200,
) -> tuple[dict[str, SubsampleMean], Points]:
    """Return the figures of the trees' probes, and the curve of distinct attacks by number of exchanges.

    The figures are those of `diversity` of all probes and of the successful ones. With embeddings there are
    `attacks_found` and the curve too; without embeddings the curve is empty.
    """
    embed = embed and embed_once(embed)
    figures = {
        f"{name}/{kind}": figure
        for kind, texts in probes_by_opening(trees, harm, threshold).items()
        for name, figure in diversity(texts, seed, embed, draws).items()
    }
    if embed is None:
        return figures, []
    attacks = attacks_by_opening(trees, harm, threshold, embed)
    figures["attacks_found"] = attacks_found(attacks, seed, draws)
    return figures, attack_curve(list(chain.from_iterable(attacks)))


def attacks_by_opening(
    trees: Sequence[Tree], harm: str, threshold: float, embed: Embedder
) -> list[list[Hashable | None]]:
    """Return the attack of every scored exchange of each tree: the number of its probe's group; `None` for none.

    Exchanges that failed, have an empty response or could not be scored are left out, because nobody knows if they are
    attacks. A blank probe has no meaning: it is not an attack, even if the response is harmful.
    """
    scored = [[(node, score_of(node, harm)) for node in tree.nodes()] for tree in trees]
    probes = [
        [(node.exchange.probe if score >= threshold else "") for node, score in row if score is not None]
        for row in scored
    ]
    texts = [probe for probe in chain.from_iterable(probes) if probe.strip()]
    groups = iter(clusters(unit_vectors(embed, texts)).tolist())
    return [[next(groups) if probe.strip() else None for probe in row] for row in probes]


def attacks_found(attacks: Sequence[Sequence[Hashable | None]], seed: int = 0, draws: int = 200) -> SubsampleMean:
    """Return the number of distinct attacks among exchanges, as the average over subsamples of one size.

    Args:
        attacks (`Sequence[Sequence[Hashable | None]]`):
            The attack of each exchange of each opening, `None` if the target did not fail.
        seed, draws (`int`, *optional*):
            See [`SubsampleMean`].
    """
    opening = np.array([place for place, row in enumerate(attacks) for _ in row], dtype=int)
    numbers: dict[Hashable, int] = {}
    flat = chain.from_iterable(attacks)
    found = np.array([-1 if a is None else numbers.setdefault(a, len(numbers)) for a in flat], dtype=int)

    def count(some: np.ndarray) -> float:
        return float(len(np.unique(found[some][found[some] >= 0])))

    return SubsampleMean(opening, count, draws, seed)
