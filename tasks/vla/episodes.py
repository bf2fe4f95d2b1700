"""One demonstration: what was seen, what was said, and what was done."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from discdiff.config import checked


@dataclass(frozen=True, eq=False)
class Episode:
    """state (frames, dim) float32, action (frames, dim) float32, what to do in words, and uint8 pictures (frames, height,
    width, 3) by the name of their camera; way: which of several ways of doing it was taken.

    Raises ValueError for parts of different lengths, numbers that are not finite, and pictures of another kind.
    """

    state: np.ndarray
    action: np.ndarray
    task: str
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    way: str = ""

    def __post_init__(self) -> None:
        frames = len(self.action)
        checked("episode", frames, frames > 0, "at least one frame")
        for name, value in (("state", self.state), ("action", self.action)):
            checked(name, value.shape, value.ndim == 2 and len(value) == frames, f"give ({frames}, dim)")
            checked(name, value.dtype, value.dtype == np.float32, "give float32")
            bad = ~np.isfinite(value)
            checked(name, int(bad.sum()), not bad.any(), "numbers that are not finite: leave such frames out")
        for name, value in self.pictures.items():
            fits = value.dtype == np.uint8 and value.ndim == 4 and len(value) == frames and value.shape[3] == 3
            checked(name, (value.dtype, value.shape), fits, f"give uint8 ({frames}, height, width, 3)")

    def __len__(self) -> int:
        return len(self.action)
