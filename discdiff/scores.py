"""Scores: which position is surest, for kernels that commit the best ones.

A score gives (batch, length) float64, higher first, -inf where it says nothing. Candidate-free scores leave the law of
an exact denoiser untouched when one position is committed at a time; a score that `peeks` at the drawn token biases it
towards likely tokens (total variation 0.23 on a small toy), whatever the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from discdiff.denoisers import STATISTICS, Drawn
from discdiff.noise import ORDER, Noise
from discdiff.types import State

NEG_INF = float("-inf")


class Score(Protocol):
    """`(state, index, drawn, noise) -> (batch, length)`; statistic: what `draw` must report (None: needs no network);
    peeks: looks at the drawn token.
    """

    @property
    def statistic(self) -> str | None: ...

    @property
    def peeks(self) -> bool: ...

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor: ...


def spread(state: State, index: Tensor, values: Tensor) -> Tensor:
    """Values (n,) at flat sites as a (batch, length) table, -inf elsewhere."""
    table = torch.full(state.tokens.shape, NEG_INF, dtype=torch.float64, device=values.device)
    return table.view(-1).scatter(0, index, values.double()).view(state.tokens.shape)


@dataclass(frozen=True)
class Random:
    """A uniformly random order."""

    statistic: ClassVar[str | None] = None
    peeks: ClassVar[bool] = False

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        return spread(state, index, noise.uniform(ORDER, index))


@dataclass(frozen=True)
class LeftToRight:
    """Reading order of the sequence."""

    statistic: ClassVar[str | None] = None
    peeks: ClassVar[bool] = False

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        return spread(state, index, -(index % state.tokens.shape[1]))


@dataclass(frozen=True)
class Sure:
    """The surest prediction first: largest probability ("confidence"), lead of the best over the second ("margin"), or
    lowest "entropy". None of them looks at the token that was drawn.
    """

    statistic: str = "confidence"
    peeks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {self.statistic!r}: choose from {', '.join(STATISTICS)}")

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None and drawn.statistic is not None
        return spread(state, index, drawn.statistic)


@dataclass(frozen=True)
class Candidate:
    """The probability of the token that was drawn (MaskGIT arXiv 2202.04200, LLaDA 2502.09992): seeks modes, is biased."""

    statistic: ClassVar[str | None] = "confidence"
    peeks: ClassVar[bool] = True

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None
        return spread(state, index, drawn.log_prob)


@dataclass(frozen=True)
class DepthPrefix:
    """A score under which no level of a slot comes before its parents: the running minimum along depth (ResGen).

    How deep the slots are is the layout's business; segments of different depth may share a row.
    """

    inner: Any = field(default_factory=lambda: Sure("confidence"))

    @property
    def statistic(self) -> str | None:
        return self.inner.statistic

    @property
    def peeks(self) -> bool:
        return self.inner.peeks

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        least = torch.where(state.committed, torch.inf, self.inner(state, index, drawn, noise))
        layout = state.batch.layout
        depth = layout.tables(least.device).depth[state.batch.slot]
        for level in range(1, max(map(layout.depth, layout.segments))):
            least = torch.where(
                depth == level, torch.minimum(least, least.roll(1, 1)), least
            )  # parents come just before
        return torch.where(state.committed, NEG_INF, least)


@dataclass(frozen=True)
class UserScore:
    """A function `(state, index, drawn, noise) -> (n,)` as a score."""

    function: Callable[[State, Tensor, Drawn | None, Noise], Tensor]
    statistic: str | None = "confidence"
    peeks: bool = True

    def __call__(self, state: State, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        return spread(state, index, self.function(state, index, drawn, noise))


SCORES: dict[str, Any] = {
    "random": Random(),
    "left_to_right": LeftToRight(),
    "confidence": Sure("confidence"),
    "margin": Sure("margin"),
    "entropy": Sure("entropy"),
    "candidate": Candidate(),
}
"""Scores by the name the command line uses."""
