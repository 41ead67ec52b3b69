"""Figures over openings with 95% intervals, and differences between two arms on the same openings.

What grew from one opening is not independent, so openings are what varies, never exchanges. `python -m
benchmarks.coverage` measures how often the intervals contain the true value.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, t

TAIL = 0.025  # probability outside a 95% interval on each side
MAX_SIZE = 250  # texts in a set that a figure of diversity is measured on: some take time that grows with its square
MIN_SIZE = 2  # one text is neither like nor unlike another

Interval = tuple[float, float]
UNKNOWN: Interval = (np.nan, np.nan)


class Statistic(Protocol):
    """A figure of what grew from the openings."""

    @property
    def value(self) -> float:
        """The figure; nan if there is nothing to compute it from."""

    @property
    def n(self) -> int:
        """How many values it was computed from."""

    @property
    def interval(self) -> Interval:
        """The ends of its 95% interval; nan if the values do not tell."""

    @property
    def bounds(self) -> Interval:
        """Between which it must lie."""


@dataclass(frozen=True)
class Mean:
    """Mean over the values of all openings.

    Its interval is that of the delete-one-opening jackknife with Student's t, widened on the side of the longer tail
    as the openings' skewness asks for (Hall's transformation, doi.org/10.1111/j.2517-6161.1992.tb01872.x). Equal
    values tell nothing about their spread: there is no interval then.

    Args:
        values (`Sequence[Sequence[float]]`):
            The values by opening, of each as many as were measured.
        transform (`Callable`, *optional*):
            Of the mean, monotone; its interval is that of the mean, transformed.
        bounds (`tuple[float, float]`, *optional*):
            Between which the figure must lie.
    """

    values: Sequence[Sequence[float]]
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    bounds: Interval = (-np.inf, np.inf)

    @cached_property
    def n(self) -> int:
        return sum(map(len, self.values))

    @cached_property
    def value(self) -> float:
        return float(self.transform(self.sums.sum() / self.n)) if self.n else np.nan

    @cached_property
    def interval(self) -> Interval:
        plain = self if self.transform is np.asarray else replace(self, transform=np.asarray)
        ends = _of_influences(plain.value, plain.influences, int((self.sizes > 0).sum()), abs(plain.value))
        return _within(self.bounds, np.sort(self.transform(np.array(ends))))

    @cached_property
    def sums(self) -> np.ndarray:
        return np.array([np.sum(values) for values in self.values], dtype=float)

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.array([len(values) for values in self.values])

    @cached_property
    def influences(self) -> np.ndarray:
        """How much each opening moves the figure: by the jackknife, so that n / (n - 1) times the sum of their squares
        is its variance."""
        there = self.sizes > 0
        count, found = int(there.sum()), np.zeros(len(self.sizes))
        if count > 1:
            without = self.transform((self.sums.sum() - self.sums[there]) / (self.n - self.sizes[there]))
            found[there] = (without.mean() - without) * (count - 1) / count
        return found


@dataclass(frozen=True)
class Share(Mean):
    """Mean over values of 0 and 1.

    Its interval is Jeffreys', at 0% and 100% that of Clopper and Pearson (doi.org/10.1214/ss/1009213286), of as many
    independent exchanges as tell as much: an opening counts for less than its exchanges if they are alike. How alike
    is read from the data with one opening added whose exchanges are all of the rarer kind, since a few events do not
    show it.
    """

    bounds: Interval = (0.0, 1.0)

    @cached_property
    def interval(self) -> Interval:
        return share_limits(self.value, self.effective_n) if self.n else UNKNOWN

    @cached_property
    def effective_n(self) -> float:
        return effective_n(self.sums, self.sizes)


def share_or_mean(values: Sequence[Sequence[float]], bounds: Interval = (-np.inf, np.inf)) -> Mean:
    """A `Share` if every value is 0 or 1, else a `Mean`."""
    kinds = {value for row in values for value in row}
    return Share(values) if kinds <= {0.0, 1.0} else Mean(values, bounds=bounds)


@dataclass(frozen=True)
class Quantile(Mean):
    """A quantile over the values of all openings, linear between neighbours as numpy's; 1 is the maximum.

    Its interval is Woodruff's (doi.org/10.1080/01621459.1952.10483443): the values at the ends of the interval for the
    share of values below the quantile. An end that so few openings do not tell is the bound. The maximum has none.
    """

    q: float = 0.5
    bounds: Interval = (0.0, 1.0)

    @cached_property
    def value(self) -> float:
        return float(np.quantile(self.sorted, self.q)) if self.n else np.nan

    @cached_property
    def interval(self) -> Interval:
        if not self.n or self.q in (0, 1) or 2 * self.sizes.max() > self.n > self.sizes.max():
            return UNKNOWN  # nor does one have values of which most are of one opening
        independent = effective_n(self.influences + self.q * self.sizes, self.sizes)
        low, high = share_limits(self.q, independent)
        return (
            self.bounds[0] if (1 - self.q) ** independent > TAIL else self.sorted[int(low * self.n)],
            self.bounds[1] if self.q**independent > TAIL else self.sorted[int(np.ceil(high * self.n)) - 1],
        )

    @cached_property
    def sorted(self) -> np.ndarray:
        return np.sort(np.concatenate([np.asarray(values, dtype=float) for values in self.values]))

    @cached_property
    def influences(self) -> np.ndarray:
        below = np.array([np.sum(np.asarray(values) <= self.value) for values in self.values])
        return below - self.q * self.sizes


@dataclass(frozen=True)
class OfSets:
    """A figure that depends on how many texts it is of, as the average over sets of one size.

    Openings are put in random order and their texts into sets of `size`, as if the evaluation had ended with so many;
    then again in another order, until there are `draws` sets. Two sets of one order share no opening, so the variance
    between them, less the variance between orders, estimates the figure's without bias (Wang and Lindsay, 2014,
    doi.org/10.5705/ss.2012.215). Of the second only half is taken off, and never more than three quarters of the
    first: as a difference of two estimates the variance would often come out too small. The interval of a figure
    between 0 and 1 is symmetric in log odds.

    Args:
        opening (`np.ndarray`):
            The opening of each text.
        measure (`Callable[[np.ndarray], float]`):
            The figure of the texts with these numbers.
        draws, seed (`int`):
            How many sets are drawn, and from where.
        size (`int`, *optional*):
            Texts in a set; defaults to the largest of which there are two sets.
        bounds (`tuple[float, float]`, *optional*):
            Between which the figure must lie. None exceeds the number of texts in a set.
    """

    opening: np.ndarray
    measure: Callable[[np.ndarray], float]
    draws: int = 200
    seed: int = 0
    size: int | None = None
    bounds: Interval = (0.0, np.inf)

    @property
    def n(self) -> int:
        return len(self.opening)

    @cached_property
    def largest(self) -> int:
        """Texts in the largest set of which two can be drawn from different openings, whatever their order."""
        return min(MAX_SIZE, (self.n - int(np.bincount(self.opening).max()) + 1) // 2) if self.n else 0

    def of_size(self, size: int) -> "OfSets":
        return replace(self, size=size)

    @property
    def value(self) -> float:
        return self._measured[0]

    @property
    def interval(self) -> Interval:
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[float, Interval]:
        size = self.largest if self.size is None else self.size
        if not MIN_SIZE <= size <= self.largest:
            return np.nan, UNKNOWN
        orders = [np.array([self.measure(texts) for texts in sets]) for sets in self._orders(size)]
        every = np.concatenate(orders)
        if np.isnan(every).all():
            return np.nan, UNKNOWN
        value = float(np.clip(np.nanmean(every), *self.bounds))
        if np.isnan(every).any():  # a set without any n-gram, of which there is no share
            return value, UNKNOWN
        within = np.mean([found.var(ddof=1) / len(found) for found in orders])
        between = np.var([found.mean() for found in orders], ddof=1) if len(orders) > 1 else 0.0
        freedom = 1 / (1 / (len(np.unique(self.opening)) - 1) + 1 / (len(every) - len(orders)))
        half = float(t.ppf(1 - TAIL, freedom) * np.sqrt(max(within - between / 2, within / 4)))
        if not half > 1e-12 * abs(value):
            return value, UNKNOWN
        if 0 < value < 1:
            low, high = expit(logit(value) + np.array((-half, half)) / (value * (1 - value)))
        else:
            low, high = value - half, value + half
        return value, _within((self.bounds[0], min(self.bounds[1], size)), (low, high))

    def _orders(self, size: int) -> Iterable[list[np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        openings, place = np.unique(self.opening, return_inverse=True)
        drawn = 0
        while drawn < self.draws:
            turn = rng.permutation(len(openings))[place]
            order = np.lexsort((rng.random(self.n), turn))  # of one opening's texts too: the last may not fit in
            ends = np.flatnonzero(np.diff(turn[order], append=-1)) + 1
            sets, start = [], 0
            while (at := np.searchsorted(ends, start + size)) < len(ends):
                sets.append(order[start : start + size])
                start = ends[at]
            drawn += len(sets)
            yield sets


def difference(one: Statistic, other: Statistic) -> tuple[float, Interval]:
    """How much more one figure is than the other, of the same openings, with its 95% interval.

    Means are subtracted opening by opening. The distances of other figures to their ends are added as squares, less
    what the two have in common (Newcombe's method 10 for shares, doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635).
    Figures of sets are taken for independent, which errs on the wide side where openings make both arms alike.
    """
    value = one.value - other.value
    bounds = one.bounds[0] - other.bounds[1], one.bounds[1] - other.bounds[0]
    if type(one) is Mean and type(other) is Mean:
        openings = min(int((figure.sizes > 0).sum()) for figure in (one, other))
        scale, paired = max(abs(one.value), abs(other.value)), one.influences - other.influences
        return value, _within(bounds, _of_influences(value, paired, openings, scale))
    common = _correlation(one, other)
    (low, high), (other_low, other_high) = one.interval, other.interval
    below = _apart(one.value - low, other_high - other.value, common)
    above = _apart(high - one.value, other.value - other_low, common)
    return value, _within(bounds, (value - below, value + above))


def share_limits(share: float, n: float) -> Interval:
    """The 95% interval of a share of `n` independent values, which need not be whole."""
    kind = n * share
    low = TAIL ** (1 / n) if share >= 1 else beta.ppf(TAIL, kind + 0.5, n - kind + 0.5)
    high = 1 - TAIL ** (1 / n) if share <= 0 else beta.ppf(1 - TAIL, kind + 0.5, n - kind + 0.5)
    return (0.0 if share <= 0 else float(low)), (1.0 if share >= 1 else float(high))


def effective_n(sums: np.ndarray, sizes: np.ndarray) -> float:
    """How many independent values tell as much about a share as those of the openings, given by sum and number."""
    sums, sizes = sums[sizes > 0], sizes[sizes > 0].astype(float)
    openings, n = len(sizes), sizes.sum()
    usual = n / openings
    several = n > openings > 1 and 0 < sums.sum() < n  # else how alike exchanges are is not estimated
    sums = np.append(sums, usual * (2 * sums.sum() <= n))  # an opening of the rarer kind
    sizes = np.append(sizes, usual)
    total = sizes.sum()
    share = sums.sum() / total
    # What is left of an opening's own pull on the share, without which one that holds most values would show nothing.
    apart = (sums - share * sizes) / (1 - sizes / total)
    variance = openings / (openings + 1) * np.sum(apart**2) / total**2
    alike = variance * (total - 1) / (share * (1 - share)) if total > 1 else 1.0
    few = t.ppf(1 - TAIL, n - 1) / t.ppf(1 - TAIL, openings - 1) if several else 1.0
    return float(n / max(alike, 1) * few**2)


def _within(bounds: Interval, ends: Sequence[float] | np.ndarray) -> Interval:
    low, high = np.clip(ends, *bounds)
    return float(low), float(high)


def _of_influences(value: float, influences: np.ndarray, openings: int, scale: float) -> Interval:
    # Student's t, or Hall's transformation of it where the skewness makes that end lie further out.
    count = max(openings, int(np.count_nonzero(influences)))
    squares = np.sum(influences**2)
    if openings < 2 or not squares > (1e-12 * scale) ** 2:
        return UNKNOWN
    spread = np.sqrt(count / (count - 1) * squares)
    skewness = np.sum(influences**3) / count / (squares / count) ** 1.5
    far, bend = float(t.ppf(1 - TAIL, openings - 1)), float(skewness / np.sqrt(count))

    def transformed(at: float) -> float:
        return at if abs(bend) < 1e-9 else 3 / bend * float(np.cbrt(1 + bend * (at - bend / 6)) - 1)

    low, high = max(far, transformed(far)), min(-far, transformed(-far))
    return float(value - spread * low), float(value - spread * high)


def _correlation(one: Statistic, other: Statistic) -> float:
    if not (isinstance(one, Mean) and isinstance(other, Mean)):
        return 0.0
    spread = np.sqrt(np.sum(one.influences**2) * np.sum(other.influences**2))
    found = float(np.sum(one.influences * other.influences) / spread) if spread > 0 else 0.0
    if found > 0 and isinstance(one, Share) and isinstance(other, Share):  # Newcombe's correction for continuity
        variances = one.value * (1 - one.value) * other.value * (1 - other.value)
        openings = int(((one.sizes > 0) & (other.sizes > 0)).sum())
        found = max(0.0, found - 1 / (2 * openings * np.sqrt(variances)))
    return found


def _apart(one: float, other: float, common: float) -> float:
    return float(np.sqrt(max(one**2 + other**2 - 2 * common * one * other, 0)))
