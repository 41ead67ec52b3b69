"""How often the 95% intervals of an evaluation's figures contain the true value: `python -m benchmarks.coverage`.

Populations are synthetic, so the true value is known: openings with three exchanges each that are alike (correlation
0.3 within an opening), two arms on the same openings (correlation 0.3 between them). A figure of sets of texts has as
its true value its average over sets from openings that no replicate has seen. One thread, some minutes.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import numpy as np
from scipy.stats import beta, binom, norm

from astra_trl.evaluation.diversity import diversity
from astra_trl.evaluation.resampling import Mean, Quantile, Share, Statistic, difference, share_limits
from astra_trl.evaluation.subsampling import SubsampleMean

OPENINGS, SHARES = (20, 40, 100), (0.01, 0.05, 0.5)
TURNS = 3
ALIKE = 0.3  # correlation within an opening, and between the arms of an opening
Values = list[list[float]]


def uniforms(rng: np.random.Generator, openings: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers of two arms, (openings, turns) each, alike within an opening and between the arms."""
    shared = rng.normal(size=(openings, 1, 1))
    own = rng.normal(size=(openings, 2, 1))
    noise = rng.normal(size=(openings, 2, TURNS))
    both = norm.cdf(np.sqrt(ALIKE) * (np.sqrt(0.6) * shared + np.sqrt(0.4) * own) + np.sqrt(1 - ALIKE) * noise)
    return both[:, 0], both[:, 1]


def score(at: np.ndarray) -> np.ndarray:
    """Scores of which half are low and half spread out."""
    return np.where(at < 0.5, beta.ppf(2 * at, 1, 8), beta.ppf(np.clip(2 * at - 1, 0, 1), 4, 3))


def first_turns(at: np.ndarray) -> Values:
    """The first of the turns that is harmful, where there is one."""
    harmful = at < 0.25
    return [[float(np.argmax(row)) + 1] if row.any() else [] for row in harmful]


def single_figures() -> Iterator[tuple[str, Callable[[np.ndarray], Statistic]]]:
    """Figures of exchanges and conversations by name, each made of one arm's uniform numbers."""
    for share in SHARES:
        yield f"harmful share {share:.0%}", lambda at, p=share: Share((at < p).astype(float))
    for share in SHARES:
        yield (
            f"conversations {share:.0%}",
            lambda at, p=share: Share((at[:, :1] < p).astype(float)),
        )
    yield "share of some exchanges 50%", lambda at: Share([[float(v < 0.25) for v in row if v < 0.5] for row in at])
    yield "reward, symmetric", lambda at: Mean(norm.ppf(at))
    yield "reward, mostly 0 (20% near 1)", lambda at: Mean(np.where(at < 0.2, 0.8 + at, 0.1 * at))
    yield "score mean", lambda at: Mean(score(at), bounds=(0, 1))
    yield "log-probability, skewed", lambda at: Mean(np.log(at) - 0.5)
    yield "perplexity", lambda at: Mean(np.log(at) / 2 - 1, transform=lambda value: np.exp(-value))
    yield "first harmful turn", lambda at: Mean(first_turns(at))
    for name, q in (("lower quartile", 0.25), ("median", 0.5), ("upper quartile", 0.75)):
        yield f"score {name}", lambda at, q=q: Quantile(score(at), q=q)


def two_arms() -> Iterator[tuple[str, Callable[[np.ndarray, np.ndarray], tuple[Statistic, Statistic]]]]:
    """Pairs of figures by name, each made of the uniform numbers of both arms."""

    def shares(one: float, other: float, turns: int = TURNS) -> Callable[..., tuple[Statistic, Statistic]]:
        return lambda a, b: (Share((a[:, :turns] < one).astype(float)), Share((b[:, :turns] < other).astype(float)))

    for one, other in ((0.01, 0.01), (0.05, 0.01), (0.05, 0.05), (0.5, 0.01), (0.5, 0.05), (0.5, 0.5)):
        yield f"harmful share {one:.0%} - {other:.0%}", shares(one, other)
    for one, other in ((0.01, 0.01), (0.05, 0.05), (0.5, 0.05), (0.5, 0.5)):
        yield f"conversations {one:.0%} - {other:.0%}", shares(one, other, 1)
    for name, make in single_figures():
        if "share" not in name and not name.startswith("conversations"):
            yield f"{name}: difference", lambda a, b, make=make: (make(a), make(b**1.5))


WORDS = [f"word{number}" for number in range(60)]
FRAMES = ["could we talk about {} for a bit", "tell me about {}", "what do you think of {} {}", "I like {} and {}"]
TOPICS = 40
TRUE_FROM = 1000  # evaluations of two sets each, from which the true values of figures of texts are known


class Talkers:
    """Texts of an arm by opening: topics of which few are frequent, said in few ways; conversations keep their topic.

    Args:
        flat (`float`):
            How evenly topics are spread: 0 for evenly.
        successful (`float`):
            Share of the probes that are kept.
    """

    def __init__(self, flat: float, successful: float = 1.0) -> None:
        weights = np.arange(1, TOPICS + 1) ** -flat
        self.weights, self.successful = weights / weights.sum(), successful
        self.vectors = np.random.default_rng(5).normal(size=(TOPICS, 16))
        self.said: dict[str, np.ndarray] = {}

    def texts(self, rng: np.random.Generator, openings: int) -> list[list[str]]:
        found = []
        for kept in rng.random((openings, TURNS)) < self.successful:
            topics = rng.choice(TOPICS, p=self.weights, size=TURNS)
            topics[rng.random(TURNS) < 0.4] = topics[0]
            said = []
            for topic in topics[kept]:
                words = [WORDS[topic], WORDS[rng.integers(len(WORDS))]]
                said.append(FRAMES[rng.integers(len(FRAMES))].format(*words))
                self.said[said[-1]] = self.vectors[topic] + 0.3 * rng.normal(size=16)
            found.append(said)
        return found

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([self.said[text] for text in texts])

    def figures(self, rng: np.random.Generator, openings: int, size: int, draws: int) -> dict[str, SubsampleMean]:
        self.said = {}
        found = diversity(self.texts(rng, openings), int(rng.integers(2**31)), self.embed, draws)
        return {name: figure.of_size(size) for name, figure in found.items()}


def size_of(openings: int, successful: float) -> int:
    """A size for which nearly every replicate has two sets."""
    expected = TURNS * openings * successful
    return int((expected - 3 * np.sqrt(expected * (1 - successful)) - 2) / 2)


def covers(
    found: Mapping[str, list[tuple[float, float]]], truth: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Of each figure, the share of intervals that contain the true value, and their mean width; a figure that had no
    interval claims nothing and is left out."""
    told = {}
    for name, intervals in found.items():
        low, high = np.array([ends for ends in intervals if not np.isnan(ends[0])]).T
        inside = (low <= truth[name]) & (truth[name] <= high)
        told[name] = (float(inside.mean()), float((high - low).mean()))
    return told


def true_values(seed: int) -> dict[str, float]:
    """What the figures of exchanges and conversations are of very many openings."""
    one, other = uniforms(np.random.default_rng((seed, 1)), 60_000)
    single, both = dict(single_figures()), dict(two_arms())
    truth = {name: make(one).value for name, make in single.items()}
    truth |= {name: difference(*make(one, other))[0] for name, make in both.items()}
    for name in truth:  # these are known exactly
        if name.startswith(("harmful share", "conversations")):
            numbers = [float(part.rstrip("%")) / 100 for part in name.split() if part.endswith("%")]
            truth[name] = numbers[0] - sum(numbers[1:])
    return truth


def of_exchanges(
    openings: int, replicates: int, seed: int, truth: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng((seed, openings))
    single, both = dict(single_figures()), dict(two_arms())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in truth}
    for _ in range(replicates):
        a, b = uniforms(rng, openings)
        for name, make in single.items():
            found[name].append(make(a).interval)
        for name, pair in both.items():
            found[name].append(difference(*pair(a, b))[1])
    return covers(found, truth)


def of_texts(openings: int, replicates: int, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng((seed, openings))
    found: dict[str, list[tuple[float, float]]] = {}
    truth: dict[str, float] = {}
    for label, successful, against in (("", 1.0, 1.0), (" (successful)", 0.7, 0.25)):
        ours, theirs = Talkers(1.0, successful), Talkers(0.3, against)
        size = size_of(openings, min(successful, against))
        if size < 2:
            continue
        true = [
            {name: np.nanmean([one[name].value for one in seen]) for name in seen[0]}
            for arm in (ours, theirs)
            if (seen := [arm.figures(rng, openings, size, 1) for _ in range(TRUE_FROM)])
        ]
        for name in true[0]:
            truth[name + label] = true[0][name]
            truth[f"{name}{label}: difference"] = true[0][name] - true[1][name]
        for _ in range(replicates):
            ours_found, theirs_found = (arm.figures(rng, openings, size, draws) for arm in (ours, theirs))
            for name, figure in ours_found.items():
                found.setdefault(name + label, []).append(figure.interval)
                found.setdefault(f"{name}{label}: difference", []).append(difference(figure, theirs_found[name])[1])
    return covers(found, truth)


def exact(share: float, openings: int) -> float:
    """The coverage of a share's interval if there is one exchange for each opening, from the binomial distribution."""
    ends = [share_limits(count / openings, openings) for count in range(openings + 1)]
    inside = [low <= share <= high for low, high in ends]
    return float(np.sum(binom.pmf(np.flatnonzero(inside), openings, share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000, help="Of figures of exchanges and conversations.")
    parser.add_argument("--text_replicates", type=int, default=300, help="Of figures of texts.")
    parser.add_argument("--draws", type=int, default=100, help="Sets that a figure of texts is the average over.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.perf_counter()
    truth = true_values(args.seed)
    columns = [of_exchanges(n, args.replicates, args.seed, truth) for n in OPENINGS]
    columns = [
        {**column, **of_texts(n, args.text_replicates, args.draws, args.seed)}
        for n, column in zip(OPENINGS, columns, strict=True)
    ]
    print(f"{'figure: coverage (mean width)':<44}" + "".join(f"{f'n = {n}':>18}" for n in OPENINGS))
    for name in dict.fromkeys(chain.from_iterable(columns)):
        cells = [f"{100 * c[name][0]:5.1f}% ({c[name][1]:.3g})" if name in c else "-" for c in columns]
        print(f"{name:<44}" + "".join(f"{cell:>18}" for cell in cells))
    for share in SHARES:
        cells = [f"{100 * exact(share, n):5.1f}%" for n in OPENINGS]
        print(f"{f'one exchange an opening, {share:.0%}, exact':<44}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{args.replicates} replicates, {args.text_replicates} of texts, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
