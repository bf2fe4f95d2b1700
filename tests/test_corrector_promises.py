"""Correctors: where they work, what they cost, how a budget is kept, and what is refused."""

import pytest
import torch
from corrector_toy import PROCESSES, correct, drawn_at, masked, state_of, step_of

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Chain,
    Commit,
    Dense,
    FirstHitting,
    FunctionDenoiser,
    Interpolating,
    MaskOrReplace,
    PerSegment,
    Sure,
    Uniform,
    Windows,
    iterate,
    sample,
)
from discdiff.correctors import Budget, Corrector, Gibbs, Informed, Renoise, standing
from discdiff.denoisers import table
from discdiff.noise import Noise
from discdiff.testing import Toy, check_conformance, noise_floor, total_variation, toy

# -- what every corrector promises ------------------------------------------------------------------------------------


SEGMENTS = PerSegment({"left": Absorbing(), "right": Uniform()})


def correctors(process) -> list[Corrector]:
    return [
        Gibbs(2, process=process),
        Gibbs(parallel=3, process=process),
        Informed(2, process=process),
        Informed(3, 0.0, "margin", hide=True, process=process),
        Renoise(process=process),
        Renoise(0.3, process=process),
        Budget(Gibbs(2, process=process), calls=3, every=2),
        Budget(Renoise(process=process), start=0.6, stop=0.2),
    ]


@pytest.mark.parametrize("number", range(8))
def test_conformance(number):
    check_conformance(Chain((Ancestral(), correctors(Absorbing())[number])))


@pytest.mark.parametrize(
    "process",
    [
        Uniform(),
        pytest.param(MaskOrReplace(), marks=pytest.mark.slow),
        pytest.param(Interpolating(), marks=pytest.mark.slow),
        SEGMENTS,
    ],
    ids=repr,
)
@pytest.mark.parametrize("number", [0, 3, 4, 7])
def test_conformance_of_other_processes(process, number):
    check_conformance(Chain((Ancestral(process), correctors(process)[number])))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize(
    ("kernel", "clock"),
    [(Commit(Sure()), Blocks(5)), (FirstHitting(), Windows({"left": (1.0, 0.5), "right": (0.6, 0.0)}))],
    ids=["commit", "first_hitting"],
)
def test_conformance_after_other_kernels(number, kernel, clock):
    check_conformance(Chain((kernel, correctors(Absorbing())[number])), 8, clock=clock)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("kind", ["own", "cavity"])
def test_deterministic_data_is_reproduced(process, kind):
    """T26: probabilities of 0 and 1 give no nan; the datum is drawn, with either order of corrector and step."""
    p = torch.zeros(81, dtype=torch.float64)
    p[47] = 1.0
    law = Toy(p)
    for corrector in correctors(process):
        for kernels in ((Ancestral(process), corrector), (corrector, Ancestral(process))):
            state, _ = sample(law.denoiser(process, kind), Chain(kernels), law.batch(20), 3, seed=1)
            assert bool((state.batch.symbols(state.tokens) == law.table[47]).all())


@pytest.mark.parametrize("number", range(7))  # the last has a window
def test_given_masked_and_waiting_positions_stay(number):
    """One correction of a row with a given token, a mask, a waiting position and one free token."""
    for process in (Absorbing(), Uniform()):
        corrector = correctors(process)[number]
        x = torch.tensor([[0, 3, 1, 2]]).repeat(200, 1)
        state = state_of(process, x, 0.5)
        given, waiting = torch.tensor([1, 0, 0, 0]).bool(), torch.tensor([0, 0, 1, 0]).bool()
        state = state._replace(
            given=state.given | given,
            committed=state.committed & ~waiting | given,
            time=torch.where(waiting, 1.0, torch.where(given, 0.0, state.time)),
        )
        state = corrector.init(state)
        denoiser = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 3, dtype=torch.float64))
        step = step_of(state, 0.7, 0.5, 1)._replace(t=torch.maximum(state.time, torch.tensor(0.7)))
        after, _ = corrector(denoiser, state, step, Noise.seeded(0, state.valid))
        changed = (after.tokens != state.tokens).any(0).tolist()
        takes_part = isinstance(getattr(corrector, "corrector", corrector), Renoise)
        assert changed == [False, takes_part, False, True]


def test_the_network_is_told_where_hidden_tokens_stand():
    """At time 0 a hidden token has time k / n, never 0; at later times that of the run; the rest stays as it is."""
    seen = []

    def function(state, step):
        seen.append((masked(state), step.t, state.committed))
        return torch.zeros(*state.tokens.shape, 3, dtype=torch.float64)

    for s, parallel, expected in ((0.0, 1, 0.25), (0.0, 2, 0.5), (0.4, 1, 0.4)):
        state = drawn_at(Absorbing(), s, 50)
        state = state._replace(tokens=state.tokens.clamp(max=2), committed=torch.ones_like(state.committed))
        correct(Gibbs(1, parallel), state, s + 0.1, s, denoiser=FunctionDenoiser(function))
        hidden, time, committed = seen.pop()
        assert bool((hidden.sum(1) == parallel).all()) and not bool((hidden & committed).any())
        assert bool((time[hidden] == expected).all()) and bool((time[~hidden] == s).all())


# -- counters and budgets ---------------------------------------------------------------------------------------------


def test_counters():
    """Calls, rows and head positions; a row without tokens is not fed."""
    rows = 10
    x = torch.full((rows, 4), 2)
    x[0] = 3  # all masked
    x[1, :3] = 3  # one token
    state = state_of(Absorbing(), x, 0.5)
    fed, tokens = rows - 1, 4 * (rows - 2) + 1
    cases = {
        Gibbs(3): (3, 3 * fed, 3 * fed),
        Gibbs(1, 2): (1, fed, 2 * (rows - 2) + 1),
        Informed(2): (2, 2 * fed, tokens + 2 * (rows - 2) + 1),
        Informed(2, score="margin"): (2, 2 * fed, 2 * tokens + 2 * (rows - 2) + 1),
        Informed(2, hide=True): (2, tokens + fed, tokens + 2 * (rows - 2) + 1),
    }
    for corrector, expected in cases.items():
        _, info = correct(corrector, state, 0.6, 0.5)
        assert (info.nfe, info.network_rows, info.head_rows) == expected, corrector
        assert int(info.committed) == 0 and info.nfe == corrector.cost(toy().denoiser(Absorbing()))
    _, info = correct(Informed(2), state, 0.6, 0.5, "cavity")
    assert (info.nfe, info.network_rows, info.head_rows) == (1, fed, tokens + 2 * (rows - 2) + 1)
    nothing = state_of(Absorbing(), torch.full((rows, 4), 3), 0.5)
    assert all(correct(c, nothing, 0.6, 0.5)[1].nfe == 0 for c in (Gibbs(3), Informed()))


def spent(corrector, steps: int = 12, process=None, kernel=None) -> list[int]:
    """Network calls of the corrector after each step of a run."""
    law, process = toy(), process or Uniform()
    denoiser, kernel = law.denoiser(process, "cavity"), kernel or Ancestral(process)
    plain = [info.nfe for _, info in iterate(denoiser, kernel, law.batch(200), steps, seed=2)][1:]
    both = [info.nfe for _, info in iterate(denoiser, Chain((kernel, corrector)), law.batch(200), steps, seed=2)][1:]
    return [b - a for a, b in zip(plain, both, strict=True)]


def test_budget_is_kept_exactly():
    corrector = Gibbs(2, process=Uniform())
    assert spent(corrector) == [2] * 12
    for calls in (0, 1, 2, 3, 8, 9, 24, 100):
        made = spent(Budget(corrector, calls=calls))
        whole = min(calls // 2, 12)
        assert made == [2] * whole + [0] * (12 - whole)


def test_windows_and_every():
    corrector = Gibbs(process=Uniform())
    assert spent(Budget(corrector, every=3)) == [0, 0, 1] * 4
    assert spent(Budget(corrector, start=0.5)) == [0] * 5 + [1] * 7  # times 11/12 .. 0: the sixth is 1/2
    assert spent(Budget(corrector, start=0.5, stop=0.25)) == [0] * 5 + [1] * 4 + [0] * 3
    assert spent(Budget(corrector, start=0.0)) == [0] * 11 + [1]
    late = Budget(Gibbs(2, process=Uniform()), calls=5, every=2, start=0.8)
    assert spent(late) == [0, 0, 0, 2, 0, 2, 0, 0, 0, 0, 0, 0]  # what was not spent before the window is not lost


def test_a_budget_counts_per_row():
    """Rows whose blocks stand elsewhere spend on their own; no row is corrected more often than it may."""
    law, calls = toy(), 3
    fed = []

    def function(state, step):
        fed.append(state.row.clone())
        return torch.zeros(*state.tokens.shape, 3, dtype=torch.float64)

    batch = law.batch(6)
    batch = batch._replace(
        given=torch.arange(4) < torch.arange(6)[:, None] % 3, tokens=torch.where(batch.given, 0, batch.tokens)
    )
    batch = batch._replace(tokens=torch.where(batch.given, 0, batch.tokens))
    kernel = Chain((Commit(), Budget(Gibbs(), calls=calls, start=0.7)))
    plain = sample(FunctionDenoiser(function), Commit(), batch, 8, seed=0)[1]
    steps = torch.cat(fed).bincount(minlength=6)
    fed.clear()
    total = sample(FunctionDenoiser(function), kernel, batch, 8, seed=0)[1]
    both = torch.cat(fed).bincount(minlength=6)
    assert plain.network_rows == int(steps.sum()) and total.network_rows == int(both.sum())
    assert (both - steps).tolist() == [calls] * 6


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gibbs(0), "calls is 0"),
        (lambda: Gibbs(parallel=0), "parallel is 0"),
        (lambda: Informed(0), "k is 0"),
        (lambda: Informed(temperature=-1.0), "temperature is -1"),
        (lambda: Informed(score="entropy"), "log_prob, margin"),
        (lambda: Renoise(0.0), "back is 0"),
        (lambda: Gibbs(process=Dense.of(Absorbing(), 3, 4)), "Gibbs needs a process in closed form"),
        (lambda: Informed(process=Dense.of(Absorbing(), 3, 4)), "Informed needs"),
        (lambda: Renoise(process=PerSegment({"x": Dense.of(Absorbing(), 3, 4)})), "Renoise needs"),
        (lambda: Budget(Ancestral()), "give a Corrector"),
        (lambda: Budget(Budget(Gibbs())), "give one Budget"),
        (lambda: Budget(Gibbs(), calls=-1), "calls is -1"),
        (lambda: Budget(Gibbs(), every=0), "every is 0"),
        (lambda: Budget(Gibbs(), start=0.2, stop=0.5), r"stop, start"),
        (lambda: Budget(Gibbs(), start=1.5), r"stop, start"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_budgets_need_two_names():
    law, one = toy(), Budget(Gibbs(), calls=2)
    with pytest.raises(ValueError, match="two budgets named 'corrector'"):
        sample(law.denoiser(Absorbing()), Chain((Ancestral(), one, one)), law.batch(3), 2)
    other = Budget(Renoise(), calls=1, name="renoise")
    assert sample(law.denoiser(Absorbing()), Chain((Ancestral(), one, other)), law.batch(300), 4)[1].nfe == 4 + 2 + 1


def test_a_corrector_of_ones_own():
    """`correct` is all it takes; `Budget` and `Chain` do the rest."""

    class Freshest(Corrector):
        """Redraws every token from a uniform table."""

        process = Absorbing()

        def correct(self, denoiser, state, step, noise, where):
            even = table(state.batch, torch.zeros(*state.tokens.shape, 3, dtype=torch.float64))
            index = where.reshape(-1).nonzero()[:, 0]
            tokens = state.tokens.reshape(-1).scatter(0, index, even.draw(index, noise).tokens)
            return state._replace(tokens=tokens.view(state.tokens.shape)), info0

    info0 = sample(toy().denoiser(Absorbing()), Ancestral(), toy().batch(1), 1)[1]._replace(nfe=0, committed=0)
    law = toy()
    kernel = Chain((Ancestral(), Budget(Freshest(), start=0.0)))
    state, _ = sample(law.denoiser(Absorbing()), kernel, law.batch(20_000), 2, seed=0)
    even = torch.full((81,), 1 / 81, dtype=torch.float64)
    assert total_variation(law.law(state.tokens), even) / noise_floor(even, 20_000) < 1.5
    assert bool(standing(state).all())
