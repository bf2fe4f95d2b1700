"""Scores that look at what the network predicts, or at what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import STATISTICS, Drawn
from discdiff.noise import Noise
from discdiff.scores.base import Score, spread
from discdiff.types import State, Step


@dataclass(frozen=True)
class Sure(Score):
    """The surest prediction first: largest probability ("confidence"), lead of the best over the second ("margin"), or
    lowest "entropy". None looks at the token that was drawn, so all are exact one position at a time.
    """

    statistic: str = "confidence"
    needs_draw: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {self.statistic!r}: choose from {', '.join(STATISTICS)}")

    @property
    def statistics(self) -> tuple[str, ...]:
        return (self.statistic,)

    @property
    def probability(self) -> bool:
        return self.statistic == "confidence"

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None
        return spread(state, index, drawn.statistics[self.statistic])


@dataclass(frozen=True)
class Candidate(Score):
    """The log probability of the token that was drawn (MaskGIT arXiv 2202.04200, LLaDA 2502.09992).

    It seeks modes: biased even one position at a time (P = [[.5, .1], [.1, .3]] becomes .70, .12 on the diagonal).
    """

    needs_draw: ClassVar[bool] = True
    peeks: ClassVar[bool] = True

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None
        return spread(state, index, drawn.log_prob)


@dataclass(frozen=True)
class Critic(Score):
    """A judge of finished sequences: `function(state, step) -> (batch, length)` gets the state with the candidates written
    over the masks; higher is more believable (Token-Critic, arXiv 2209.04439; a planner of P2, 2502.03540).

    The judge may be a second network, a head of the same one, or any rule; its calls are not counted in `Info`.
    Positions that wait for their clock are still masked. It peeks: biased even one position at a time.
    Raises ValueError for a function that cannot be called, and for an answer of another shape.
    """

    function: Callable[[State, Step], Tensor]
    needs_draw: ClassVar[bool] = True
    peeks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked("function", self.function, callable(self.function), "give a function (state, step) -> (batch, length)")

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None
        shape = state.tokens.shape
        written = state.tokens.reshape(-1).scatter(0, index, drawn.tokens).view(shape)
        values = self.function(state._replace(tokens=torch.where(state.committed, state.tokens, written)), step)
        if values.shape != shape:
            raise ValueError(
                f"the critic gave {tuple(values.shape)}: it must give one value per position, {tuple(shape)}"
            )
        return spread(state, index, values.reshape(-1)[index])


@dataclass(frozen=True)
class UserScore(Score):
    """A function `(state, step, index, drawn, noise) -> (n,)` as a score; with needs_draw False, drawn is None.

    Say peeks=False only if it does not look at `drawn.tokens` nor `drawn.log_prob`: then it is exact one position at a time.
    Raises ValueError for an answer that is not one value per site.
    """

    function: Callable[[State, Step, Tensor, Drawn | None, Noise], Tensor]
    statistics: tuple[str, ...] = ()
    needs_draw: bool = True
    peeks: bool = True

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        values = self.function(state, step, index, drawn, noise)
        if values.shape != index.shape:
            raise ValueError(
                f"the score gave {tuple(values.shape)} for {len(index)} sites: give one value per site, (n,)"
            )
        return spread(state, index, values)
