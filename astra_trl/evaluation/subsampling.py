"""Figures that depend on the number of texts, averaged over subsamples of one size, with 95% intervals."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from astra_trl.evaluation.resampling import TAIL, UNKNOWN, Interval, clip_interval

MAX_SIZE = 250  # texts in a subsample: the time of some figures grows with its square
MIN_SIZE = 2  # a single text has no diversity


@dataclass(frozen=True)
class SubsampleMean:
    """Mean of a figure that depends on the number of texts, over subsamples of one size.

    Openings are put in random order and their texts into subsamples of `size`; then again in another order, until
    there are `draws` subsamples. Two subsamples of one order share no opening, so the variance between them, less the
    variance between orders, estimates the figure's without bias (Wang and Lindsay, 2014, doi.org/10.5705/ss.2012.215).
    Only half of the second is subtracted, and never more than three quarters of the first: as a difference of two
    estimates the variance would often come out too small. The interval of a figure between 0 and 1 is symmetric in log
    odds.

    Args:
        opening (`np.ndarray`):
            The number of each text's opening.
        measure (`Callable[[np.ndarray], float]`):
            The figure of the texts with these indices.
        draws, seed (`int`):
            Number of subsamples, and the seed of the orders.
        size (`int`, *optional*):
            Texts in a subsample; defaults to the largest size of which there are two subsamples.
        bounds (`tuple[float, float]`, *optional*):
            Lowest and highest possible value of the figure. None exceeds the number of texts in a subsample.
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
        """Texts in the largest subsample of which two can be drawn from different openings in any order."""
        return min(MAX_SIZE, (self.n - int(np.bincount(self.opening).max()) + 1) // 2) if self.n else 0

    def of_size(self, size: int) -> "SubsampleMean":
        """Return the same figure for subsamples of `size` texts."""
        return replace(self, size=size)

    @property
    def value(self) -> float:
        return self._estimate[0]

    @property
    def interval(self) -> Interval:
        return self._estimate[1]

    @cached_property
    def _estimate(self) -> tuple[float, Interval]:
        size = self.largest if self.size is None else self.size
        if not MIN_SIZE <= size <= self.largest:
            return np.nan, UNKNOWN
        orders = [np.array([self.measure(texts) for texts in subsamples]) for subsamples in self._orders(size)]
        pooled = np.concatenate(orders)
        if np.isnan(pooled).all():
            return np.nan, UNKNOWN
        value = float(np.clip(np.nanmean(pooled), *self.bounds))
        if np.isnan(pooled).any():  # a subsample without any n-gram has no share of distinct ones
            return value, UNKNOWN
        within = np.mean([figures.var(ddof=1) / len(figures) for figures in orders])
        between = np.var([figures.mean() for figures in orders], ddof=1) if len(orders) > 1 else 0.0
        freedom = 1 / (1 / (len(np.unique(self.opening)) - 1) + 1 / (len(pooled) - len(orders)))
        half = float(t.ppf(1 - TAIL, freedom) * np.sqrt(max(within - between / 2, within / 4)))
        if not half > 1e-12 * abs(value):
            return value, UNKNOWN
        if 0 < value < 1 and np.isfinite(self.bounds[1]):  # a small count is not a share
            low, high = expit(logit(value) + np.array((-half, half)) / (value * (1 - value)))
        else:
            low, high = value - half, value + half
        return value, clip_interval((self.bounds[0], min(self.bounds[1], size)), (low, high))

    def _orders(self, size: int) -> Iterable[list[np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        openings, place = np.unique(self.opening, return_inverse=True)
        count = 0
        while count < self.draws:
            rank = rng.permutation(len(openings))[place]
            order = np.lexsort((rng.random(self.n), rank))  # shuffles one opening's texts too: not all may fit
            ends = np.flatnonzero(np.diff(rank[order], append=-1)) + 1
            subsamples, start = [], 0
            while (at := np.searchsorted(ends, start + size)) < len(ends):
                subsamples.append(order[start : start + size])
                start = ends[at]
            count += len(subsamples)
            yield subsamples
