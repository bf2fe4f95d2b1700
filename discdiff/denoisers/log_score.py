"""LogScore: a network that outputs log concrete scores of a process, read as a prediction of the clean token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers.prediction import Prediction
from discdiff.denoisers.wrappers import NEG_INF, Wrapper
from discdiff.processes import Process
from discdiff.processes.base import as_time
from discdiff.types import State, Step, per_position


@dataclass(frozen=True)
class LogScore(Wrapper):
    """Outputs z of `inner` are log s_y = log p_t(y) / p_t(x_t) for y != x_t; the entry of x_t is 0 (SEDD, arXiv 2310.16834).

    scaled: log s_y = z_y - log(e^sigma - 1) - log(K - 1) with sigma = -log alpha(t). The prediction is the cavity one,
    x0 = (s / sum s - b_t) / a_t, at least 0. Absorbing processes do not need this: there the scores of the clean
    tokens at a mask are logits of x0 already. Raises ValueError for a process with a mask, and for a schedule that ends at
    0, where scores say nothing of x0.
    """

    process: Process
    scaled: bool = False

    def __post_init__(self) -> None:
        end = self.process.marginal(torch.ones((), dtype=torch.float64), 2)
        masks, left = float(end.mask) > 0, float(end.keep) > 0
        checked("process", self.process, not masks, "scores at a mask are logits already: use ModelDenoiser")
        checked("process", self.process, left, "give a schedule with alpha(1) above 0, such as Geometric")

    @property
    def kind(self) -> str:
        return "cavity"

    @property
    def needs_time(self) -> bool:
        return True

    def __call__(self, state: State, step: Step) -> Prediction:
        symbols = state.batch.symbols(state.tokens).reshape(-1)
        time = per_position(step.t, state.tokens).expand(state.tokens.shape).reshape(-1)
        return self.inner(state, step).then(lambda z, index: self._cavity(z, symbols[index], time[index]))

    def _cavity(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Log cavity prediction (n, K) of outputs z (n, K) at the symbols x (n,) and times t (n,)."""
        if self.scaled:
            sigma = -self.process.marginal(as_time(t, x), z.shape[-1]).keep.log()
            z = z - (sigma.expm1().log() + math.log(z.shape[-1] - 1)).to(z.dtype)[:, None]
        z = torch.nn.functional.pad(z.scatter(-1, x[:, None], 0.0), (0, 1), value=NEG_INF)
        return self.process.from_score(z, t).to(z.dtype)
