"""Laws against enumeration: the exact tilt (A4) and the moves of split Gibbs (S1)."""

import pytest
import torch
from anchoring_toy import batch_of, soft_of, state_of

from benchmarks.posterior_laws import METHODS, PROBLEMS, TOY, one_open
from discdiff import Anchored, Descent, FunctionDenoiser, Grid, MaskOrReplace, Measured, SoftDecode, SplitGibbs, Uniform
from discdiff.sampling import iterate
from discdiff.testing import Toy, noise_floor, total_variation
from discdiff.types import Step

# -- A4: the exact tilt

COSTS = torch.tensor([0.3, 2.0, 0.1, 1.2, 4.0, 0.7, 0.2, 3.1], dtype=torch.float64)
PRIOR = torch.tensor([0.3, 0.2, 0.01, 0.09, 0.2, 0.1, 0.05, 0.05], dtype=torch.float64)
HOT = SoftDecode(torch.eye(8, dtype=torch.float64)[None], lambda e: e[:, 0], lambda e: e.argmax(-1, keepdim=True), "x")
"""A decoder that gives the probabilities themselves, so that the l1 distance of <p, cost> to 0 is the expected cost."""
COST = Measured(lambda x: x @ COSTS[:, None], torch.zeros(1, 1, dtype=torch.float64), "l1")


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_exact_tilt_and_adam_reach_the_minimum(beta):
    """A4: p*(c) ~ p(c) exp(-cost(c) / beta), minimum -beta log sum_c p(c) exp(-cost(c) / beta)."""
    one = Toy(PRIOR, 8, 1)
    state, fits = state_of(one.batch(1)), []
    best = (PRIOR.log() - COSTS / beta).softmax(0)
    least = -beta * float((PRIOR * (-COSTS / beta).exp()).sum().log())
    for likelihood in ("expected_cost", "decoded"):
        descent = Descent(1500, 0.05, beta, quantised=False)
        network = FunctionDenoiser(lambda state, step: PRIOR.log().view(1, 1, 8))
        table = Anchored(network, HOT, COST, descent, likelihood, watch=lambda state, step, fit: fits.append(fit))(
            state, Step(0, state.time, state.time * 0)
        )
        p, fit = table.log_probs(torch.tensor([0])).exp()[0], fits[-1]
        value = float(p @ COSTS + beta * (p * (p / PRIOR).log()).sum())
        print(f"{likelihood}: off by {float((p - best).abs().max()):.1e}, minimum {value:.6f}, {least:.6f}")
        tight = 1e-12 if likelihood == "expected_cost" else 1e-3
        assert float((p - best).abs().max()) < tight and abs(value - least) < tight
        assert float(fit.losses[-1, 0]) == pytest.approx(least, abs=tight)
    assert fits[0].decoded == 8 and fits[1].decoded == 1500


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=lambda p: p.name)
def test_the_exact_tilt_of_one_open_position_is_the_posterior(problem):
    """All 108 positions and rests; a decoded expectation is another table."""
    assert one_open(problem, likelihood="expected_cost") < 1e-10
    assert one_open(problem, descent=Descent(100, beta=1.0, quantised=False)) > 0.02


DRAWS, MARGIN = 1500, 0.05


@pytest.mark.parametrize("name", [name for name in METHODS if "biased" in name])
def test_what_is_called_biased_is(name):
    """Its total variation to the enumerated posterior exceeds that of as many exact draws, by more than exact ones exceed their
    mean once in exp(2 n 0.05^2) = 1800 times (McDiarmid: one draw changes it by 1 / n at most).
    """
    problem = PROBLEMS[1]
    truth = problem.posterior
    exact = TOY.table[torch.multinomial(truth, DRAWS, True, generator=torch.Generator().manual_seed(0))]
    floor = noise_floor(truth, DRAWS)
    assert total_variation(TOY.law(exact), truth) < floor + MARGIN
    state = METHODS[name](problem, DRAWS)
    away = total_variation(TOY.law(state.batch.symbols(state.tokens)), truth)
    print(f"{name}: {away:.3f}, exact draws {floor:.3f}")
    assert away > floor + MARGIN


# -- S1: split Gibbs

PAIR = Toy(torch.tensor([5.0, 1, 2, 1, 7, 1, 3, 1, 4], dtype=torch.float64) / 25, 3, 2)
BOOK = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)
SOFT = SoftDecode(BOOK.view(1, 3, 1), lambda e: e.flatten(1), lambda e: (e - BOOK).abs().argmin(-1, keepdim=True), "x")
FROM, S = 5, 0.4  # the sequence x that moves begin with, and the noise level


def product(x):
    return torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1)


def measured(rows):
    return Measured(product, torch.tensor([[0.4, 1.0]], dtype=torch.float64).expand(rows, -1), "gaussian", 0.7)


def formulas(process, potential):
    """(target (9,), transition matrix (9, 9)) of one Metropolis move: one of 2 sites, one of 3 codes, at random."""
    at, loss = process.marginal(torch.tensor(S, dtype=torch.float64), 3), measured(9)(BOOK[PAIR.table], torch.arange(9))
    other, same = float(at.token), float(at.keep + at.token)
    odds = other / same if potential == "exact" else 2 * other / same
    changed = (PAIR.table != PAIR.table[FROM]).sum(1)
    target = odds ** changed.double() * (-loss).exp()
    target /= target.sum()
    near = (PAIR.table[:, None] != PAIR.table).sum(-1) == 1
    move = torch.where(near, (target / target[:, None]).clamp(max=1) / 6, 0.0)
    return target, move + torch.diag(1 - move.sum(1))


@pytest.mark.parametrize("potential", ["exact", "code"])
@pytest.mark.parametrize("process", [Uniform(), MaskOrReplace()], ids=lambda p: type(p).__name__)
def test_metropolis_moves_have_the_enumerated_law(process, potential):
    """S1: the law q(y | z) prod_i q_s(z_i | x_i) is stationary, and after 1, 3 and 60 moves the counts are the matrix's."""
    target, move = formulas(process, potential)
    assert float((target @ move - target).abs().max()) < 1e-15
    if potential == "exact":  # of the process without its masks
        at = process.marginal(torch.tensor(S, dtype=torch.float64), 3)
        law = torch.where(PAIR.table == PAIR.table[FROM], at.keep + at.token, at.token).prod(1)
        law = law * (-measured(9)(BOOK[PAIR.table], torch.arange(9))).exp()
        assert float((law / law.sum() - target).abs().max()) < 1e-12
    rows = 20_000
    to_x = torch.where(torch.arange(3) == PAIR.table[FROM][:, None], 0.0, -torch.inf).double()
    network = FunctionDenoiser(lambda state, step: to_x.expand(len(state.row), 2, 3))  # x is always the same
    for moves in (1, 3, 60):
        kernel = SplitGibbs(process, SOFT, measured(rows), 2, moves, potential)
        run = iterate(network, kernel, PAIR.batch(rows), Grid((1.0, S, 0.0)), seed=moves)
        next(run)
        state, info = next(run)
        assert not bool(state.committed.any()) and bool((state.time == S).all()) and info.decoded == rows * (moves + 1)
        truth = torch.linalg.matrix_power(move, moves)[FROM]
        away = total_variation(PAIR.law(state.batch.symbols(state.tokens)), truth) / noise_floor(truth, rows)
        print(f"{moves} moves: {away:.2f} floors, {total_variation(truth, target):.4f} from the target")
        assert away < 2.5
    assert total_variation(truth, target) < 1e-3


def test_the_two_potentials_differ():
    """The released one is too permissive: other codes than x have more of its law."""
    exact, code = (formulas(Uniform(), potential)[0] for potential in ("exact", "code"))
    assert 1 - float(code[FROM]) > 1.5 * (1 - float(exact[FROM]))


def test_positions_that_are_not_measured_are_noised():
    """Words beside the codes take part in a round, too: they are drawn clean, then noised by q_s."""
    rows = 20_000
    soft = soft_of("vq")
    batch = batch_of(soft, rows, given=False)
    width = torch.zeros(7, 12, dtype=torch.float64)
    width[:2, 1:] = -torch.inf  # every word is word 0
    measured = Measured(lambda x: x[:, 0, :1], torch.zeros(rows, 1, dtype=torch.float64), sigma=5.0)
    kernel = SplitGibbs(Uniform(), soft, measured, steps=2, moves=1)
    network = FunctionDenoiser(lambda state, step: width.expand(rows, -1, -1))
    run = iterate(network, kernel, batch, Grid((1.0, S, 0.0)))
    next(run)
    words = next(run)[0].tokens[:, :2]
    at = Uniform().marginal(torch.tensor(S, dtype=torch.float64), 5)
    truth = torch.full((5,), float(at.token), dtype=torch.float64)
    truth[0] += at.keep
    found = torch.bincount(words.flatten(), minlength=5) / words.numel()
    assert total_variation(found, truth) < 2.5 * noise_floor(truth, 2 * rows)
