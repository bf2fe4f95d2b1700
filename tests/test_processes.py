"""Processes: every closed form against dense matrices, brute-force Bayes and fine grids of uniforms."""

import itertools
import math

import pytest
import torch

from discdiff.processes import (
    Absorbing,
    Dense,
    Interpolating,
    Process,
    Uniform,
    vq_paper,
    vq_released,
)
from discdiff.schedules import CosineMD4, Geometric, Linear

FAMILIES = {
    "absorbing": Absorbing(),
    "absorbing_cos": Absorbing(CosineMD4()),
    "absorbing_loglinear": Absorbing(Linear(end=1e-3)),
    "uniform": Uniform(),
    "uniform_geometric": Uniform(Geometric()),
    "vq_paper": vq_paper(),
    "vq_released": vq_released(),
    "gidd": Interpolating(),
    "gidd_2": Interpolating(0.4, 2.0),
    "gidd_no_uniform": Interpolating(0.0, 4.0),
}
ALL = pytest.mark.parametrize("process", FAMILIES.values(), ids=FAMILIES.keys())
PAIRS = [(0.0, 0.3), (0.0, 1.0), (0.25, 0.3), (0.35, 0.7), (0.5, 1.0), (0.98, 0.99)]


def time(t) -> torch.Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def kernel_matrix(process: Process, s: float, t: float, size: int) -> torch.Tensor:
    """Q_ts (S, S) written out from the three numbers of `transition`; a mask row that stays for mask-absorbing families."""
    keep, token, mask = (float(x) for x in process.transition(time(s), time(t), size))
    q = torch.full((size + 1, size + 1), token, dtype=torch.float64)
    q[:, size] = mask
    q += keep * torch.eye(size + 1, dtype=torch.float64)
    if process.mask_absorbing:
        q[size] = torch.eye(size + 1, dtype=torch.float64)[size]
    return q


def marginal_matrix(process: Process, t: float, size: int) -> torch.Tensor:
    """q_t(z | x0) as (K, S)."""
    keep, token, mask = (float(x) for x in process.marginal(time(t), size))
    q = torch.full((size, size + 1), token, dtype=torch.float64)
    q[:, size] = mask
    return q + keep * torch.eye(size, size + 1, dtype=torch.float64)


def bayes(process: Process, s: float, t: float, size: int) -> torch.Tensor:
    """q(x_s | x_t, x0) as (x_t, x0, x_s) by eq. (3); nan where x_t is impossible under x0."""
    joint = torch.einsum("vs,sx->xvs", marginal_matrix(process, s, size), kernel_matrix(process, s, t, size))
    return joint / marginal_matrix(process, t, size).T[..., None]


def predictions(shape, size: int, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(*shape, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * logits).log_softmax(-1)


@ALL
def test_chapman_kolmogorov(process):
    """T1: M_s Q_st = M_t and Q_rs Q_st = Q_rt; every row a distribution."""
    worst = 0.0
    for size, (s, t) in itertools.product((2, 5), PAIRS):
        q = kernel_matrix(process, s, t, size)
        assert float(q.min()) >= 0
        errors = [q.sum(-1) - 1, marginal_matrix(process, s, size) @ q - marginal_matrix(process, t, size)]
        middle = (s + t) / 2
        errors.append(kernel_matrix(process, s, middle, size) @ kernel_matrix(process, middle, t, size) - q)
        worst = max(worst, *(float(e.abs().max()) for e in errors))
    assert worst < 1e-14


@ALL
def test_derivatives_and_rates(process):
    """dmarginal by central differences; rates = the off-diagonal of (Q_t,t+h - 1) / h."""
    h, size = 1e-5, 4
    for t in (0.1, 0.5, 0.9):
        up, down = process.marginal(time(t + h), size), process.marginal(time(t - h), size)
        for a, b, slope in zip(up, down, process.dmarginal(time(t), size), strict=True):
            assert float(slope) == pytest.approx(float(a - b) / (2 * h), abs=1e-6)
        to_token, to_mask = process.rates(time(t), size)
        q = kernel_matrix(process, t - h, t + h, size) / (2 * h)
        assert float(to_token) == pytest.approx(float(q[0, 1]), rel=1e-3, abs=1e-12)
        assert float(to_mask) == pytest.approx(float(q[0, size]), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("process", [vq_paper(), vq_released()], ids=["paper", "released"])
def test_vq_closed_form_and_strides(process):
    """T2: (alpha_t, beta_t, gamma_t) of VQ-Diffusion eq. 7, multiplied out, against the cumulative form."""
    size, steps = 5, 20
    abar, live = (f.alpha(torch.arange(steps + 1).double() / steps) for f in (process.schedule, process.survival))
    total = marginal_matrix(process, 0, size)
    for i in range(steps):
        alpha, gamma = abar[i + 1] / abar[i], 1 - live[i + 1] / live[i]
        q = torch.eye(size + 1, dtype=torch.float64) * alpha + (1 - alpha - gamma) / size
        q[:, size], q[size] = gamma, 0
        q[size, size] = 1
        total = total @ q
        assert float((total - marginal_matrix(process, (i + 1) / steps, size)).abs().max()) < 1e-15
    strided = torch.linalg.multi_dot([kernel_matrix(process, i / 20, (i + 5) / 20, size) for i in (0, 5, 10, 15)])
    assert float((strided - kernel_matrix(process, 0, 1, size)).abs().max()) < 1e-15


@ALL
def test_posterior_is_bayes_and_dense(process):
    """T3: mixture posterior of a random own prediction against eq. (3) summed by hand and against `Dense`, at 1e-12."""
    size, steps = 4, 10
    close = 1e-10 if process == vq_released() else 1e-12  # its replaced mass, 1e-6, is a difference of two near one
    dense = Dense.of(process, size, steps)
    clean = marginal_matrix(process, 0, size)
    states = torch.arange(size + 1)
    for s, t in ((0.0, 0.1), (0.0, 1.0), (0.2, 0.7), (0.9, 1.0)):
        possible = (marginal_matrix(process, t, size) > 0).T  # (x_t, x0)
        log_x0 = torch.where(possible, predictions((size + 1,), size), -torch.inf).log_softmax(-1)
        here = possible.any(1)
        x, log_x0 = states[here], log_x0[here]
        found = process.log_posterior(log_x0, x, t, s).exp()
        expected = torch.einsum("xv,xvs->xs", log_x0.exp(), bayes(process, s, t, size).nan_to_num(0)[here])
        assert float((found - expected).abs().max()) < close
        assert float((found.sum(-1) - 1).abs().max()) < close
        if float((clean - torch.eye(size, size + 1)).abs().max()) == 0:  # Dense starts from clean symbols
            assert float((dense.log_posterior(log_x0, x, t, s).exp() - found).abs().max()) < close
            q = dense.log_marginal(log_x0, t) - process.log_marginal(log_x0, t)
            assert float(q.nan_to_num(0).abs().max()) < close


@ALL
def test_two_token_joint_by_enumeration(process):
    """T3, T4: with exact predictions mixture(own), plug-in(cavity) and mixture(own(cavity)) are the true p(x_s,i | x_t)."""
    size, s, t = 3, 0.35, 0.7
    p = predictions((), size * size, 5).exp().view(size, size)
    q_s, q_t = (marginal_matrix(process, a, size) for a in (s, t))
    step = kernel_matrix(process, s, t, size)
    joint = torch.einsum("ab,ax,by->abxy", p, q_t, q_t)
    evidence = joint.sum((0, 1))
    live = (evidence > 0).nonzero()
    x, y = live.unbind(1)
    own = (joint.sum(1) / evidence)[:, x, y].T
    cavity = (torch.einsum("ab,by->ay", p, q_t) / (p.sum(0) @ q_t))[:, y].T
    exact = torch.einsum("ab,as,by,sx->sxy", p, q_s, q_t, step)[:, x, y].T / evidence[x, y][:, None]
    mixture = process.log_posterior(own.log(), x, t, s).exp()
    converted = process.log_posterior(process.own(cavity.log(), x, t), x, t, s).exp()
    plug_in = step[:, x].T * (cavity @ q_s) / (cavity @ q_t).gather(1, x[:, None])  # eq. (5), written out
    for law in (mixture, converted, plug_in):
        assert float((law - exact).abs().max()) < 1e-12
    assert float((process.own(cavity.log(), x, t).exp() - own).abs().max()) < 1e-12


@ALL
def test_plug_in_identity_for_any_prediction(process):
    """T4: plug-in(cavity) == mixture(own(cavity)) for random cavities at every pair of times."""
    size = 4
    x = torch.arange(size + 1).repeat(3)
    cavity = predictions((len(x),), size, 1)
    for s, t in PAIRS:
        q_s, q_t = (marginal_matrix(process, a, size) for a in (s, t))
        step = kernel_matrix(process, s, t, size)
        evidence = (cavity.exp() @ q_t).gather(1, x[:, None])
        live = evidence[:, 0] > 0
        plug_in = (step[:, x].T * (cavity.exp() @ q_s) / evidence)[live]
        converted = process.log_posterior(process.own(cavity[live], x[live], t), x[live], t, s).exp()
        assert float((converted - plug_in).abs().max()) < 1e-12


@ALL
def test_hold_is_the_least_chance_to_stay(process):
    for size, (s, t) in itertools.product((2, 4), PAIRS):
        stay = bayes(process, s, t, size)[torch.arange(size + 1), :, torch.arange(size + 1)]  # (x, v)
        stay = torch.where(stay.isnan(), torch.inf, stay)
        live = stay.isfinite().any(1)
        hold = process.hold(torch.arange(size + 1)[live], t, s, size)
        assert float((hold - stay.amin(1)[live]).abs().max()) < 1e-12
        dense = Dense.of(process, size, 100)
        if float(process.marginal(time(0.0), size).keep) == 1:
            assert float((dense.hold(torch.arange(size + 1)[live], t, s) - hold).abs().max()) < 1e-12


@ALL
@pytest.mark.parametrize("rate", [None, 0.0, 0.4, 1.7])
def test_step_law_over_a_grid_of_uniforms(process, rate):
    """Counts over 500 equidistant uniforms are the posterior's shares within one grid cell; x_t comes first."""
    n = 500
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for size, (s, t) in itertools.product((1, 2, 4), PAIRS):
        truth = bayes(process, s, t, size)
        x, v = (~truth[..., 0].isnan()).nonzero().unbind(1)
        law, rows = truth[x, v], torch.arange(len(x))
        if rate is not None:
            stay = 1 - (rate * (1 - law[rows, x])).clamp(max=1)
            law = law / (1 - law[rows, x])[:, None] * (1 - stay)[:, None]
            law = law.nan_to_num(0)
            law[rows, x] = stay
        out = process.step(x[:, None].expand(-1, n), v[:, None].expand(-1, n), t, s, u.expand(len(x), n), size, rate)
        counts = torch.stack([(out == z).sum(1) for z in range(size + 1)], 1)
        assert float((counts / n - law).abs().max()) < 1.01 / n
        assert bool(((counts == 0) | (law > 0)).all())  # nothing impossible, however rare
        kept = out == x[:, None]
        assert bool((kept[:, 1:] <= kept[:, :-1]).all())  # x_t holds one interval, the first
        hold = process.hold(x, t, s, size)
        held = u < (hold if rate is None else 1 - rate * (1 - hold))[:, None] - 1e-12
        assert bool((kept | ~held).all())


@ALL
def test_corrupt_and_prior_follow_the_marginal(process):
    """Per-row and per-position times, over a grid of uniforms."""
    size, n = 4, 2000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x0 = torch.arange(size)[:, None].expand(size, n)
    times = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    per_row = process.corrupt(x0, times, u.expand(size, n), size)
    per_position = process.corrupt(x0.T, times.expand(n, size), u[:, None].expand(n, size), size).T
    assert torch.equal(per_row, per_position)
    shares = torch.stack([(per_row == z).sum(1) for z in range(size + 1)], 1) / n
    law = torch.stack([marginal_matrix(process, float(t), size)[i] for i, t in enumerate(times)])
    assert float((shares - law).abs().max()) < 2.01 / n and bool(((shares == 0) | (law > 0)).all())
    start = torch.bincount(process.prior(u, size), minlength=size + 1) / n
    assert float((start - marginal_matrix(process, 1.0, size).mean(0)).abs().max()) < 1.01 / n


@ALL
def test_own_cavity_and_score_round_trips(process):
    size, t = 4, 0.6
    no_mask = float(process.marginal(time(t), size).mask) == 0
    carried = float(process.marginal(time(t), size).token) == 0  # a token then determines its own posterior
    x = torch.arange(size) if no_mask else torch.tensor([size] * 3) if carried else torch.arange(size + 1)
    cavity = predictions((len(x),), size, 3)
    own = process.own(cavity, x, t)
    q = marginal_matrix(process, t, size)
    by_hand = (cavity.exp() * q[:, x].T).log()
    assert float((own - by_hand.log_softmax(-1)).abs().max()) < 1e-12
    assert float((process.cavity(own, x, t) - cavity).abs().max()) < 1e-12
    score = process.to_score(cavity, x, t)
    ratio = cavity.exp() @ q
    assert float((score.exp() - ratio / ratio.gather(1, x[:, None])).abs().max()) < 1e-11
    assert float((process.from_score(score, t) - cavity).abs().max()) < 1e-9
    if carried:
        tokens = torch.arange(size)
        assert torch.equal(
            process.own(predictions((size,), size), tokens, t).exp(), torch.eye(size, dtype=torch.float64)
        )


def test_prior_kl():
    for size in (2, 5):
        for process in FAMILIES.values():
            q = marginal_matrix(process, 1.0, size)
            ratio = torch.where(q > 0, q / q.mean(0), 1.0)
            assert float(process.prior_kl(size)) == pytest.approx(float((q * ratio.log()).sum(-1)[0]), abs=1e-12)
            start = marginal_matrix(process, 0.0, size)
            if float((start - torch.eye(size, size + 1)).abs().max()) == 0:
                dense = Dense.of(process, size, 7).prior_kl()
                assert float((dense - process.prior_kl(size)).abs().max()) < 1e-12
    assert float(Absorbing().prior_kl(4)) == 0
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(Uniform(Linear(end=0.5)).prior_kl(2)) == pytest.approx(math.log(2) - entropy)
