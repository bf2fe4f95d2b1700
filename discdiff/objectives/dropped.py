"""Training without the condition now and then, for classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.noise import MASK, Noise

_CHILD = 0x44  # a path of its own, apart from the inner objective's draws


@dataclass(frozen=True)
class Dropped:
    """The objective with the condition of a `share` of rows replaced by the special NULL, whose embedding is learned.

    The condition is what never moves (given or not noised) in the named segments, () for all. `ClassifierFree(model, scale,
    Unprompted(how="null"))` asks for the unconditional prediction (Improved VQ-Diffusion arXiv 2205.16007 section 3.1).
    """

    inner: Any
    share: float = 0.1
    segments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked("share", self.share, 0 <= self.share <= 1, "a share of the rows in [0, 1]")

    @property
    def memory(self) -> Any:
        """The inner objective's."""
        return getattr(self.inner, "memory", None)

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dropped = noise.child(_CHILD).uniform(MASK)[:, :1] < self.share
        where = dropped & batch.valid & ~batch.free & batch.within(self.segments)
        tokens = torch.where(where, batch.layout.vocab.special("NULL"), batch.tokens)
        return self.inner(model, batch._replace(tokens=tokens), noise, time)
