"""EDLM's proposal: whole clean sequences drawn in parallel and one of them kept, by its energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Prediction, inverse_cdf
from discdiff.energy.base import Candidates, energies
from discdiff.noise import ORDER, TOKEN, Noise
from discdiff.proposals import Factorised, Proposal, Proposed
from discdiff.types import State, Step


@dataclass(frozen=True)
class EnergyResampled(Proposal):
    """Self-normalised importance resampling: x0 = X_j, j ~ softmax(-E(X, x_t, t) / temperature) over k candidates X.

    Candidates are drawn from the factorised prediction; k = 1 is the plain draw, k -> infinity is p_theta exp(-E) / Z. It
    works at times t >= 1 - window (1: always, 0: never), where the most is revealed at once or the least is known; beyond,
    draws are plain. Costs k scored sequences per row and call, and head rows at all unknown positions. `Info.ess` is
    1 / sum of squared weights. Raises ValueError for k below 1, a window outside [0, 1], a temperature not above 0, and
    for energies that are not finite (EDLM arXiv 2410.21357 section 3.3).
    """

    energy: Any
    k: int = 2
    window: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checked("energy", self.energy, callable(self.energy), "give (candidates, state, t) -> (batch, k)")
        whole = isinstance(self.k, int) and not isinstance(self.k, bool) and self.k >= 1
        checked("k", self.k, whole, "a whole number of candidates, at least 1")
        checked("window", self.window, 0 <= self.window <= 1, "the share of the run that is corrected, in [0, 1]")
        checked("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0 and finite")

    @property
    def joint(self) -> bool:
        return self.k > 1 and self.window > 0

    def together(self, state: State, step: Step) -> Tensor:
        """Rows whose moving positions are at a time of at least 1 - window."""
        moving = state.free & (step.s < step.t)
        latest = torch.where(moving, step.t, -1.0).amax(1)
        return (
            (latest >= 1 - self.window) & (latest >= 0) if self.joint else torch.zeros_like(state.row, dtype=torch.bool)
        )

    def draw(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed:
        together = self.together(state, step)
        row = torch.div(index, state.tokens.shape[1], rounding_mode="floor")
        inside = together[row]
        if not bool(inside.any()):
            return Factorised().draw(prediction, state, index, step, noise)
        if bool(inside.all()):
            return self._resampled(prediction, state, index, step, noise)
        tokens, log_prob = torch.empty_like(index), noise.uniform(TOKEN, index)
        plain = Factorised().draw(prediction, state, index[~inside], step, noise)
        best = self._resampled(prediction, state, index[inside], step, noise)
        for where, part in ((~inside, plain), (inside, best)):
            tokens[where], log_prob[where] = part.tokens, part.log_prob
        return best._replace(tokens=tokens, log_prob=log_prob)

    def _resampled(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed:
        length = state.tokens.shape[1]
        row, column = torch.div(index, length, rounding_mode="floor"), index % length
        wanted = torch.zeros_like(state.row, dtype=torch.bool).index_fill(0, row, True)
        rows = wanted.nonzero()[:, 0]
        place = (wanted.cumsum(0) - 1)[row]
        tokens, log_prob = prediction.candidates(index, noise, self.k)
        whole = state.tokens[rows][:, None].repeat(1, self.k, 1)
        carried = log_prob.new_zeros(whole.shape)
        whole[place, :, column], carried[place, :, column] = tokens, log_prob
        drawn = torch.zeros_like(whole[:, 0], dtype=torch.bool)
        drawn[place, column] = True
        found = energies(self.energy, Candidates(whole, carried, drawn), state.rows(rows), step.t[rows])
        weight = (-found / self.temperature).softmax(1)
        chosen = inverse_cdf(weight, noise.rows(rows).row_uniform(ORDER))[place][:, None]
        ess = (1 / weight.square().sum(1)).mean()
        return Proposed(tokens.gather(1, chosen)[:, 0], log_prob.gather(1, chosen)[:, 0], ess, whole[..., 0].numel())
