"""SGDD: split Gibbs sampling, the network's own reverse process and Metropolis moves on the measurement in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.anchoring.failures import Costs
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.kernels import Ancestral
from discdiff.kernels.base import Kernel, arrive, check_grid
from discdiff.noise import CORRUPT, MASK, WAKE, Noise
from discdiff.processes import PerSegment, Process
from discdiff.sampling.grid import as_grid
from discdiff.types import Info, State, Step

POTENTIALS = ("exact", "code")
_SITE, _SYMBOL, _TAKE = CORRUPT, MASK, WAKE  # streams of a Metropolis move
_REVERSE, _MOVES = 1, 2  # children of a step's noise


@dataclass(frozen=True, eq=False)
class SplitGibbs(Kernel):
    """One round of split Gibbs sampling (SGDD, arXiv 2503.01161) as a step from time t to s:

        x ~ p(x0 | x_t = z) by `steps` ancestral steps down to 0;    z' ~ exp(-loss(z')) prod_i q_s(z'_i | x_i) by `moves`
        Metropolis moves that propose one site and one code at random. Free positions of other segments are noised by q_s.

    The potential is that of the process without its masks: a code differs from x at the odds q_s(other) / q_s(same) of each
    other code ("exact"); "code" takes them as the release does, too permissive by the number of codes less one. The last round,
    to s = 0, ends with x. Every round changes all sites, the grid says how noisy each is: start with few equal steps.

    Exact in the limit of many rounds, moves and steps, with the exact denoiser, where the grid stays long at a small s: each
    s > 0 samples from p(x) blurred by q_s. Goes with processes that replace codes (Uniform, MaskOrReplace). Raises ValueError
    for others, and before the first network call for a measurement that does not fit.
    """

    process: Process
    soft: SoftDecode
    measured: Measured
    steps: int = 16
    moves: int = 200
    potential: str = "exact"
    unbiased: ClassVar[bool] = False
    final: ClassVar[bool] = False
    decide_first: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    inner: Ancestral = field(init=False)

    def __post_init__(self) -> None:
        name, one = type(self.process).__name__, not isinstance(self.process, PerSegment)
        replaces = one and float(self.process.marginal(torch.full((), 0.5, dtype=torch.float64), 2).token) > 0
        checked("process", name, replaces, "one that replaces codes is needed: take Uniform or MaskOrReplace")
        checked("steps", self.steps, self.steps >= 1, "at least one step back to time 0")
        checked("moves", self.moves, self.moves >= 0, "0 or more")
        checked("potential", self.potential, self.potential in POTENTIALS, f"choose from {', '.join(POTENTIALS)}")
        object.__setattr__(self, "inner", Ancestral(self.process))

    def init(self, state: State) -> State:
        self.measured.check(self.soft, state.batch, "codes")
        return self.inner.init(state)

    def check(self, grid: Any) -> None:
        check_grid(self.inner, grid)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        clean, info = state, Info()
        back = noise.child(_REVERSE)
        for part in as_grid(self.steps):
            now = part._replace(t=step.t * part.t, s=step.t * part.s)
            clean, cost = self.inner(denoiser, clean, now, back.step(part.index))
            info = info.merge(cost)
        if bool((step.s <= 0).all()):
            return arrive(clean, step), info
        tokens, decoded = self._moved(clean, state, step, noise.child(_MOVES))
        committed = torch.where(state.free, False, state.committed)
        time = torch.where(state.free, step.s.expand(state.time.shape), state.time)
        return clean._replace(tokens=tokens, committed=committed, time=time), info._replace(decoded=decoded)

    @torch.no_grad()
    def _moved(self, clean: State, state: State, step: Step, noise: Noise) -> tuple[Tensor, int]:
        """Tokens (batch, length) after the Metropolis moves, and rows that were decoded."""
        batch, (rows, length) = state.batch, state.tokens.shape
        columns = self.soft.columns(batch.layout)
        free = state.free[:, columns.reshape(-1)]
        x = batch.symbols(clean.tokens)[:, columns.reshape(-1)]
        count = self.soft.codebook.shape[1]
        at = self.process.marginal(step.s.expand(rows, length)[:, columns.reshape(-1)], count)
        log_odds = (at.token / (at.keep + at.token)).log()
        if self.potential == "code":
            log_odds = log_odds + math.log(max(1, count - 1))
        z, here = x.clone(), torch.arange(rows, device=x.device)
        sites = free.sum(1)  # sites of a row that may move come first in `order`
        order = (~free).long().argsort(dim=1, stable=True)

        costs = Costs()

        def cost(codes: Tensor) -> Tensor:
            return costs(self.measured.terms(self.soft.data(codes.view(rows, *columns.shape)), state.row))

        loss = cost(z).clamp(max=1e300)  # inf - inf is no number
        for number in range(self.moves):
            draw = noise.step(number)
            site = order[here, (draw.row_uniform(_SITE) * sites).long().clamp(max=order.shape[1] - 1)]
            symbol = (draw.row_uniform(_SYMBOL) * count).long()
            tried = z.clone()
            tried[here, site] = symbol
            proposed = cost(tried)
            true, odds = x[here, site], log_odds[here, site]
            gain = odds * ((symbol != true).double() - (z[here, site] != true).double()) + loss - proposed
            take = (draw.row_uniform(_TAKE).log() < gain) & (sites > 0)
            z, loss = torch.where(take[:, None], tried, z), torch.where(take, proposed, loss)
        costs.warn(f"step {step.index}: ")
        noisy = self.process.corrupt(batch.symbols(clean.tokens), step.s, noise.uniform(CORRUPT), batch.alphabet)
        ids = batch.ids(noisy.index_copy(1, columns.reshape(-1), z))
        return torch.where(state.free, ids, state.tokens), rows * (self.moves + 1)
