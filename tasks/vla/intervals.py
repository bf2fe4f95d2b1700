"""Bootstrap intervals (Efron 1979) of the mean over episodes, and of the difference of two methods on the same ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from discdiff.config import checked

_BLOCK = 1000  # resamples at once


class Interval(NamedTuple):
    """A mean and the interval of it."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean of one value per episode (n,), and the percentiles of the means of `draws` resamples of the episodes.
    Raises ValueError for no values, and for values that are not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    checked("values", x.shape, x.ndim == 1 and len(x) > 0, "give (n,), one value per episode, at least 1")
    checked("values", float(x.sum()), bool(np.isfinite(x).all()), "give finite ones")
    checked("level", level, 0 < level < 1, "give a share in (0, 1)")
    checked("draws", draws, draws >= 1, "at least 1")
    rng, sizes = np.random.default_rng(seed), [min(_BLOCK, draws - k) for k in range(0, draws, _BLOCK)]
    means = np.concatenate([x[rng.integers(len(x), size=(size, len(x)))].mean(1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def difference(
    first: Mapping[Hashable, float],
    second: Mapping[Hashable, float],
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """By how much `first` is above `second`, paired by the key of each episode, such as (training seed, task, seed).
    Raises ValueError where they are not of the same episodes.
    """
    alone = set(first) ^ set(second)
    some = sorted(alone, key=str)[:3]
    checked("episodes", some, not alone, f"{len(alone)} are of one method only: try both on the same ones")
    return interval([float(first[key]) - float(second[key]) for key in first], level, draws, seed)
