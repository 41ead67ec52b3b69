"""Statistics over openings, and their intervals: the same statistic of openings drawn again with replacement.

What grew from one opening is no independent sample, so openings are drawn, never exchanges (a cluster bootstrap).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

COVERED = (0.025, 0.975)  # quantiles of the replicates that bound a 95% interval


class Statistic(Protocol):
    """A number that is computed over what grew from some openings."""

    @property
    def value(self) -> float:
        """The number; nan where there is nothing to compute it from."""

    @property
    def n(self) -> int:
        """How many values it was computed from."""

    def replicates(self, draws: np.ndarray) -> np.ndarray:
        """The number once more for each row of `draws` (replicates, openings): how often each opening was drawn."""


def drawn_openings(openings: int, replicates: int, seed: int) -> np.ndarray:
    """How often each opening is drawn in each replicate, of shape (replicates, openings)."""
    return np.random.default_rng(seed).multinomial(openings, np.full(openings, 1 / openings), size=replicates)


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The 95% interval that replicates of a statistic span; those without a value (nan) are left out."""
    finite = replicates[~np.isnan(replicates)]
    if len(finite) < 2:
        return np.nan, np.nan
    low, high = np.quantile(finite, COVERED)
    return float(low), float(high)


@dataclass(frozen=True)
class _OfValues:
    # Of values by opening, of each as many as were measured.
    values: Sequence[Sequence[float]]

    @property
    def n(self) -> int:
        return sum(map(len, self.values))

    @property
    def value(self) -> float:
        return float(self.replicates(np.ones((1, len(self.values)), dtype=np.int64))[0])

    def replicates(self, draws: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class Mean(_OfValues):
    """Mean over the values of all openings.

    Args:
        values (`Sequence[Sequence[float]]`):
            The values by opening.
        transform (`Callable`, *optional*):
            Monotone, of the mean.
    """

    transform: Callable[[np.ndarray], np.ndarray] = field(default=np.asarray, kw_only=True)

    def replicates(self, draws: np.ndarray) -> np.ndarray:
        sums = draws @ np.array([np.sum(values) for values in self.values], dtype=float)
        counts = draws @ np.array([len(values) for values in self.values])
        with np.errstate(invalid="ignore"):
            return self.transform(np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1))


@dataclass(frozen=True)
class Quantile(_OfValues):
    """A quantile over the values of all openings, linear between neighbours as numpy's; 1 is the maximum."""

    q: float

    def replicates(self, draws: np.ndarray) -> np.ndarray:
        if self.n == 0:
            return np.full(len(draws), np.nan)
        flat = np.concatenate([np.asarray(values, dtype=float) for values in self.values])
        opening = np.repeat(np.arange(len(self.values)), [len(values) for values in self.values])
        order = np.argsort(flat, kind="stable")
        until = np.cumsum(draws[:, opening[order]], axis=1)  # how many drawn values stand at or below each
        count = until[:, -1]
        position = np.maximum(count - 1, 0) * self.q
        below, above = np.floor(position).astype(int), np.ceil(position).astype(int)

        def at(rank: np.ndarray) -> np.ndarray:
            return flat[order][np.minimum((until <= rank[:, None]).sum(axis=1), len(flat) - 1)]

        value = at(below) + (at(above) - at(below)) * (position - below)
        return np.where(count > 0, value, np.nan)


@dataclass(frozen=True)
class OfSet:
    """A figure of a set of texts, which a text drawn twice does not make larger.

    Drawing again repeats texts, so every replicate is less diverse than the whole set is: their spread is taken, set
    around the value itself.

    Args:
        opening (`np.ndarray`):
            The opening of each text.
        measure (`Callable[[np.ndarray], float]`):
            The figure, given how often each text was drawn.
        most (`int`, *optional*):
            As many replicates at the most, where one takes long; the others are nan.
        bounds (`tuple[float, float]`, *optional*):
            Between which the figure must lie.
    """

    opening: np.ndarray
    measure: Callable[[np.ndarray], float]
    most: int | None = None
    bounds: tuple[float, float] = (0.0, np.inf)

    @property
    def n(self) -> int:
        return len(self.opening)

    @property
    def value(self) -> float:
        return self.measure(np.ones(self.n, dtype=np.int64)) if self.n else np.nan

    def replicates(self, draws: np.ndarray) -> np.ndarray:
        again = np.full(len(draws), np.nan)
        if self.n:
            for row, drawn in enumerate(draws[: self.most]):
                counts = drawn[self.opening]
                again[row] = self.measure(counts) if counts.any() else np.nan
            if not np.isnan(again).all():
                again = np.clip(again + self.value - np.nanmean(again), *self.bounds)
        return again
