"""Euler steps: the reverse rates taken as constant over a step, where our `Ancestral` is the analytic (Tweedie) step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from discdiff.distill.lockstep import at, check_process, symbols
from discdiff.distill.terms import NEG_INF, log_score, log_speed
from discdiff.kernels.base import Asked
from discdiff.processes import Absorbing, Process
from discdiff.sampling.grid import Grid, as_grid


def euler_rates(process: Process, times: Grid | int | Sequence[float]) -> Grid:
    """The grid with the `rate` per step that makes `Ancestral` of an absorbing process an Euler step.

    rate = [-alpha'(t) (t - s) / (1 - alpha(t))] / [(alpha(s) - alpha(t)) / (1 - alpha(t))], times a rate the grid has; 1
    throughout for a linear alpha. For other processes the ratio depends on the prediction: use
    `Ancestral(process, site=Euler(process))`. Raises ValueError for those and for a slope that is not finite.
    """
    grid = as_grid(times)
    if not isinstance(process, Absorbing):
        raise ValueError(
            f"an Euler step of {type(process).__name__} is no rate on the analytic one: use site=Euler(process)"
        )
    alpha, slope, rates = process.schedule.alpha, process.schedule.dalpha, []
    for (t, s), given in zip(pairwise(grid.times), grid.rate or [None] * len(grid), strict=True):
        rate = float(-slope(t) * (t - s) / (alpha(s) - alpha(t)))
        rates.append(rate if given is None else rate * given)
    return Grid(**{**vars(grid), "rate": tuple(rates)})


@dataclass(frozen=True)
class Euler:
    """A `site` for `Ancestral` that replaces the composed law by the Euler step of any process, from the same prediction.

    p(y | x) = (t - s) Phi Q_t(y -> x) s_y for y != x, at most 1 in all, staying the rest (SEDD arXiv 2310.16834). It obeys
    a step's rate Phi and score_power. Masks left at time 0 are drawn from the prediction, as everywhere.
    """

    process: Process = field(default_factory=Absorbing)
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_process(self.process)

    def __call__(self, log_p: Tensor, asked: Asked) -> Tensor:
        index, step = asked.index, asked.step
        x, time = symbols(asked.state, index), step.t.expand(asked.state.tokens.shape)
        t, s = at(time, index), at(step.s.expand(time.shape), index)
        process = self.process.at(asked.state.batch.sites(index[:1]))
        score = log_score(process, asked.prediction.log_probs(index).double(), x, t)
        speed = log_speed(process, x, t, log_p.shape[-1] - 1)
        power = 1.0 if step.score_power is None else step.score_power
        rate = 1.0 if step.rate is None else step.rate
        away = torch.where(score > NEG_INF, power * score, NEG_INF) + speed
        away = away + (rate * (t - s)).log()[:, None]
        if away.shape[-1] < log_p.shape[-1]:  # no move back to the mask
            away = torch.cat([away, torch.full_like(away[:, :1], NEG_INF)], 1)
        total = away.logsumexp(-1, keepdim=True)
        away = torch.where(total > 0, away - total, away)
        stay = torch.log1p(-total.clamp(max=0).exp())
        return away.scatter(1, x[:, None], stay)
