"""Sampling laws: what a sampler draws with an exact denoiser, by enumeration and by counting."""

import functools
import math

import pytest
import torch

from discdiff.denoisers import FunctionDenoiser, inverse_cdf
from discdiff.kernels import Ancestral, Chain, Commit, FirstHitting
from discdiff.noise import TOKEN, Noise
from discdiff.processes import Absorbing, Interpolating, Uniform, vq_paper
from discdiff.sampling import sample
from discdiff.schedules import CosineMD4, Linear
from discdiff.scores import Candidate, LeftToRight, Random, Sure
from discdiff.testing import Toy, check_kernel, noise_floor, total_variation, toy

DRAWS = 100_000
PROCESSES = {
    "absorbing": Absorbing(),
    "absorbing_cos": Absorbing(CosineMD4()),
    "uniform": Uniform(),
    "vq_paper": vq_paper(),
    "interpolating": Interpolating(),
    "gidd": Interpolating(gamma=1.0),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def states(symbols: int, length: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(symbols)] * length).reshape(-1, length)


@functools.lru_cache(maxsize=512)
def exact_own(process, t: float, law: Toy) -> torch.Tensor:
    """p(x0_i = v | x) at time t for every noisy state x, ((symbols + 1) ** length, length, symbols); 0 where impossible."""
    x = states(law.symbols + 1, law.length)
    q = process.log_marginal(torch.eye(law.symbols, dtype=torch.float64).log(), t).exp()
    likelihood = torch.stack([q[law.table[:, i]][:, x[:, i]].T for i in range(law.length)]).prod(0) * law.p
    own = [
        torch.stack([likelihood[:, law.table[:, i] == v].sum(1) for v in range(law.symbols)], -1)
        for i in range(law.length)
    ]
    return (torch.stack(own, 1) / likelihood.sum(1)[:, None, None]).nan_to_num(0)


def step_matrix(process, law: Toy, t: float, s: float) -> torch.Tensor:
    """Transition of one ancestral step between all noisy states: every position moves on its own."""
    x = states(law.symbols + 1, law.length)
    single = process.log_posterior(exact_own(process, t, law).log(), x, t, s).exp().nan_to_num(0)
    return functools.reduce(torch.mul, (single[:, i][:, x[:, i]] for i in range(law.length)))


def ancestral_law(process, law: Toy, steps: int) -> torch.Tensor:
    """Law of the tokens after `steps` equal steps."""
    eye = torch.eye(law.symbols, dtype=torch.float64)
    prior = process.log_marginal(eye.log(), 1.0).exp().mean(0)
    x = states(law.symbols + 1, law.length)
    now = prior[x].prod(1)
    for k in range(steps, 0, -1):
        now = now @ step_matrix(process, law, k / steps, (k - 1) / steps)
    assert abs(float(now.sum()) - 1) < 1e-12
    return now[(x < law.symbols).all(1)]


def table_denoiser(process, law: Toy) -> FunctionDenoiser:
    """The exact denoiser as a look-up, for runs in which all positions share one time."""
    place = (law.symbols + 1) ** torch.arange(law.length - 1, -1, -1)

    def function(state, step):
        t = 0.5 if isinstance(process, Absorbing) else float(step.t.amax())
        return exact_own(process, t, law).log()[(state.batch.symbols(state.tokens) * place).sum(-1)]

    return FunctionDenoiser(function, needs_time=True)


def drawn_law(kernel, law: Toy, steps: int, draws: int = DRAWS) -> torch.Tensor:
    state, _ = sample(table_denoiser(kernel.process, law), kernel, law.batch(draws), steps, seed=1)
    return law.law(state.batch.symbols(state.tokens))


def floors(found: torch.Tensor, truth: torch.Tensor, draws: int = DRAWS) -> float:
    return total_variation(found, truth) / noise_floor(truth, draws)


def two_tokens() -> Toy:
    p = (1.5 * torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).softmax(-1)
    return Toy(p, 3, 2)


@pytest.mark.parametrize("schedule", [Linear(), CosineMD4()], ids=repr)
def test_ancestral_law_of_two_tokens(schedule):
    """T7: (1 - c) P + c p1 x p2 with c = sum_k (a_{k-1} - a_k)^2."""
    law = two_tokens()
    p = law.p.view(3, 3)
    product = (p.sum(1, keepdim=True) * p.sum(0)).flatten()
    for steps in (1, 2, 5, 10):
        a = schedule.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps)
        c = float((a.diff() ** 2).sum())
        expected = (1 - c) * law.p + c * product
        found = ancestral_law(Absorbing(schedule), law, steps)
        assert float((found - expected).abs().max()) < 1e-12
        if schedule == Linear():
            assert c == pytest.approx(1 / steps)
        print(f"{schedule} T={steps}: TV {total_variation(found, law.p):.4f}")


def test_any_order_law_is_exact():
    """T8: reveal a uniformly random masked position from its conditional, enumerated over all 256 states."""
    law = toy()
    x, own = states(4, 4), exact_own(Absorbing(), 0.5, law)
    now = torch.zeros(len(x), dtype=torch.float64)
    now[-1] = 1.0  # all masked
    place = 4 ** torch.arange(3, -1, -1)
    for left in range(4, 0, -1):
        after = torch.zeros_like(now)
        for i in range(4):
            here = ((x == 3).sum(1) == left) & (x[:, i] == 3)
            for v in range(3):
                after.index_add_(0, ((x[here] * place).sum(1) + (v - 3) * place[i]), now[here] * own[here, i, v] / left)
        now = after
    assert total_variation(now[(x < 3).all(1)], law.p) < 1e-14


@pytest.mark.parametrize("kernel", [FirstHitting(), FirstHitting(Absorbing(CosineMD4()))], ids=repr)
def test_first_hitting_draws_the_law(kernel):
    assert floors(drawn_law(kernel, toy(), 4), toy().p) < 1.5


@pytest.mark.parametrize(
    "score", [Random(), LeftToRight(), Sure("entropy"), Sure("margin"), Sure("confidence")], ids=repr
)
def test_orders_that_do_not_peek_reach_the_floor(score):
    assert floors(drawn_law(Commit(score), toy(), 4), toy().p) < 1.5


def test_an_order_that_peeks_is_biased():
    """T11: ranking by the drawn token's own probability."""
    away = floors(drawn_law(Commit(Candidate()), toy(), 4), toy().p)
    print(f"candidate order: {away:.0f} floors")
    assert away > 10 and not Commit(Candidate()).unbiased


def test_own_and_toy_posteriors_agree():
    """The library's exact denoiser against this file's enumeration, own and cavity, all states and several times."""
    law, x = toy(), states(4, 4)
    for process in PROCESSES.values():
        for t in (0.2, 0.9):
            mine, time = exact_own(process, t, law), torch.full((len(x), 4), t, dtype=torch.float64)
            assert float((law.posterior(x, time, process).exp() - mine).abs().max()) < 1e-12
            live = mine.sum((1, 2)) > 0
            cavity = law.posterior(x, time, process, "cavity")[live]
            assert float((process.own(cavity, x[live], t).exp() - mine[live]).abs().max()) < 1e-12


@each_process
def test_more_steps_come_nearer(process):
    """The enumerated ancestral law nears the truth by a factor of at least 1.5 per doubling of the steps.

    GIDD's own gamma of 1 has noise growing as sqrt(t), so its first doubling is a little short; gamma >= 1.25 is not.
    """
    law = toy()
    gaps = [total_variation(ancestral_law(process, law, steps), law.p) for steps in (4, 8, 16, 32, 64)]
    ratios = [a / b for a, b in zip(gaps, gaps[1:])]
    print(process, " ".join(f"{g:.4f}" for g in gaps), "ratios", " ".join(f"{r:.2f}" for r in ratios))
    assert min(ratios) >= (1.45 if process == Interpolating(gamma=1.0) else 1.5)
    assert ratios[-1] >= 1.6


@each_process
@pytest.mark.parametrize(("steps", "draws"), [(4, DRAWS), pytest.param(16, DRAWS, marks=pytest.mark.slow)])
def test_sampler_draws_the_enumerated_law(process, steps, draws):
    law = toy()
    truth = ancestral_law(process, law, steps)
    away = floors(drawn_law(Ancestral(process), law, steps, draws), truth, draws)
    print(f"{process} steps {steps}: {away:.2f} floors, {floors(truth, law.p, draws):.0f} from the joint")
    assert away < 1.5


def test_noise_floor_is_what_exact_samples_show():
    """T25."""
    law, draws, repeats = toy(), 20_000, 40
    cdf = law.p.cumsum(0)
    gaps = []
    for seed in range(repeats):
        u = Noise.seeded(seed, torch.ones(1, draws, dtype=torch.bool)).uniform(TOKEN)[0]
        found = torch.bincount(torch.searchsorted(cdf, u).clamp(max=80), minlength=81).double() / draws
        gaps.append(total_variation(found, law.p))
    spread = torch.tensor(gaps).std() / math.sqrt(repeats)
    mean = sum(gaps) / repeats
    assert abs(mean - noise_floor(law.p, draws)) < 5 * float(spread) + 0.01 * mean
    assert check_kernel(FirstHitting()) < 1.5


KERNELS = [
    *(Ancestral(process) for process in PROCESSES.values()),
    *(Commit(score) for score in (Random(), LeftToRight(), Sure("entropy"), Candidate())),
    FirstHitting(),
    Chain((Commit(), Ancestral())),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_deterministic_data_is_reproduced(kernel):
    """T26: one possible sequence; every kernel draws it, whatever the number of steps."""
    law = toy()
    p = torch.zeros_like(law.p)
    p[47] = 1.0
    law = Toy(p)
    for steps in (1, 3, 4):
        state, _ = sample(law.denoiser(kernel.process), kernel, law.batch(50), steps, seed=steps)
        assert bool((state.batch.symbols(state.tokens) == law.table[47]).all())


def test_low_precision_gumbel_loses_rare_tokens():
    """T27: a token of probability q whose uniform lies on a grid of 2^-10 is drawn against "stay" c / (e^c - 1) times as
    often as it should, c = 2^-10 / q; this is why nothing here draws by Gumbel noise.
    """
    bits, n = 10, 4_000_000
    noise = Noise.seeded(0, torch.ones(1, n, dtype=torch.bool))
    fine, other = (noise.uniform(stream)[0] for stream in (0, 1))
    gumbel = [-torch.log(-torch.log(u)) for u in (torch.floor(fine * 2**bits) / 2**bits, other)]
    for c in (0.5, 1.0, 3.0):
        q = 2.0**-bits / c
        wins = float((gumbel[0] + math.log(q) > gumbel[1] + math.log1p(-q)).double().sum())
        expected = n * q * c / (math.exp(c) - 1)
        assert abs(wins - expected) < 5 * expected**0.5 + 0.01 * expected, c
        assert wins < 0.85 * n * q
    assert 1 / (math.e - 1) == pytest.approx(0.58, abs=2e-3)


@pytest.mark.parametrize("width", [40, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_keeps_rare_tokens(width, dtype):
    """T27: tokens of 1e-5 to 1e-7 over 4e7 stratified uniforms, counted as in exact arithmetic (chi-square).

    Only the strata near the rare tokens are evaluated; all others fall on their common neighbours.
    """
    n = 40_000_000
    rare = torch.tensor([1e-5, 1e-6, 1e-7] * 4, dtype=torch.float64)
    weights = torch.full((width,), (1 - float(rare.sum())) / (width - len(rare)), dtype=torch.float64)
    first = width // 2
    weights[first : first + len(rare)] = rare
    before = float(weights[:first].sum())
    low, high = int((before - 2e-5) * n), int((before + float(rare.sum()) + 2e-5) * n)
    u = (torch.arange(low, high, dtype=torch.float64) + 0.5) / n
    logits = weights.log().to(dtype)
    found = torch.cat([inverse_cdf((logits - logits.max()).exp().expand(len(v), width), v) for v in u.split(1000)])
    counts = torch.bincount(found, minlength=width)[first : first + len(rare)].double()
    assert float(((counts - n * rare) ** 2 / (n * rare)).sum()) < 5
    assert bool((counts > 0).all()) and int(found.min()) >= first - 1 and int(found.max()) <= first + len(rare)
