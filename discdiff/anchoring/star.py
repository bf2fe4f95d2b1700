"""G2D2: the table is optimised through a relaxed draw, and every step re-noises a whole clean draw, whatever came before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.anchoring.adam import Adam
from discdiff.anchoring.anchored import own
from discdiff.anchoring.canvas import NEVER, Canvas, forbidden
from discdiff.anchoring.chosen import tabled
from discdiff.anchoring.descent import away, project, slope
from discdiff.anchoring.failures import Failures
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.denoisers import Prediction
from discdiff.denoisers.wrappers import Wrapper
from discdiff.kernels.ancestral import sites
from discdiff.kernels.base import Kernel, arrive, ask, select
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, TOKEN, WAKE, Noise, row_seeds
from discdiff.processes import Absorbing, Process
from discdiff.types import Info, State, Step, per_position


@dataclass(frozen=True)
class StarShaped(Kernel):
    """x0 ~ prediction at every free position, then x_s ~ q(x_s | x0), independent of x_t (G2D2, arXiv 2410.14710).

    Nothing is final before time 0, so that early mistakes can be undone. Biased: a position's next value forgets the present
    one's company. Where a token can only come from itself, as with Absorbing, it is its own x0, until the noise takes it: the
    network is not asked, nor does a table say anything there; with processes that replace codes it does everywhere.
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
        x, t, s, alphabet = sites(state, step, index)
        x0, info = x, Info()
        unsure = (self.process.own_shift(x, t, alphabet) < torch.inf).nonzero()[:, 0]
        if len(unsure):
            asked = ask(denoiser, self.process, state, step, noise, index[unsure])
            drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN)
            x0 = x.scatter(0, unsure, state.batch.symbols(drawn.tokens, index[unsure]))
            info = asked.info._replace(entropy=-drawn.log_prob.mean())
        noisy = self.process.corrupt(x0, s, noise.uniform(CORRUPT, index), alphabet)
        noisy = torch.where(s > 0, noisy, x0)
        sure = (s <= 0) | ~(self.process.own_shift(noisy, s, alphabet) < torch.inf)
        tokens = state.tokens.reshape(-1).scatter(0, index, state.batch.ids(noisy, index)).view(state.tokens.shape)
        committed = state.committed.reshape(-1).scatter(0, index, sure).view(state.tokens.shape)
        info = info._replace(committed=(committed & ~state.committed).sum())
        return arrive(state, step)._replace(tokens=tokens, committed=committed), info


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
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "at least one inner step")
        checked("rate", self.rate, 0 < self.rate < math.inf, "above 0")
        for name in ("rate_span", "kl_span"):
            checked(name, getattr(self, name), math.isfinite(getattr(self, name)), "a finite number, 0 for no change")
        checked("kl", self.kl, self.kl >= 0, "0 or more, inf to keep the network's table")

    @torch.no_grad()
    def __call__(
        self, canvas: Canvas, prior: Tensor, measured: Measured, t: Tensor, noise: Noise, label: str = ""
    ) -> Tensor:
        """The optimised log probabilities (m, codes), the rows (n,) of the canvas being at the times t (n,)."""
        if self.kl == math.inf:
            return prior
        span, owner = t.to(prior) - 0.5, canvas.owner
        rate, kl = (
            x * 10 ** (w * span)[owner, None] for x, w in ((self.rate, self.rate_span), (self.kl, self.kl_span))
        )
        phi = prior.clamp(min=NEVER)
        adam, failures = Adam(phi, rate, rectified=True), Failures(canvas.row)
        active = torch.ones_like(canvas.row, dtype=torch.bool)
        grad, pull = torch.empty_like(phi), torch.empty_like(phi)
        terms: dict[str, Tensor] = {}
        for count in range(self.steps):
            u = noise.child(count).uniform(WAKE, canvas.index, phi.shape[1])
            h = u.log_().neg_().log_().neg_().to(phi).add_(phi).softmax(-1)
            terms, g = slope(canvas, h, measured, quantised=False)
            project(h, canvas.pull(g, grad))
            away(torch.softmax(phi, -1, out=h), prior, pull)
            project(h, pull)
            grad += pull.mul_(kl)
            terms["gradient"] = g.flatten(1).abs().sum(1)
            active = failures.note(count, torch.stack(list(terms.values())), active)
            adam.move(grad, active[owner, None], count)
            phi.sub_(phi.logsumexp(-1, keepdim=True))
        if failures.warn(list(terms), label):
            adam.undo(failures.when[owner])
        return phi.log_softmax(-1).masked_fill_(forbidden(prior), -torch.inf)


@dataclass(frozen=True, eq=False)
class StarTable(Wrapper):
    """The denoiser of G2D2 (arXiv 2410.14710): its table is moved towards a measurement by `Relaxed`, at every open site.

    Goes with `StarShaped`. Its Gumbel noise is that of `Relaxed.seed`, one or one per row (as `discdiff.row_seeds` gives), and
    the step. Raises ValueError before the first network call for what does not fit.
    """

    soft: SoftDecode
    measured: Measured
    relaxed: Relaxed = Relaxed()
    process: Process = Absorbing()

    @property
    def kind(self) -> str:
        return "own"

    def start(self, batch: TokenBatch) -> Any:
        self.measured.check(self.soft, batch)
        row_seeds(self.relaxed.seed, len(batch.tokens))  # raises where they are not as many
        return replace(self, inner=self.inner.start(batch))  # another one: rows may not run ahead, steps name the noise

    @torch.no_grad()
    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = own(self.inner, self.process, state, step)
        canvas = Canvas.of(self.soft, state, step)
        if not bool(canvas.begun.any()):
            return prediction
        seeds = row_seeds(self.relaxed.seed, len(self.measured.y))[state.row.cpu()]
        noise = Noise.seeded(seeds, state.valid).step(step.index)
        t = per_position(step.t, state.tokens).expand(state.tokens.shape).amax(1)
        label = f"step {step.index}: "
        logits = self.relaxed(canvas, canvas.prior(prediction), self.measured, t, noise, label)
        made = tabled(canvas, prediction, logits)
        count = 0 if self.relaxed.kl == math.inf else self.relaxed.steps * len(canvas.row)
        return replace(made, cost=made.info._replace(decoded=made.info.decoded + count))
