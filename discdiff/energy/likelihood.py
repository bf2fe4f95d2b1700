"""Likelihood of energy-corrected models: log Z from both sides, and the bound that belongs to the sampler.

One small step of the corrected chain reveals at most one token, so only the per-position marginals of
p(x0 | x_t) = p_theta exp(-E) / Z enter its bound, and `marginal_nelbo` estimates that. The weighted joint
-log p_theta(x0 | x_t) + E(x0) + log Z is not offered as a perplexity: with coAR the first two terms cancel all but
-sum log p_AR(x_i | x_<i), so that its integral over t is the autoregressive model's own NLL for any denoiser whatever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Prediction
from discdiff.energy.base import Candidates, energies
from discdiff.kernels.base import select
from discdiff.layout import TokenBatch
from discdiff.maskers import FixedCount, Masker
from discdiff.metrics import Estimate, row_uniform
from discdiff.noise import TOKEN, Noise
from discdiff.schedules import Linear
from discdiff.types import State, Step

_GOLDEN = 0.6180339887498949
_POSITIONS = 1 << 20  # of candidates at a time
_EXACT = FixedCount(Linear(), elbo=True)


class Bound(NamedTuple):
    """A bound in nats, its standard error over `groups`, and n, the samples in each."""

    value: float
    stderr: float
    n: int
    groups: int


class Bounds(NamedTuple):
    """`lower` is below the truth in expectation at every n; `upper` is above it only for n large enough."""

    lower: Bound
    upper: Bound


class MarginalNelbo(NamedTuple):
    """Nats per row: `estimate` with a bias of O(1 / n), of either sign and towards `plain` for few candidates; `lower` and
    `upper`, which enclose the bound for n large and lie far apart where n is too small; `plain`, the uncorrected model's
    bound on the same noise. n candidates made each expectation.
    """

    estimate: Estimate
    lower: Estimate
    upper: Estimate
    plain: Estimate
    n: int


def log_partition(values: Tensor) -> Bounds:
    """log Z = log E exp(-E) from energies (groups, n) of candidates drawn from the proposal, averaged over the groups.

    lower = mean log Zhat_n, below log Z by Jensen's inequality, by about v / 2n; upper = (2n - 1) mean log Zhat_n -
    2(n - 1) mean log Zhat_(n-1) over the leave-one-out sets, above it by as much, asymptotically (EDLM arXiv 2410.21357
    section 3.2). Groups of different x_t bound the mean of log Z. Raises ValueError unless values are finite with n >= 2.
    """
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or not values.is_floating_point():
        raise ValueError(
            f"energies are {values.dtype} {tuple(values.shape)}: give (groups, n), n >= 2 to leave one out"
        )
    if not bool(values.isfinite().all()):
        raise ValueError("an energy is not finite: give a large finite one, such as 1e4, to what is forbidden")
    groups, n = values.shape

    def bound(each: Tensor) -> Bound:
        return Bound(float(each.mean()), _stderr(each), n, groups)

    return Bounds(*(bound(each) for each in _sides(values.double())))


def draw_candidates(prediction: Prediction, state: State, noise: Noise, n: int) -> Candidates:
    """n clean sequences for every row, all its unknown positions drawn from the factorised prediction."""
    index = select(state.free & ~state.committed)
    row, column = _places(state, index)
    tokens = state.tokens[:, None].repeat(1, n, 1)
    log_prob = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    tokens[row, :, column], log_prob[row, :, column] = prediction.candidates(index, noise, n, TOKEN)
    return Candidates(tokens, log_prob, state.free & ~state.committed)


@torch.no_grad()
def marginal_nelbo(
    denoiser: Any,
    energy: Any,
    batches: Iterable[TokenBatch],
    *,
    n: int = 16,
    log_z: float | None = None,
    draws: int = 1,
    seed: int = 0,
    masker: Masker = _EXACT,
) -> MarginalNelbo:
    """Negative evidence bound of the corrected continuous-time reverse chain of an absorbing process, nats per row.

    The masker's weighted sum over hidden i, true token v, of -log p(v | x_t) = log Z - log p_theta,i(v) - log A, where
    A = E exp(-E(v, x_-i)) and Z = p_theta,i(v) A + (1 - p_theta,i(v)) B, B = E[exp(-E(x)) | x_i != v], over the same n draws
    of the frozen proposal. `estimate` puts in the means for A and B, so it is never below 0. `upper` takes log A from below
    and log Z from above as `log_partition` does, `lower` the other way round, so both are biased outwards by O(1 / n): quote
    `upper`. Energies of wide spread, as from sharp autoregressive models, need n large. log_z: log Z where it is known (coAR:
    0.0), used for both sides; `upper` is then above the bound in expectation at every n. A draw costs n (1 + its hidden
    positions) scored sequences per row. Noise is keyed by (seed, draw, row number), times are stratified as in
    `metrics.nelbo`. Raises ValueError for n < 2, draws < 1, no rows, data that hold the mask, a denoiser at temperature 0,
    and one that gives a true token no chance.
    """
    checked("energy", energy, callable(energy), "give (candidates, state, t) -> (batch, k)")
    checked("n", n, n >= 2, "at least 2 candidates, to leave one out")
    checked("draws", draws, draws >= 1, "at least 1")
    checked("log_z", log_z, log_z is None or math.isfinite(log_z), "a finite number where log Z is known, else None")
    means, first = [], 0
    for batch in batches:
        _check_data(batch)
        rows = torch.arange(first, first + len(batch.tokens), device=batch.tokens.device)
        first += len(rows)
        total = torch.zeros(len(rows), 4, dtype=torch.float64, device=rows.device)
        for draw in range(draws):
            noise = Noise.training(seed, torch.full_like(rows, draw), rows, batch.valid)
            time = torch.frac((rows * draws + draw + 1).double() * _GOLDEN + float(row_uniform(seed)))
            hidden, weight = masker(batch, noise, time)
            state, t = _hide(batch, hidden, time, rows), time[:, None].expand(hidden.shape)
            prediction = denoiser.start(state.batch)(state, Step(0, t, torch.zeros_like(t)))
            if prediction.temperature == 0:
                raise ValueError(
                    "the denoiser draws the arg-max: a likelihood needs the law it draws from, temperature 1"
                )
            index = select(hidden)
            nats = _site_nats(prediction, energy, batch, state, t, noise, index, n, log_z)
            row, _ = _places(state, index)
            total.index_add_(0, row, nats * weight.reshape(-1)[index, None])
        means.append(total / draws)
    if not means:
        raise ValueError("no rows to evaluate")
    found = [Estimate(float(x.mean()), _stderr(x), len(x), draws) for x in torch.cat(means).unbind(1)]
    return MarginalNelbo(found[0], found[1], found[2], found[3], n)


def _site_nats(
    prediction: Prediction,
    energy: Any,
    batch: TokenBatch,
    state: State,
    t: Tensor,
    noise: Noise,
    index: Tensor,
    n: int,
    log_z: float | None,
) -> Tensor:
    """-log p(true token | x_t) at the hidden sites: the estimate, its sides and the uncorrected one, (sites, 4)."""
    if not len(index):
        return torch.zeros(0, 4, dtype=torch.float64, device=index.device)
    row, column = _places(state, index)
    true = batch.tokens.reshape(-1)[index]
    prior = prediction.log_prob(index, true)
    if bool((prior == -math.inf).any()):
        site = int((prior == -math.inf).nonzero()[0])
        raise ValueError(
            f"the denoiser gives token {int(true[site])} at row {int(state.row[row[site]])}, position {int(column[site])} "
            "no chance, so the bound is infinite: leave truncation and constraints out"
        )
    base = draw_candidates(prediction, state, noise, n)
    drawn = energies(energy, base, state, t)
    z_low, z_high = _sides(drawn) if log_z is None else (torch.full_like(drawn[:, 0], log_z),) * 2
    found = []
    for piece in torch.arange(len(index), device=index.device).split(max(1, _POSITIONS // base.tokens[0].numel())):
        at, where, token, chance = row[piece], column[piece], true[piece, None], prior[piece]
        there, place = base.rows(at), torch.arange(len(piece), device=index.device)
        same = there.tokens[place, :, where] == token
        there.tokens[place, :, where], there.log_prob[place, :, where] = token, chance[:, None]
        mine = energies(energy, there, state.rows(at), t[at])
        low, high = _sides(mine)
        rest = (-drawn[at]).masked_fill(same, -math.inf).logsumexp(1) - (~same).sum(1).double().log()
        rest = torch.where(same.all(1), low, rest)  # nothing else was drawn: nothing is known against the token
        against = torch.log1p(-chance.exp().clamp(max=1)) - chance + rest - low
        estimate = torch.nn.functional.softplus(against)
        found.append(torch.stack([estimate, z_low[at] - high - chance, z_high[at] - low - chance, -chance], 1))
    return torch.cat(found)


def _sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """log E exp(-E) of each group of n energies, (groups, n) -> lower and upper, (groups,)."""
    n, x = values.shape[1], -values
    edge = x.new_full((len(x), 1), -math.inf)
    before = torch.cat([edge, x.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([x.flip(1).logcumsumexp(1).flip(1)[:, 1:], edge], 1)
    without = torch.logaddexp(before, after).mean(1) - math.log(n - 1)  # nothing is subtracted: no digit is lost
    whole = x.logsumexp(1) - math.log(n)
    return whole, (2 * n - 1) * whole - 2 * (n - 1) * without


def _hide(batch: TokenBatch, hidden: Tensor, time: Tensor, rows: Tensor) -> State:
    tokens = batch.tokens.masked_fill(hidden, batch.layout.vocab.mask)
    reached = torch.where(batch.free, time[:, None], 0.0)
    noisy = batch._replace(tokens=tokens)
    return State(tokens, batch.given, batch.valid, ~hidden, reached, rows, noisy, {}, {})


def _places(state: State, index: Tensor) -> tuple[Tensor, Tensor]:
    length = state.tokens.shape[1]
    return torch.div(index, length, rounding_mode="floor"), index % length


def _stderr(each: Tensor) -> float:
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf


def _check_data(batch: TokenBatch) -> None:
    unknown = batch.free & (batch.tokens == batch.layout.vocab.mask)
    if bool(unknown.any()):
        row, column = (int(i) for i in unknown.nonzero()[0])
        raise ValueError(f"row {row}, position {column} holds the mask: a likelihood is that of whole sequences")
