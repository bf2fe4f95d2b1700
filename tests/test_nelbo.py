"""The complete NELBO with the exact denoiser is the exact negative log likelihood, by enumeration.

Everything exact is computed here from `log_marginal` alone; derivatives, rates, weights and losses are the library's.
"""

import math

import pytest
import torch

from discdiff.processes import Absorbing, Dense, Interpolating, MaskOrReplace, Uniform, vq_paper, vq_released
from discdiff.schedules import CosineMD4, CosineSquaredMDLM, Geometric, Linear, Polynomial
from discdiff.testing import toy


def sequences(symbols: int, length: int) -> torch.Tensor:
    """All sequences (symbols ** length, length), last position fastest."""
    return torch.cartesian_prod(*[torch.arange(symbols)] * length).reshape(-1, length)


def joint(symbols: int, length: int, seed: int = 0) -> torch.Tensor:
    """A random joint law with strong dependence, (symbols ** length,)."""
    logits = torch.randn(symbols**length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.5 * logits).softmax(-1)


def nodes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gauss-Legendre points and weights on (0, 1) under t = v^4 (35 - 84 v + 70 v^2 - 20 v^3), flat at both ends, which
    tames the end-point singularities of sqrt(t (1 - t)) and log t.
    """
    k = torch.arange(1, count, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    v, weight = (values + 1) / 2, vectors[0] ** 2
    t = v**4 * (35 - 84 * v + 70 * v**2 - 20 * v**3)
    return t, weight * 140 * (v * (1 - v)) ** 3


class Enumerated:
    """A joint p over symbols ** length and all noisy states at one time of a process."""

    def __init__(self, process, p, symbols, length, t):
        self.x0, self.x = sequences(symbols, length), sequences(symbols + 1, length)
        eye = torch.eye(symbols, dtype=torch.float64)
        q = process.log_marginal(eye.log(), t).exp()  # (v, z)
        per = torch.stack([q[self.x0[:, i]][:, self.x[:, i]].T for i in range(length)], -1)  # (x, x0, i)
        self.likelihood = per.prod(-1)  # q_t(x | x0)
        weights = []
        for i in range(length):
            rest = per[..., [j for j in range(length) if j != i]].prod(-1) * p
            weights.append(torch.stack([rest[:, self.x0[:, i] == v].sum(-1) for v in range(symbols)], -1))
        cavity = torch.stack(weights, 1)
        own = cavity * q.T[self.x]
        self.cavity, self.own = (w / w.sum(-1, keepdim=True) for w in (cavity, own))  # (x, i, v)
        self.seen = self.likelihood > 0
        self.noisy = self.likelihood @ p  # p_t(x)

    def expect(self, loss, prediction):
        """E_x sum_i loss(log prediction_i, x0_i, x_i) for every x0."""
        x, v = self.seen.nonzero().unbind(1)
        terms = loss(prediction[x].log(), self.x0[v], self.x[x]).sum(-1)
        return torch.zeros(len(self.x0), dtype=torch.float64).index_add(0, v, self.likelihood[x, v] * terms)


def nelbo(process, p, symbols, length, count, kind="cavity"):
    """prior_kl + int_0^1 loss dt + reconstruction, for every x0."""
    total = torch.full((symbols**length,), length * float(process.prior_kl(symbols)), dtype=torch.float64)
    for t, weight in zip(*nodes(count), strict=True):
        at = Enumerated(process, p, symbols, length, t)
        total += weight * at.expect(lambda a, v, x, t=t: process.loss(a, v, x, t, kind), getattr(at, kind))
    start = Enumerated(process, p, symbols, length, 0.0)
    return total + start.expect(lambda a, v, x: process.reconstruction(a, v, x, 0.0), start.cavity)


def worst(process, p, symbols, length, count=48, kind="cavity") -> float:
    gap = (nelbo(process, p, symbols, length, count, kind) + p.log()).abs().max()
    print(f"{process}: |NELBO - NLL| {float(gap):.1e}")
    return float(gap)


@pytest.mark.parametrize("schedule", [Linear(), CosineMD4(), Polynomial(2.5)], ids=repr)
def test_absorbing_every_sequence_of_three_by_three(schedule):
    """T6."""
    assert worst(Absorbing(schedule), joint(3, 3), 3, 3, 24) < 1e-9


CONTINUOUS = [
    Absorbing(CosineSquaredMDLM(0.0)),
    Uniform(),
    Uniform(CosineMD4()),
    Uniform(Polynomial(2.0)),
    vq_paper(),
    MaskOrReplace(Linear(), Linear(end=0.0)),
    MaskOrReplace(CosineSquaredMDLM(0.0), CosineSquaredMDLM(0.3)),
    Interpolating(),
    Interpolating(0.5, 2.0),
    Interpolating(0.1, 1.5),
    Interpolating(0.0, 4.0),
]


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_every_family(process):
    """T5."""
    assert worst(process, joint(3, 2), 3, 2, 64) < 1e-6


@pytest.mark.parametrize("process", CONTINUOUS[1:-1], ids=repr)
def test_own_predictions_give_the_same_bound(process):
    """T5 once more; without noise on tokens an own prediction at a token could not be converted."""
    assert worst(process, joint(3, 2), 3, 2, 64, "own") < 1e-6


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), Interpolating(0.2, 2.0)], ids=repr)
def test_the_committed_toy(process):
    law = toy()
    assert worst(process, law.p, 3, 4, 16 if process == Absorbing() else 24) < 1e-6


@pytest.mark.parametrize(
    "process", [Absorbing(Geometric()), Uniform(Geometric()), Absorbing(Linear(end=1e-3)), vq_released()], ids=repr
)
def test_unfinished_schedules_need_all_three_terms(process):
    """One even token, the case where the prior is exact although alpha(1) > 0: NLL = log 3 whatever the end points."""
    p = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert worst(process, p, 3, 1, 64) < 1e-6
    assert float(process.prior_kl(3)) > 0


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), vq_paper(), Interpolating()], ids=repr)
def test_deterministic_data_costs_nothing(process):
    """T26."""
    p = torch.zeros(9, dtype=torch.float64)
    p[5] = 1
    assert abs(float(nelbo(process, p, 3, 2, 16)[5])) < 1e-12


@pytest.mark.parametrize("process", [Uniform(), vq_paper(), Interpolating(), Uniform(CosineMD4())], ids=repr)
@pytest.mark.parametrize("t", [0.02, 0.5, 0.93])
def test_score_entropy_of_the_exact_score(process, t):
    """The score p_t(y) / p_t(x) read off the enumerated noisy law gives the loss of the exact cavity prediction."""
    symbols, length = 3, 2
    at = Enumerated(process, joint(3, 2), symbols, length, t)
    table = at.noisy.view([symbols + 1] * length)
    x, v = at.seen.nonzero().unbind(1)
    a, b = at.x[x].unbind(1)
    score = torch.stack([table[:, b].T, table[a]], 1) / table[a, b][:, None, None]
    found = process.score_entropy(score.log(), at.x0[v], at.x[x], t)
    expected = process.loss(at.cavity[x].log(), at.x0[v], at.x[x], t)
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.max().clamp(min=1))


def random_sites(size: int, with_mask: bool):
    generator = torch.Generator().manual_seed(1)
    log_x0 = torch.randn(200, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    x0 = torch.randint(size, (200,), generator=generator)
    return log_x0, x0, torch.randint(size + with_mask, (200,), generator=generator)


@pytest.mark.parametrize("schedule", [Linear(), CosineMD4()], ids=repr)
@pytest.mark.parametrize("t", [0.01, 0.4, 0.97])
def test_udlm_closed_form(schedule, t):
    """T17: UDLM's continuous-time loss (arXiv 2412.10193) site by site."""
    size = 6
    log_x0, x0, x = random_sites(size, False)
    a, slope = schedule.alpha(t), schedule.dalpha(t)
    bar = size * a * torch.nn.functional.one_hot(x0, size).double() + 1 - a
    hat = size * a * log_x0.exp() + 1 - a
    bar_x, hat_x = (q.gather(1, x[:, None]) for q in (bar, hat))
    inner = size / bar_x - size / hat_x - (bar / bar_x * ((hat_x / hat) * (bar / bar_x)).log()).sum(1, keepdim=True)
    expected = (slope / (size * a) * inner)[:, 0]
    found = Uniform(schedule).loss(log_x0, x0, x, t)
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.max().clamp(min=1))


@pytest.mark.parametrize("process", [Uniform(), Interpolating(), Interpolating(0.5, 2.0)], ids=repr)
@pytest.mark.parametrize("t", [0.01, 0.4, 0.97])
def test_gidd_form(process, t):
    """Eq. (7): rate(x) / q(x) * (KL(q || qhat) + r - 1 - log r), r = q(x) / qhat(x) (GIDD, arXiv 2503.04482)."""
    size = 6
    log_x0, x0, x = random_sites(size, isinstance(process, Interpolating))
    time = torch.tensor(t, dtype=torch.float64)
    clean = torch.nn.functional.one_hot(x0, size).double().log()
    q, hat = (process.log_marginal(p, t).exp() for p in (clean, log_x0))
    h = 1e-6  # the rate into x by definition (2), with differences for derivatives
    up, down, now = (process.marginal(time + d, size) for d in (h, -h, 0))
    rate = [(u - d) / (2 * h) - (up.keep - down.keep) / (2 * h) / now.keep * b for u, d, b in zip(up, down, now)][1:]
    into = torch.where(x == size, rate[1], rate[0])
    q_x, hat_x = (p.gather(1, x[:, None])[:, 0] for p in (q, hat))
    kl = (torch.xlogy(q, q) - torch.where(q > 0, q * hat.log(), 0.0)).sum(1)
    ratio = q_x / hat_x
    expected = into / q_x * (kl + ratio - 1 - ratio.log())
    found = process.loss(log_x0, x0, x, t)
    assert float(((found - expected) / (1 + expected)).abs().max()) < 1e-6
    exact_rates = process.rates(time, size)
    into = torch.where(x == size, exact_rates[1], exact_rates[0])
    expected = into / q_x * (kl + ratio - 1 - ratio.log())
    assert float(((found - expected) / (1 + expected)).abs().max()) < 1e-9


FINITE = [Absorbing(), Absorbing(CosineMD4()), Uniform(), vq_paper(), Interpolating()]


def finite(process, p, symbols, length, steps, terms=None):
    """prior_kl + sum over steps of E finite_loss, for every x0; `terms` computes the losses, `process` the noise."""
    terms = terms or process
    prior = terms.prior_kl(symbols).expand(symbols)[sequences(symbols, length)].sum(-1)
    for i in range(1, steps + 1):
        t, s = i / steps, (i - 1) / steps
        at = Enumerated(process, p, symbols, length, t)
        prior = prior + at.expect(lambda a, v, x, t=t, s=s: terms.finite_loss(a, v, x, t, s), at.own)
    return prior


@pytest.mark.parametrize("process", FINITE, ids=repr)
def test_finite_bound_is_exact_for_one_token(process):
    p = joint(4, 1)
    for steps in (1, 2, 5):
        for terms in (process, Dense.of(process, 4, steps)):
            assert float((finite(process, p, 4, 1, steps, terms) + p.log()).abs().max()) < 1e-12


@pytest.mark.parametrize("process", FINITE, ids=repr)
def test_finite_bound_of_two_tokens(process):
    """Dense and closed form agree; steps move tokens independently, so the mean bound is above the entropy and falls."""
    p = joint(3, 2)
    means = []
    for steps in (1, 2, 4, 8):
        bound = finite(process, p, 3, 2, steps)
        dense = finite(process, p, 3, 2, steps, Dense.of(process, 3, steps))
        assert float((bound - dense).abs().max()) < 1e-9
        means.append(float(p @ bound))
    entropy = -float(p @ p.log())
    assert means == sorted(means, reverse=True) and means[-1] > entropy + 1e-3
    assert means[0] - entropy > 1.5 * (means[-1] - entropy)


def test_one_step_costs_the_total_correlation():
    """With T = 1 the bound is the product of the marginals: above the entropy by exactly the mutual information."""
    p = joint(3, 2).view(3, 3)
    information = float((p * (p / (p.sum(1, keepdim=True) * p.sum(0))).log()).sum())
    for process in FINITE:
        gap = float(p.flatten() @ (finite(process, p.flatten(), 3, 2, 1) + p.flatten().log()))
        assert gap == pytest.approx(information, abs=1e-12)
    assert information > 0.05 and math.isfinite(information)
