"""SVDD and best-of-n: of several draws the ones that fit a measurement best are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.anchoring.anchored import own
from discdiff.anchoring.canvas import Canvas
from discdiff.anchoring.failures import Costs
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.denoisers import inverse_cdf
from discdiff.kernels.base import Around
from discdiff.layout import TokenBatch
from discdiff.noise import ORDER, Noise
from discdiff.sampling import Sampler
from discdiff.types import Info, State, Step


@dataclass(frozen=True, eq=False)
class Selected(Around):
    """`count` children of every row by the inner kernel, one kept with chance softmax(-loss / alpha) (SVDD, arXiv 2408.08252).

    The value of a child is -loss of the decoded E[embedding | child], one more network call per child (the posterior-mean
    variant); alpha 0 keeps the best child, as the released code does. With one child it is the inner kernel, call for call.
    """

    inner: Any
    soft: SoftDecode
    measured: Measured
    count: int = 10
    alpha: float = 1.0
    unbiased: ClassVar[bool] = False
    decide_first: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked("count", self.count, self.count >= 1, "at least one child")
        checked("alpha", self.alpha, 0 <= self.alpha < math.inf, "0 (the best child) or more")

    def init(self, state: State) -> State:
        self.measured.check(self.soft, state.batch, "soft")
        return self.inner.init(state)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        if self.count == 1:
            return self.inner(denoiser, state, step, noise)
        t, s = (each.expand(state.tokens.shape).repeat_interleave(self.count, 0) for each in (step.t, step.s))
        repeated = step._replace(t=t, s=s)
        children, info = self.inner(denoiser, state.repeat(self.count), repeated, noise.repeat(self.count))
        value, cost = self.value(denoiser, children, step._replace(t=s, s=s))
        value = value.view(-1, self.count)
        if self.alpha:
            weight = ((value - value.amax(1, keepdim=True)) / self.alpha).exp()
            kept = inverse_cdf(weight, noise.row_uniform(ORDER))
        else:
            kept = value.argmax(1)
        chosen = children.rows(torch.arange(len(kept), device=kept.device) * self.count + kept)
        done = (chosen.committed & ~state.committed).sum()
        return chosen, info._replace(committed=0).merge(cost)._replace(committed=done)

    @torch.no_grad()
    def value(self, denoiser: Any, state: State, step: Step) -> tuple[Tensor, Info]:
        """-loss (n,) of what the codes of a state are expected to decode to, and what it cost."""
        canvas = Canvas.of(self.soft, state, step)
        e, cost = canvas.known, Info()
        if len(canvas.index):
            prediction = own(denoiser, self.process, state, step)
            e = canvas.expect(canvas.prior(prediction).exp())
            cost = prediction.info._replace(head_rows=len(canvas.index))
        costs = Costs()
        loss = costs(self.measured.terms(self.soft.decode(e), state.row))
        costs.warn(f"step {step.index}: ")
        return -loss.clamp(max=1e300), cost._replace(decoded=cost.decoded + len(state.row))  # inf - inf is no number


def best_of(
    run: Sampler, denoiser: Any, batch: TokenBatch, soft: SoftDecode, measured: Measured, count: int = 10,
    seed: int | Sequence[int] = 0,
) -> tuple[State, Info]:  # fmt: skip
    """Of `count` runs of every row the one whose decoded codes have the least loss, and what all of them cost.

    seed: one, of which copy j of row i takes the (i * count + j)-th from it on, or one per copy. Raises ValueError for a
    measurement that does not fit.
    """
    checked("count", count, count >= 1, "at least one run")
    measured.check(soft, batch, "codes")
    seeds = [seed + i for i in range(count * len(batch.tokens))] if isinstance(seed, int) else list(seed)
    state, info = run(denoiser, batch.repeat(count), seeds)
    codes = state.batch.symbols(state.tokens)[:, soft.columns(batch.layout)]
    costs = Costs()
    with torch.no_grad():
        loss = costs(measured.terms(soft.data(codes), torch.div(state.row, count, rounding_mode="floor")))
    costs.warn("after the last step: ")
    kept = loss.view(-1, count).argmin(1)
    chosen = torch.arange(len(kept), device=kept.device) * count + kept
    return state.rows(chosen), info._replace(decoded=info.decoded + len(loss))
