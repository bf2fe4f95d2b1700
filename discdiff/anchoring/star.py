"""G2D2: the table is optimised through a relaxed draw, and every step re-noises a whole clean draw, whatever came before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.anchoring.anchored import own
from discdiff.anchoring.canvas import Canvas, tabled
from discdiff.anchoring.descent import slope
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.denoisers import Prediction
from discdiff.denoisers.wrappers import Wrapper
from discdiff.kernels.base import Kernel, arrive, ask, select
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, TOKEN, WAKE, Noise
from discdiff.processes import Absorbing, Process
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class StarShaped(Kernel):
    """x0 ~ prediction at every free position, then x_s ~ q(x_s | x0), independent of x_t (G2D2, arXiv 2410.14710).

    Nothing is final before time 0, so that early mistakes can be undone. Biased: a position's next value forgets the present
    one's company.
    """

    process: Process = field(default_factory=Absorbing)
    unbiased: ClassVar[bool] = False
    final: ClassVar[bool] = False
    decide_first: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        index = select(state.free & (step.s < step.t))
        if not len(index):
            return arrive(state, step), Info()
        asked = ask(denoiser, self.process, state, step, noise, index)
        drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN)
        s = step.s.expand(state.tokens.shape).reshape(-1)[index]
        x0, alphabet = state.batch.symbols(drawn.tokens, index), state.batch.sites(index)
        noisy = self.process.corrupt(x0, s, noise.uniform(CORRUPT, index), alphabet)
        noisy = torch.where(s > 0, noisy, x0)
        tokens = state.tokens.reshape(-1).scatter(0, index, state.batch.ids(noisy, index)).view(state.tokens.shape)
        done = state.free & (step.s <= 0)
        count = (done & ~state.committed).sum()
        after = arrive(state, step)._replace(tokens=tokens, committed=state.committed | done)
        return after, asked.info._replace(committed=count, entropy=-drawn.log_prob.mean())


@dataclass(frozen=True)
class Relaxed:
    """RAdam on the log probabilities phi of a table: loss(decode(h C)) + kl * sum_sites KL(softmax(phi) || p_network) with the
    relaxed draw h = softmax(phi + Gumbel), nothing quantised, phi normalised after each step.

    Both `rate` and `kl` are multiplied by 10^(w (t - 1/2)), from the first step to the last, w = rate_span and kl_span. The
    defaults are those of the released settings for super-resolution (deblurring: rate 15, rate_span 1), for the distance "l2".
    """

    steps: int = 30
    rate: float = 10.0
    rate_span: float = 2.0
    kl: float = 3e-4
    kl_span: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "at least one inner step")
        checked("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        checked("kl", self.kl, self.kl >= 0, "0 or more, inf to keep the network's table")

    @torch.no_grad()
    def __call__(self, canvas: Canvas, prior: Tensor, measured: Measured, t: float, noise: Noise) -> Tensor:
        """The optimised log probabilities (m, codes)."""
        if self.kl == math.inf:
            return prior
        low = prior.clamp(min=-1e4)
        phi, kl = low.clone(), self.kl * 10 ** (self.kl_span * (t - 0.5))
        phi.requires_grad_()
        mover = torch.optim.RAdam([phi], lr=self.rate * 10 ** (self.rate_span * (t - 0.5)))
        for count in range(self.steps):
            u = noise.child(count).uniform(WAKE, canvas.index, phi.shape[1])
            h = (phi - (-u.log()).log().to(phi)).softmax(-1)
            _, g = slope(canvas, h, measured, quantised=False)
            pull = canvas.pull(g)
            grad = h * (pull - (h * pull).sum(-1, keepdim=True))
            p = phi.softmax(-1)
            away = p.log().clamp(min=-1e4) - low
            phi.grad = grad + kl * p * (away - (p * away).sum(-1, keepdim=True))
            mover.step()
            phi.copy_(phi.log_softmax(-1))
        return phi.detach()


@dataclass(frozen=True, eq=False)
class StarTable(Wrapper):
    """The denoiser of G2D2 (arXiv 2410.14710): its table is moved towards a measurement by `Relaxed`, at every open site.

    Goes with `StarShaped`. Its Gumbel noise is that of `Relaxed.seed`, the row of the run and the step. Raises ValueError
    before the first network call for what does not fit.
    """

    soft: SoftDecode
    measured: Measured
    relaxed: Relaxed = Relaxed()
    process: Process = Absorbing()

    @property
    def kind(self) -> str:
        return "own"

    def start(self, batch: TokenBatch) -> Any:
        self.measured.check(self.soft, batch.layout, len(batch.tokens))
        return super().start(batch)

    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = own(self.inner, self.process, state, step)
        canvas = Canvas.of(self.soft, state)
        if not len(canvas.index):
            return prediction
        seeds = self.relaxed.seed * 1_000_003 + state.row
        noise = Noise.seeded(seeds.cpu(), state.valid).step(step.index)
        t = float(torch.as_tensor(step.t).max())
        logits = self.relaxed(canvas, canvas.prior(prediction), self.measured, t, noise)
        made = tabled(canvas, prediction, logits)
        count = 0 if self.relaxed.kl == math.inf else self.relaxed.steps * len(canvas.row)
        return replace(made, cost=made.info._replace(decoded=made.info.decoded + count))
