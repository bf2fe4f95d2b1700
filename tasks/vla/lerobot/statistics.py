"""Statistics of the features of a LeRobot data set, of each episode and of all together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.vla.lerobot.layout import QUANTILES

LEVELS = np.arange(256) / 255

Statistics = dict[str, dict[str, list[Any]]]


class Totals:
    """Exact statistics of a stream of episodes: numbers are kept, of pictures only how many pixels have which value."""

    def __init__(self) -> None:
        self.frames = 0
        self.vectors: dict[str, list[np.ndarray]] = {}
        self.counts: dict[str, np.ndarray] = {}

    def add(self, columns: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray]) -> Statistics:
        """Those of one episode: columns (frames, dim), pictures uint8 (frames, height, width, 3)."""
        counts = {key: count_levels(x) for key, x in pictures.items()}
        frames = len(next(iter(columns.values())))
        self.frames += frames
        for key, x in columns.items():
            self.vectors.setdefault(key, []).append(x)
        for key, each in counts.items():
            self.counts[key] = self.counts.get(key, 0) + each
        found = {key: vector_statistics(x) for key, x in columns.items()}
        return found | {key: picture_statistics(each, frames) for key, each in counts.items()}

    def whole(self) -> Statistics:
        """Those of all frames so far."""
        found = {key: vector_statistics(np.concatenate(x)) for key, x in self.vectors.items()}
        return found | {key: picture_statistics(each, self.frames) for key, each in self.counts.items()}


def vector_statistics(x: np.ndarray) -> dict[str, list[Any]]:
    """min, max, mean, std, count and quantiles of x (frames, dim), lists of dim numbers but for count."""
    wide = x.astype(np.float64)
    found = {"min": x.min(0), "max": x.max(0), "mean": wide.mean(0), "std": wide.std(0), "count": np.array([len(x)])}
    found |= dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()}


def count_levels(x: np.ndarray) -> np.ndarray:
    """How many pixels of uint8 pictures (frames, height, width, 3) have each of the 256 values, (3, 256)."""
    return np.stack([np.bincount(x[..., channel].reshape(-1), minlength=256) for channel in range(3)])


def picture_statistics(counts: np.ndarray, frames: int) -> dict[str, list[Any]]:
    """The same of pixels scaled to [0, 1], from their counts (3, 256); lists of shape (3, 1, 1), and count is `frames`."""
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ LEVELS
    found = {"min": LEVELS[(counts > 0).argmax(1)], "max": LEVELS[255 - (counts[:, ::-1] > 0).argmax(1)]}
    found |= {"mean": mean, "std": np.sqrt((share * (LEVELS - mean[:, None]) ** 2).sum(1))}
    below = counts.cumsum(1)
    found |= {name: LEVELS[(below >= q * below[:, -1:]).argmax(1)] for name, q in QUANTILES.items()}
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [frames]}
