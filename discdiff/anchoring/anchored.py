"""Anchored posterior sampling (APS): the table of clean codes is optimised for a measurement before anything is committed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from discdiff.anchoring.canvas import Canvas, forbidden, limits
from discdiff.anchoring.chosen import Chosen, chosen_codes, tabled
from discdiff.anchoring.descent import Descent, Fit
from discdiff.anchoring.failures import Costs
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.denoisers import Guided, Prediction
from discdiff.denoisers.wrappers import Wrapper
from discdiff.kernels.base import own_transform
from discdiff.layout import TokenBatch
from discdiff.processes import Absorbing, Process
from discdiff.types import State, Step, per_position

LIKELIHOODS, TAKEN, RANKED = ("decoded", "expected_cost"), ("quantised", "sample"), ("table", "prior")
_ROWS, _FAR = 256, 50.0  # rows decoded at a time for expected costs; nats beyond which a tilt is not remembered
Watch = Callable[[State, Step, Fit], None]


@dataclass(frozen=True, eq=False)
class Anchored(Wrapper):
    """A denoiser whose prediction of the clean codes is moved towards a measurement (APS, arXiv 2510.02291).

    likelihood: "decoded" moves the table by `descent`; "expected_cost" tilts it exactly, p(c) ~ p_network(c) exp(-cost(c) /
    beta) with cost(c) that of the data in which one site has code c and all others what the network expects (beta 0 counts as
    1), for small alphabets: every code of every site is decoded. take: the codes that are committed: those nearest to the
    expectation ("quantised"), or a draw ("sample"). Constraints, truncation and temperature around this act on the table
    before either; at temperature 0 the likeliest code is taken. rank: orders look at the optimised "table" (anchored
    re-masking) or at the network's "prior" (standard re-masking). warm: each step begins where the network's new table, tilted
    as the last one was, would be, not at the network's table (ours; the paper begins anew). average: the codes that are taken
    at a site's last step are nearest to the mean of what the tables since that time expected there (ours; 0: what the last one
    alone does), worth its while with samplers that decide all sites anew until the end. Without `measured` nothing changes,
    token for token. process: that of the sampler, for networks that predict cavities. watch: told of every fit.

    With any kernel, guidance inside, blocks and given tokens. Where a position's clock has not begun, as in later blocks, the
    network is not asked: the fit begins with all codes alike there. Predictions are not exact: a posterior sampler that seeks
    modes; the exact tilt is one for a single open site. Raises ValueError before the first network call for an operator,
    codebook or tokenizer that does not fit.
    """

    soft: SoftDecode
    measured: Measured | None = None
    descent: Descent = Descent()
    likelihood: str = "decoded"
    take: str = "quantised"
    rank: str = "table"
    warm: bool = True
    average: float = 0.0
    process: Process = Absorbing()
    watch: Watch | None = None
    memory: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, known in (("likelihood", LIKELIHOODS), ("take", TAKEN), ("rank", RANKED)):
            checked(name, getattr(self, name), getattr(self, name) in known, f"choose from {', '.join(known)}")
        checked("average", self.average, 0 <= self.average <= 1, "a time in [0, 1], 0 for the last table alone")
        ok = self.take == "quantised" or not self.average
        checked("take", self.take, ok, 'a mean has no draws: take "quantised", or leave average out')

    @property
    def kind(self) -> str:
        return self.inner.kind if self.measured is None else "own"

    @property
    def run(self) -> dict[str, Tensor]:
        """What a run remembers: two passes of guidance around this must not share it."""
        return self.memory

    def start(self, batch: TokenBatch) -> Any:
        if self.measured is None:
            return super().start(batch)
        self.measured.check(self.soft, batch, "gradient" if self.likelihood == "decoded" else "soft")
        return replace(self, inner=self.inner.start(batch), memory={})  # a run owns what it remembers

    @torch.no_grad()
    def __call__(self, state: State, step: Step) -> Prediction:
        if self.measured is None:
            return self.inner(state, step)
        remembers = self.warm or self.average > 0
        if remembers and len(state.row) > len(
            self.measured.y
        ):  # no look at the device: a run has no more rows than that
            raise ValueError(
                "rows of the run repeat in one call: copies of a row cannot share its memory, give warm=False, average=0"
            )
        prediction, canvas = own(self.inner, self.process, state, step), Canvas.of(self.soft, state, step)
        if not bool(canvas.begun.any()):
            return prediction
        prior = canvas.prior(prediction)
        fit = self._fit(canvas, prior, step)
        if self.watch is not None:
            self.watch(state, step, fit)
        made = tabled(canvas, prediction, fit.logits)
        made = replace(made, cost=made.info._replace(decoded=made.info.decoded + fit.decoded))
        ranking, table = (made, None) if self.rank == "table" else (replace(prediction, cost=made.cost), made)
        fields = {name: getattr(ranking, name) for name in Prediction.__dataclass_fields__}
        if self.take == "sample":
            return Chosen(**fields, table=table)

        settle = self._settle(canvas, state, step, fit.embeddings)

        def choose(changed: Prediction) -> Tensor:
            log_p = canvas.prior(changed)
            return chosen_codes(canvas, settle(canvas.expect(log_p.exp())), log_p, prediction)

        choice = chosen_codes(canvas, settle(fit.embeddings), fit.logits, prediction)
        return Chosen(**fields, choice=choice, table=table, choose=choose)

    def _fit(self, canvas: Canvas, prior: Tensor, step: Step) -> Fit:
        assert self.measured is not None
        label = f"step {step.index}: "
        if self.likelihood == "decoded":
            if not self.warm:
                return self.descent(canvas, prior, self.measured, label)
            tilt, key = self._tilt(canvas), canvas.key
            fit = self.descent(canvas, prior, self.measured, label, (prior + tilt[key]).log_softmax(-1))
            moved = (fit.logits.log_softmax(-1) - prior).clamp_(-_FAR, _FAR)
            tilt[key] = moved.masked_fill_(forbidden(prior), 0.0)  # nothing is known of what could not stand
            return fit
        cost, beta = expected_costs(canvas, prior, self.measured, label), self.descent.beta or 1.0
        tilted = prior - cost / beta
        tilted = torch.where(tilted.amax(-1, keepdim=True) == -torch.inf, prior, tilted)
        least = -beta * tilted.logsumexp(-1)  # the smallest E_p[cost] + beta KL(p || p_network) there is
        loss = least.new_zeros(len(canvas.row)).index_add_(0, canvas.owner, least)
        logits = tilted.log_softmax(-1)
        return Fit(logits, canvas.expect(logits.exp()), loss[None], int(canvas.begun.sum()) * cost.shape[1])

    def _tilt(self, canvas: Canvas) -> Tensor:
        """(rows of the run * sites of a row, codes): by how much the last fits moved the log probabilities."""
        assert self.measured is not None
        sites = canvas.known.shape[1] * canvas.soft.depth
        return self._kept("tilts", canvas, len(self.measured.y) * sites, canvas.soft.codebook.shape[1])

    def _settle(self, canvas: Canvas, state: State, step: Step, now: Tensor) -> Callable[[Tensor], Tensor]:
        """Of embeddings (n, slots, d) that a table of this step expects, those that codes are taken from; `now`, of the table
        that was fitted, is remembered.
        """
        if not self.average:
            return lambda e: e
        assert self.measured is not None
        rows, slots, width = canvas.known.shape
        t, s = (per_position(x, state.tokens).expand(state.tokens.shape).reshape(-1) for x in (step.t, step.s))
        counts = canvas.begun & (t[canvas.index] <= self.average)
        share, ends = canvas.known.new_zeros(2, rows * slots)
        share.index_add_(0, canvas.place, counts.to(share)).clamp_(max=1)
        ends.index_add_(0, canvas.place, (counts & (s[canvas.index] <= 0)).to(ends))
        share, here = share.view(rows, slots, 1), ends.view(rows, slots, 1) > 0
        total = self._kept("sum", canvas, len(self.measured.y), slots, width)
        number = self._kept("count", canvas, len(self.measured.y), slots, 1)
        before, count = total[canvas.row], number[canvas.row] + share
        total[canvas.row], number[canvas.row] = before + share * now, count
        return lambda e: torch.where(here, (before + share * e) / count.clamp(min=1), e)

    def _kept(self, name: str, canvas: Canvas, *shape: int) -> Tensor:
        if name not in self.memory:
            self.memory[name] = canvas.known.new_zeros(shape)
        return self.memory[name]


def own(inner: Any, process: Process, state: State, step: Step) -> Prediction:
    """The prediction p(x0_i | x_t) of a denoiser of either kind. Raises ValueError where guidance is left to the kernel."""
    prediction = inner(state, step)
    if isinstance(prediction, Guided):
        raise ValueError('the guidance level is "posterior": a table that is optimised needs level "x0"')
    return prediction if inner.kind == "own" else prediction.then(own_transform(process, state, step))


@torch.no_grad()
def expected_costs(canvas: Canvas, prior: Tensor, measured: Measured, label: str = "") -> Tensor:
    """(m, codes): the loss of the data in which a site has a code, and all others those nearest to what `prior` expects,
    infinite where it is not finite, which a RuntimeWarning tells; 0 at sites that have not begun.
    """
    soft, count, costs = canvas.soft, canvas.soft.codebook.shape[1], Costs()
    codes = canvas.legal(canvas.expect(prior.exp()), limits(prior))
    out = prior.new_zeros(len(canvas.index), count)
    for site in canvas.begun.nonzero()[:, 0].split(max(1, _ROWS // count)):
        tried = codes[canvas.owner[site]].repeat_interleave(count, 0)
        row = torch.arange(len(tried), device=prior.device)
        slot = (canvas.place[site] % codes.shape[1]).repeat_interleave(count)
        tried[row, slot, canvas.level[site].repeat_interleave(count)] = row % count
        loss = costs(measured.terms(soft.data(tried), canvas.row[canvas.owner[site]].repeat_interleave(count)))
        out[site] = loss.view(-1, count).to(out)
    costs.warn(label)
    return out
