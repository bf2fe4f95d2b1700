"""The contract of a score, and what scores share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discdiff.denoisers import Drawn
from discdiff.noise import Noise
from discdiff.types import State, Step

NEG_INF = float("-inf")


class Score:
    """`(state, step, index, drawn, noise) -> (batch, length)` float64, higher first; your own overrides what differs.

    statistics: what `draw` must report; needs_draw: looks at what was drawn or its statistics, so that the network comes
    first; peeks: looks at the drawn token; probability: the score is one, so that noise is added to its log.
    """

    @property
    def statistics(self) -> tuple[str, ...]:
        return ()

    @property
    def needs_draw(self) -> bool:
        return False

    @property
    def peeks(self) -> bool:
        return False

    @property
    def probability(self) -> bool:
        return False

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no __call__")


def spread(state: State, index: Tensor, values: Tensor) -> Tensor:
    """Values (n,) at flat sites as a (batch, length) table, -inf elsewhere."""
    table = torch.full(state.tokens.shape, NEG_INF, dtype=torch.float64, device=values.device)
    return table.view(-1).scatter(0, index, values.double()).view(state.tokens.shape)


def log_scale(score: Score, values: Tensor) -> Tensor:
    """Values of a score on a scale where noise and bonuses are added: the log of a probability, others as they are."""
    return values.log() if score.probability else values


def check_score(score: Any) -> None:
    """Raise ValueError for what is not a score."""
    if not (callable(score) and hasattr(score, "needs_draw")) or isinstance(score, type):
        raise ValueError(f'score is {score!r}: give a Score, such as Sure("confidence") or Random()')
