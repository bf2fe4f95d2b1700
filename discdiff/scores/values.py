"""A score for codes that are numbers: how near to one another the likely numbers lie, whatever their ids."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Drawn
from discdiff.noise import Noise
from discdiff.scores.base import Score, check_score, spread
from discdiff.scores.predicted import Sure
from discdiff.types import State, Step
from discdiff.values import CodeValues, Row, around, unit_labels

SPREADS = ("deviation", "mode", "expectation", "matched")


@dataclass(frozen=True)
class Concentrated(Score):
    """The prediction p whose numbers v lie nearest to one another first, for modalities whose codes are numbers:

    "deviation" -sqrt(sum_c p_c (v_c - m)^2) with the expectation m = sum_c p_c v_c; "mode" max_c P(|v - v_c| <= window), the
    most probability that a window around a code holds; "expectation" P(|v - m| <= window); "matched" max_c <p, q_c> / |q_c||p|,
    how like p is to a soft label q_c of width `window`, by which the network learned: 1 for any label (`values.matched`),
    though one that an end of the range cuts off is narrower than others. window is in the unit of the values. A peak of two
    ids that are neighbours is sure here and unsure by confidence; two far peaks are the reverse.
    Positions of other modalities take their place by `others`; modalities are ranked apart unless a kernel is told `jointly`,
    where the two scales meet.

    It does not look at the drawn token: exact one position at a time, if `others` is. Computed from the logits piece by
    piece, one pass per distinct row of numbers (one for even levels). Raises ValueError for an unknown `how`, a window that
    is not positive, and at the first step for values that do not fit the layout.
    """

    values: CodeValues
    how: str = "deviation"
    window: float = 0.05
    others: Score = field(default_factory=lambda: Sure("confidence"))
    needs_draw: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked("values", self.values, isinstance(self.values, CodeValues), 'give CodeValues({"action": levels})')
        checked("how", self.how, self.how in SPREADS, f"choose from {', '.join(SPREADS)}")
        checked("window", self.window, 0 < self.window < math.inf, "above 0, in the unit of the values")
        check_score(self.others)

    @property
    def own(self) -> tuple[Concentration, ...]:
        """The statistic of each distinct row of numbers."""
        return tuple(Concentration(row, self.how, self.window) for row in self.values.rows)

    @property
    def statistics(self) -> tuple[Any, ...]:
        return (*self.own, *self.others.statistics)

    @property
    def peeks(self) -> bool:
        return self.others.peeks

    @property
    def probability(self) -> bool:
        return self.how != "deviation" and self.others.probability

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        assert drawn is not None
        found: Any = drawn.statistics
        place = self.values.at(state.batch, index)
        own = torch.stack([found[statistic] for statistic in self.own], 1).gather(1, place.clamp(min=0)[:, None])[:, 0]
        other = self.others(state, step, index, drawn, noise).reshape(-1)[index]
        return spread(state, index, torch.where(place >= 0, own, other))


@dataclass(frozen=True)
class Concentration:
    """`Concentrated` of one row of numbers as a statistic of a draw: (weights (n, K), total (n,)) -> (n,) float64, -inf where
    K is another codebook's size.
    """

    numbers: Row
    how: str
    window: float

    def __call__(self, weights: Tensor, total: Tensor) -> Tensor:
        if weights.shape[1] != len(self.numbers):
            return torch.full_like(total, -math.inf)
        p, v = weights.double() / total[:, None], _tensor(self.numbers, str(weights.device))
        if self.how == "matched":
            return (p @ _labels(self.numbers, self.window, str(p.device)).mT).amax(-1) / p.norm(dim=1)
        if self.how == "mode":
            return around(p, v, self.window).amax(-1)
        off = v - (p * v).sum(-1, keepdim=True)
        if self.how == "deviation":
            return -(p * off.square()).sum(-1).sqrt()
        return (p * (off.abs() <= self.window)).sum(-1)


@functools.lru_cache(maxsize=256)
def _tensor(numbers: Row, device: str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


@functools.lru_cache(maxsize=64)
def _labels(numbers: Row, width: float, device: str) -> Tensor:
    return unit_labels(_tensor(numbers, device), width)
