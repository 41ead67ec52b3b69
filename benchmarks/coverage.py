"""Coverage of the true value by the 95% intervals of an evaluation's figures: `python -m benchmarks.coverage`.

Populations are synthetic, so the true value is known: openings with three exchanges each (correlation 0.3 within an
opening), two arms on the same openings (correlation 0.3 between them). The true value of a figure of texts is its
average over subsamples from openings that no replicate has seen. One thread, some minutes.
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
    """Draw uniform numbers of two arms, both (openings, turns), correlated within an opening and between the arms."""
    shared = rng.normal(size=(openings, 1, 1))
    own = rng.normal(size=(openings, 2, 1))
    noise = rng.normal(size=(openings, 2, TURNS))
    both = norm.cdf(np.sqrt(ALIKE) * (np.sqrt(0.6) * shared + np.sqrt(0.4) * own) + np.sqrt(1 - ALIKE) * noise)
    return both[:, 0], both[:, 1]


def score(at: np.ndarray) -> np.ndarray:
    """Return scores of which half are low and half spread out."""
    return np.where(at < 0.5, beta.ppf(2 * at, 1, 8), beta.ppf(np.clip(2 * at - 1, 0, 1), 4, 3))


def first_turns(at: np.ndarray) -> Values:
    """Return the first harmful turn of each opening that has one."""
    harmful = at < 0.25
    return [[float(np.argmax(row)) + 1] if row.any() else [] for row in harmful]


def single_figures() -> Iterator[tuple[str, Callable[[np.ndarray], Statistic]]]:
    """Yield figures of exchanges and conversations by name, each computed from one arm's uniform numbers."""
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
    """Yield pairs of figures by name, each computed from the uniform numbers of both arms."""

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
TRUE_EVALUATIONS = 1000  # of two subsamples each; their mean is the true value of a figure of texts


class Talkers:
    """Texts of an arm by opening: few frequent topics in few words; conversations keep their topic.

    Args:
        exponent (`float`):
            Exponent of the topics' Zipf distribution: 0 for uniform.
        successful (`float`):
            Share of the probes that are kept.
    """

    def __init__(self, exponent: float, successful: float = 1.0) -> None:
        weights = np.arange(1, TOPICS + 1) ** -exponent
        self.weights, self.successful = weights / weights.sum(), successful
        self.vectors = np.random.default_rng(5).normal(size=(TOPICS, 16))
        self.embeddings: dict[str, np.ndarray] = {}

    def texts(self, rng: np.random.Generator, openings: int) -> list[list[str]]:
        rows = []
        for kept in rng.random((openings, TURNS)) < self.successful:
            topics = rng.choice(TOPICS, p=self.weights, size=TURNS)
            topics[rng.random(TURNS) < 0.4] = topics[0]
            texts = []
            for topic in topics[kept]:
                words = [WORDS[topic], WORDS[rng.integers(len(WORDS))]]
                texts.append(FRAMES[rng.integers(len(FRAMES))].format(*words))
                self.embeddings[texts[-1]] = self.vectors[topic] + 0.3 * rng.normal(size=16)
            rows.append(texts)
        return rows

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([self.embeddings[text] for text in texts])

    def figures(self, rng: np.random.Generator, openings: int, size: int, draws: int) -> dict[str, SubsampleMean]:
        self.embeddings = {}
        figures = diversity(self.texts(rng, openings), int(rng.integers(2**31)), self.embed, draws)
        return {name: figure.of_size(size) for name, figure in figures.items()}


def size_of(openings: int, successful: float) -> int:
    """Return a size for which nearly every replicate has two subsamples."""
    expected = TURNS * openings * successful
    return int((expected - 3 * np.sqrt(expected * (1 - successful)) - 2) / 2)


def coverage(
    intervals_by_name: Mapping[str, list[tuple[float, float]]], truth: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Return, for each figure, the share of intervals that contain the true value, and their mean width; replicates
    without an interval are left out."""
    result = {}
    for name, intervals in intervals_by_name.items():
        low, high = np.array([ends for ends in intervals if not np.isnan(ends[0])]).T
        inside = (low <= truth[name]) & (truth[name] <= high)
        result[name] = (float(inside.mean()), float((high - low).mean()))
    return result


def true_values(seed: int) -> dict[str, float]:
    """Return the figures of exchanges and conversations of very many openings."""
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
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in truth}
    for _ in range(replicates):
        a, b = uniforms(rng, openings)
        for name, make in single.items():
            intervals[name].append(make(a).interval)
        for name, pair in both.items():
            intervals[name].append(difference(*pair(a, b))[1])
    return coverage(intervals, truth)


def of_texts(openings: int, replicates: int, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng((seed, openings))
    intervals: dict[str, list[tuple[float, float]]] = {}
    truth: dict[str, float] = {}
    for label, successful, against in (("", 1.0, 1.0), (" (successful)", 0.7, 0.25)):
        ours, theirs = Talkers(1.0, successful), Talkers(0.3, against)
        size = size_of(openings, min(successful, against))
        if size < 2:
            continue
        true = [
            {name: np.nanmean([one[name].value for one in evaluations]) for name in evaluations[0]}
            for arm in (ours, theirs)
            if (evaluations := [arm.figures(rng, openings, size, 1) for _ in range(TRUE_EVALUATIONS)])
        ]
        for name in true[0]:
            truth[name + label] = true[0][name]
            truth[f"{name}{label}: difference"] = true[0][name] - true[1][name]
        for _ in range(replicates):
            our_figures, their_figures = (arm.figures(rng, openings, size, draws) for arm in (ours, theirs))
            for name, figure in our_figures.items():
                intervals.setdefault(name + label, []).append(figure.interval)
                difference_interval = difference(figure, their_figures[name])[1]
                intervals.setdefault(f"{name}{label}: difference", []).append(difference_interval)
    return coverage(intervals, truth)


def exact(share: float, openings: int) -> float:
    """Return the coverage of a share's interval with one exchange per opening, from the binomial distribution."""
    ends = [share_limits(count / openings, openings) for count in range(openings + 1)]
    inside = [low <= share <= high for low, high in ends]
    return float(np.sum(binom.pmf(np.flatnonzero(inside), openings, share)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000, help="Of figures of exchanges and conversations.")
    parser.add_argument("--text_replicates", type=int, default=300, help="Of figures of texts.")
    parser.add_argument("--draws", type=int, default=100, help="Subsamples that a figure of texts is averaged over.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
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
        print(f"{f'one exchange per opening, {share:.0%}, exact':<44}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{args.replicates} replicates, {args.text_replicates} of texts, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
