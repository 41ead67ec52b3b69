"""Figures of clustered data with 95% intervals, and their differences between two arms on the same openings.

The openings are the clusters: what grew from one opening is not independent. The intervals of scipy.stats are those of
independent values, so only its distributions are of use. `python -m benchmarks.coverage` measures how often the
intervals contain the true value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.stats import beta, t

TAIL = 0.025  # probability outside a 95% interval on each side

Interval = tuple[float, float]
UNKNOWN: Interval = (np.nan, np.nan)


class Statistic(Protocol):
    """A figure: its `value` (nan without data), the number `n` of values that it is computed from, its 95% `interval`
    (nan if the data do not determine one), and the `bounds` of what it can be."""

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int: ...

    @property
    def interval(self) -> Interval: ...

    @property
    def bounds(self) -> Interval: ...


@dataclass(frozen=True)
class Mean:
    """Mean over the values of all openings.

    The interval is that of the delete-one-opening jackknife with Student's t, widened on the side of the longer tail
    by Hall's transformation (doi.org/10.1111/j.2517-6161.1992.tb01872.x) with the openings' skewness. Equal values
    have no interval, because they do not show how far values spread.

    Args:
        values (`Sequence[Sequence[float]]`):
            The values of each opening.
        transform (`Callable`, *optional*):
            Monotone function of the mean; it transforms the ends of the mean's interval too.
        bounds (`tuple[float, float]`, *optional*):
            Lowest and highest possible value of the figure.
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
        ends = _jackknife_interval(plain.value, plain.influences, self.openings, abs(plain.value))
        return clip_interval(self.bounds, np.sort(self.transform(np.array(ends))))

    @cached_property
    def sums(self) -> np.ndarray:
        return np.array([np.sum(values) for values in self.values], dtype=float)

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.array([len(values) for values in self.values])

    @cached_property
    def openings(self) -> int:
        """The number of openings with values."""
        return int((self.sizes > 0).sum())

    @cached_property
    def influences(self) -> np.ndarray:
        """The jackknife influence of each opening: n / (n - 1) times the sum of their squares is the variance."""
        filled, count, influences = self.sizes > 0, self.openings, np.zeros(len(self.sizes))
        if count > 1:
            without = self.transform((self.sums.sum() - self.sums[filled]) / (self.n - self.sizes[filled]))
            influences[filled] = (without.mean() - without) * (count - 1) / count
        return influences


@dataclass(frozen=True)
class Share(Mean):
    """Mean over values of 0 and 1.

    The interval is that of Jeffreys, at 0% and 100% that of Clopper and Pearson (doi.org/10.1214/ss/1009213286), for
    the effective number of independent values (see `effective_n`).
    """

    bounds: Interval = (0.0, 1.0)

    @cached_property
    def interval(self) -> Interval:
        return share_limits(self.value, effective_n(self.sums, self.sizes)) if self.n else UNKNOWN


def share_or_mean(values: Sequence[Sequence[float]], bounds: Interval = (-np.inf, np.inf)) -> Mean:
    """Return a `Share` if every value is 0 or 1, else a `Mean`."""
    kinds = {value for row in values for value in row}
    return Share(values) if kinds <= {0.0, 1.0} else Mean(values, bounds=bounds)


@dataclass(frozen=True)
class Quantile(Mean):
    """Quantile `q` over the values of all openings, linear between neighbours as numpy's; 1 is the maximum.

    The interval is Woodruff's (doi.org/10.1080/01621459.1952.10483443): the values at the ends of the interval of the
    share of values below the quantile. An end that is not determined by so few openings is the bound. There is no
    interval of the maximum, or of values of which most are of one opening.
    """

    q: float = 0.5
    bounds: Interval = (0.0, 1.0)

    @cached_property
    def value(self) -> float:
        return float(np.quantile(self.sorted_values, self.q)) if self.n else np.nan

    @cached_property
    def interval(self) -> Interval:
        if not self.n or self.q in (0, 1) or 2 * self.sizes.max() > self.n > self.sizes.max():
            return UNKNOWN
        independent = effective_n(self.influences + self.q * self.sizes, self.sizes)
        low, high = share_limits(self.q, independent)
        return (
            self.bounds[0] if (1 - self.q) ** independent > TAIL else self.sorted_values[int(low * self.n)],
            self.bounds[1] if self.q**independent > TAIL else self.sorted_values[int(np.ceil(high * self.n)) - 1],
        )

    @cached_property
    def sorted_values(self) -> np.ndarray:
        return np.sort(np.concatenate([np.asarray(values, dtype=float) for values in self.values]))

    @cached_property
    def influences(self) -> np.ndarray:
        below = np.array([np.sum(np.asarray(values) <= self.value) for values in self.values])
        return below - self.q * self.sizes


def clip_interval(bounds: Interval, ends: Sequence[float] | np.ndarray) -> Interval:
    """Return the ends of an interval, each moved into the bounds if it lies outside."""
    low, high = np.clip(ends, *bounds)
    return float(low), float(high)


def difference(one: Statistic, other: Statistic) -> tuple[float, Interval]:
    """Return `one - other`, two figures of the same openings, with its 95% interval.

    Means are subtracted opening by opening. The distances of other figures to their ends are added as squares, less
    twice their product times the correlation (Newcombe's method 10 for shares,
    doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635). Figures of subsamples count as independent, which makes the
    interval too wide if openings make both arms alike.
    """
    value = one.value - other.value
    bounds = one.bounds[0] - other.bounds[1], one.bounds[1] - other.bounds[0]
    if type(one) is Mean and type(other) is Mean:
        openings, scale = min(one.openings, other.openings), max(abs(one.value), abs(other.value))
        paired = one.influences - other.influences
        return value, clip_interval(bounds, _jackknife_interval(value, paired, openings, scale))
    correlation = _correlation(one, other)
    (low, high), (other_low, other_high) = one.interval, other.interval
    below = _distance(one.value - low, other_high - other.value, correlation)
    above = _distance(high - one.value, other.value - other_low, correlation)
    return value, clip_interval(bounds, (value - below, value + above))


def share_limits(share: float, n: float) -> Interval:
    """Return the 95% interval of a share of `n` independent values; `n` may be fractional."""
    events = n * share
    low = TAIL ** (1 / n) if share >= 1 else beta.ppf(TAIL, events + 0.5, n - events + 0.5)
    high = 1 - TAIL ** (1 / n) if share <= 0 else beta.ppf(1 - TAIL, events + 0.5, n - events + 0.5)
    return (0.0 if share <= 0 else float(low)), (1.0 if share >= 1 else float(high))


def effective_n(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return how many independent values determine a share as well as those of the openings, given the sum and the
    number of each opening's values.

    An opening counts for less than its exchanges if they are alike. That is estimated with one opening added whose
    exchanges are all of the rarer kind, because a few events do not show it.
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0].astype(float)
    openings, n = len(sizes), sizes.sum()
    usual = n / openings
    several = n > openings > 1 and 0 < sums.sum() < n  # else nothing is estimated
    sums = np.append(sums, usual * (2 * sums.sum() <= n))
    sizes = np.append(sizes, usual)
    total = sizes.sum()
    share = sums.sum() / total
    # Divided by what is left without the opening: else one that holds most values would not differ from the share.
    deviations = (sums - share * sizes) / (1 - sizes / total)
    variance = openings / (openings + 1) * np.sum(deviations**2) / total**2
    design_effect = variance * (total - 1) / (share * (1 - share)) if total > 1 else 1.0
    correction = t.ppf(1 - TAIL, n - 1) / t.ppf(1 - TAIL, openings - 1) if several else 1.0
    return float(n / max(design_effect, 1) * correction**2)


def _jackknife_interval(value: float, influences: np.ndarray, openings: int, scale: float) -> Interval:
    # Student's t, or Hall's transformation of it if the skewness makes that end lie further out.
    count = max(openings, int(np.count_nonzero(influences)))
    squares = np.sum(influences**2)
    if openings < 2 or not squares > (1e-12 * scale) ** 2:
        return UNKNOWN
    error = np.sqrt(count / (count - 1) * squares)
    skewness = np.sum(influences**3) / count / (squares / count) ** 1.5
    student, bend = float(t.ppf(1 - TAIL, openings - 1)), float(skewness / np.sqrt(count))

    def hall(at: float) -> float:
        return at if abs(bend) < 1e-9 else 3 / bend * float(np.cbrt(1 + bend * (at - bend / 6)) - 1)

    low, high = max(student, hall(student)), min(-student, hall(-student))
    return float(value - error * low), float(value - error * high)


def _correlation(one: Statistic, other: Statistic) -> float:
    if not (isinstance(one, Mean) and isinstance(other, Mean)):
        return 0.0
    scale = np.sqrt(np.sum(one.influences**2) * np.sum(other.influences**2))
    correlation = float(np.sum(one.influences * other.influences) / scale) if scale > 0 else 0.0
    if correlation > 0 and isinstance(one, Share) and isinstance(other, Share):  # Newcombe's continuity correction
        variances = one.value * (1 - one.value) * other.value * (1 - other.value)
        openings = int(((one.sizes > 0) & (other.sizes > 0)).sum())
        correlation = max(0.0, correlation - 1 / (2 * openings * np.sqrt(variances)))
    return correlation


def _distance(one: float, other: float, correlation: float) -> float:
    return float(np.sqrt(max(one**2 + other**2 - 2 * correlation * one * other, 0)))
