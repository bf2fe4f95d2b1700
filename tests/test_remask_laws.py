"""Re-masking keeps the marginals of single tokens (T9), and runs draw the law that eq. (10) enumerates."""

import functools
from dataclasses import dataclass

import pytest
import torch
from test_laws import PROCESSES, exact_own, floors, states, table_denoiser
from test_remask import CHOSEN, clock_of, each_process, each_strategy, moment

from discdiff.kernels import Ancestral, remask
from discdiff.kernels.remask import Remask, stay_masked
from discdiff.kernels.strategies import STRATEGIES, Cap, ForwardBackward, Held, Moment, Rescale
from discdiff.noise import CORRUPT, TOKEN, Noise
from discdiff.processes import Absorbing, Interpolating
from discdiff.sampling import iterate, sample
from discdiff.schedules import CosineMD4, Geometric, Linear, Polynomial
from discdiff.testing import check_kernel, total_variation, toy
from discdiff.types import Step

SCHEDULES = (Linear(), CosineMD4(), Polynomial(2.5), Linear(end=1e-3), Geometric(0.3, 5.0))
FAMILIES = ("absorbing", "uniform", "vq_paper", "interpolating")
each_family = pytest.mark.parametrize("process", [PROCESSES[name] for name in FAMILIES], ids=FAMILIES)


def test_every_strategy_is_tried():
    assert {type(s) for s in CHOSEN.values()} == set(STRATEGIES.values())


@each_strategy
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_share_of_unmasked_tokens_is_alpha(strategy, schedule):
    """T9: m <- m (1 - sigma) + (1 - m) (1 - stay) is alpha_s at every step of a run, and all chances lie in [0, 1]."""
    times, some = torch.linspace(1, 0, 41, dtype=torch.float64), 0.0
    if isinstance(strategy, Held):
        batch = toy().batch(1)
        times = torch.tensor([float(clock_of(strategy, Absorbing(schedule))(batch, float(t))[0, 0]) for t in times])
    share = schedule.alpha(times[0])
    for t, s in zip(times, times[1:]):
        at = moment(schedule, t, s)
        chance = strategy.chance(at, strategy.strength)
        stay = stay_masked(at, chance)
        exact = (1 - at.early - chance * at.late) / (1 - at.late)
        assert 0 <= float(chance) <= float(at.limit) <= 1 and -1e-12 < float(exact) < 1 + 1e-12 or s <= 0
        share, some = share * (1 - chance) + (1 - share) * (1 - stay), some + float(chance)
        assert float(share) == pytest.approx(float(at.early) if s > 0 else 1.0, abs=1e-12)
    assert some > 0.1


def test_the_limit_is_needed():
    """Control: the forward-backward chance leaves the range where 2 alpha_s - alpha_t > 1, as in every last step."""
    at = moment(Linear(), 0.2, 0.05)
    wanted = ForwardBackward().wanted(at, 1.0)
    assert float(wanted) > float(at.limit) == float(ForwardBackward().chance(at, 1.0))
    assert float(1 - at.early - wanted * at.late) < 0  # a masked token would stay with a negative chance


def test_psi_identity():
    """(10) with kappa = 1 - sigma / (1 - alpha_s), negative ones too, is (9) on absorbing."""
    p, process, worst, least = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), Absorbing(CosineMD4()), 0.0, 1.0
    own = torch.stack([p, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)])  # at a mask, and at the token 1
    for t, s in ((0.9, 0.8), (0.7, 0.2), (1.0, 0.6), (0.5, 0.5)):
        at = moment(process.schedule, t, s)
        for eta in (0.0, 0.3, 1.0):
            chance = Rescale(eta).chance(at, eta)
            kappa = 1 - chance / (1 - at.early)
            stay, least = stay_masked(at, chance), min(least, float(kappa))
            x = torch.tensor([3, 1])
            posterior = process.log_posterior(own.log(), x, t, s).exp()
            mixed = kappa * posterior + (1 - kappa) * process.log_marginal(own.log(), s).exp()
            direct = torch.tensor([[*((1 - stay) * p), stay], [0.0, 1 - chance, 0.0, chance]], dtype=torch.float64)
            rows = slice(0, 1) if t == 1 else slice(0, 2)  # nothing is unmasked at time 1
            worst = max(worst, float((mixed - direct)[rows].abs().max()))
    print(f"psi identity {worst:.1e}, least kappa {least:.2f}")
    assert worst < 1e-15 and least < 0


def test_the_first_step_reveals_alpha_whatever_the_chance():
    """(9) at alpha_t = 0: the limit is 1 and a masked token is revealed with alpha_s."""
    at = moment(Linear(), 1.0, 0.7)
    assert float(at.limit) == 1
    for strategy in CHOSEN.values():
        chance = strategy.chance(at, strategy.strength)
        assert float(1 - stay_masked(at, chance)) == pytest.approx(0.3, abs=1e-15) and bool(chance.isfinite())


def one_step(kernel, process, t, s, rows=25_000):
    """Symbols after one step with the exact denoiser from rows that lie exactly at time t, (rows, length)."""
    law = toy()
    batch = law.batch(rows)
    noise = Noise.seeded(5, batch.valid)
    cdf = law.p.cumsum(0)
    x0 = law.table[torch.searchsorted(cdf, noise.row_uniform(TOKEN) * cdf[-1])]
    x = process.corrupt(x0, t, noise.uniform(CORRUPT), 3)
    seen = (x < 3) & isinstance(process, Absorbing)
    state, _ = next(iterate(table_denoiser(process, law), kernel, batch, 2))
    late, early = (torch.full((rows, 4), time, dtype=torch.float64) for time in (t, s))
    state = state._replace(tokens=batch.ids(x), committed=seen, time=late)
    after, _ = kernel(table_denoiser(process, law), state, Step(0, late, early), noise.step(0))
    return batch.symbols(after.tokens)


def chi_square(kernel, t, s, process=None):
    """Largest chi-square (3 degrees of freedom at most) of a position's symbols against the process's marginal."""
    process = process or kernel.process
    law, found = toy(), one_step(kernel, process, t, s)
    worst = 0.0
    for i in range(4):
        p0 = torch.zeros(3, dtype=torch.float64).index_add_(0, law.table[:, i], law.p)
        expected = process.log_marginal(p0.log(), s).exp() * len(found)
        counts = torch.bincount(found[:, i], minlength=4).double()
        assert bool((counts[expected == 0] == 0).all())
        here = expected > 0
        worst = max(worst, float(((counts - expected) ** 2 / expected)[here].sum()))
    return worst


@each_family
@each_strategy
def test_one_step_keeps_the_marginals(process, strategy):
    """T9 by counting 1e5 tokens; 26 is passed once in 1e5 tries."""
    t, s = (0.6, 0.6) if isinstance(strategy, Held) else (0.55, 0.5)
    away = chi_square(Remask(process, strategy), t, s)
    assert away < 26, f"chi-square {away:.1f}"


@dataclass(frozen=True)
class Louder(Interpolating):
    """Control: renoises to a level that is a tenth too high."""

    def corrupt(self, x0, t, uniform, alphabet):
        return super().corrupt(x0, 1.1 * t, uniform, alphabet)


def test_wrong_steps_change_the_marginals(monkeypatch):
    loud = chi_square(Remask(Louder(), Rescale(0.6)), 0.55, 0.5, Interpolating())
    right = chi_square(Remask(Absorbing(), Cap(0.2)), 0.55, 0.5)
    monkeypatch.setattr(remask, "stay_masked", lambda at, chance: stay_masked(at, torch.zeros_like(chance)))
    wrong = chi_square(Remask(Absorbing(), Cap(0.2)), 0.55, 0.5)
    print(f"right {right:.1f}, re-masked without revealing more {wrong:.0f}, renoised too high {loud:.0f}")
    assert wrong > 500 and loud > 100


# -- the law of whole sequences ----------------------------------------------------------------------------------------


def remask_law(process, strategy, law, times):
    """Law of the tokens after a run through `times`, by eq. (10) on all noisy states."""
    x = states(law.symbols + 1, law.length)
    eye = torch.eye(law.symbols, dtype=torch.float64)
    now = process.log_marginal(eye.log(), 1.0).exp().mean(0)[x].prod(1)
    for t, s in zip(times, times[1:]):
        at = Moment(*(torch.tensor(v, dtype=torch.float64) for v in (t, s)), *(keep(process, v) for v in (t, s)))
        chance = strategy.chance(at, strategy.strength)
        kappa = 1 - chance / (1 - at.early) if s > 0 else torch.tensor(1.0, dtype=torch.float64)
        kappa = kappa if isinstance(process, Absorbing) else kappa.clamp(min=0)
        own = exact_own(process, t, law).log()
        posterior = process.log_posterior(own, x, t, s).exp().nan_to_num(0)
        single = kappa * posterior + (1 - kappa) * process.log_marginal(own, s).exp().nan_to_num(0)
        now = now @ functools.reduce(torch.mul, (single[:, i][:, x[:, i]] for i in range(law.length)))
    assert abs(float(now.sum()) - 1) < 1e-10
    return now[(x < law.symbols).all(1)]


def keep(process, t):
    return process.marginal(torch.tensor(t, dtype=torch.float64), 3).keep


def run_times(strategy, process, steps):
    clock, batch = clock_of(strategy, process), toy().batch(1)
    return [float(clock(batch, 1 - k / steps)[0, 0]) for k in range(steps + 1)]


@each_family
@each_strategy
def test_runs_draw_the_enumerated_law(process, strategy):
    law, steps, draws = toy(), 5, 8_000
    truth = remask_law(process, strategy, law, run_times(strategy, process, steps))
    kernel, clock = Remask(process, strategy), clock_of(strategy, process)
    state, _ = sample(table_denoiser(process, law), kernel, law.batch(draws), steps, seed=2, clock=clock)
    assert floors(law.law(state.batch.symbols(state.tokens)), truth, draws) < 1.6
    plain = remask_law(process, Cap(0.0), law, run_times(strategy, process, steps))
    assert total_variation(truth, plain) > 1e-3  # re-masking did something


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
@each_strategy
def test_more_steps_come_nearer(name, strategy):
    gaps = [gap(PROCESSES[name], strategy, steps) for steps in (8, 32)]
    print(f"{name} {strategy} {gaps[0]:.4f} {gaps[1]:.4f}")
    assert gaps[0] > 1.4 * gaps[1]
    assert Remask(PROCESSES[name], strategy).unbiased == (not isinstance(strategy, Held))


def test_a_strategy_that_does_not_vanish_keeps_a_bias():
    """With more steps the end of a run re-masks ever less, and the joint is reached; on a plateau it does not."""
    far = {s: [gap(Absorbing(), s, steps) for steps in (32, 128)] for s in (Cap(0.3), Held(Cap(0.3)), Held(Cap(0.02)))}
    print(far)
    assert far[Cap(0.3)][0] > 1.6 * far[Cap(0.3)][1]
    assert far[Held(Cap(0.3))][0] < 1.25 * far[Held(Cap(0.3))][1] and far[Held(Cap(0.3))][1] > 0.05
    assert far[Held(Cap(0.02))][1] < 0.01  # a small chance leaves a small bias


def gap(process, strategy, steps):
    return total_variation(remask_law(process, strategy, toy(), run_times(strategy, process, steps)), toy().p)


def test_check_kernel_sees_the_joint():
    assert check_kernel(Remask(strategy=Cap(0.05)), 40, draws=3000) < 1.5
    assert check_kernel(Remask(strategy=Cap(0.05)), 2, draws=3000) > 2.5


@each_process
def test_nothing_taken_back_is_ancestral(process):
    law = toy()
    tokens = [
        sample(table_denoiser(process, law), kernel, law.batch(500), 9, seed=4)[0].tokens
        for kernel in (Ancestral(process), Remask(process, Cap(0.0)), Remask(process, Held(Cap(0.5))))
    ]
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])
    other = sample(table_denoiser(process, law), Remask(process, Cap(0.3)), law.batch(500), 9, seed=4)[0].tokens
    assert not torch.equal(tokens[0], other)
