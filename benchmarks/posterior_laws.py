"""How far each way of sampling given a measurement is from the truth: total variation to the enumerated posterior of a toy.

    python -m benchmarks.posterior_laws [--draws 5000] [--rounds 5,20,80] [--save no]

Three symbols at four positions, each symbol a number; measured are two noisy numbers of the four, linear in them or not; the
posterior p(x | y) over the 81 sequences is tabulated. The network is exact, so all that is measured is the method. One
position is open at a time where masks are revealed, in random order, which is exact for the prior. Beside the drawn figures,
with their noise floor, stand figures without draws: split Gibbs with perfect rounds, by its transition matrices, and tables of
one open position. Of the methods only split Gibbs (as rounds, moves and reverse steps grow) and the exact tilt of one open
position have the posterior as their law; "biased" marks the others. APS has beta = 1, the weight of Bayes' rule. What keeps
split Gibbs away is the noise at which its rounds end, about as much in total variation: a round moves the less the lower it
is, so that half the distance takes twice the rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.results import record
from discdiff.anchoring import (
    Anchored,
    Descent,
    Measured,
    Selected,
    SoftDecode,
    SplitGibbs,
    StarShaped,
    StarTable,
    Steered,
    best_of,
)
from discdiff.cli import guarded, parse
from discdiff.denoisers import Temperature
from discdiff.kernels import Commit
from discdiff.layout import TokenBatch
from discdiff.processes import Absorbing, Process, Uniform
from discdiff.sampling import sample
from discdiff.sampling.grid import Grid
from discdiff.sampling.sampler import Common, Sampler
from discdiff.testing import noise_floor, total_variation, toy
from discdiff.types import State, Step

TOY = toy()
VALUES = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64)  # of the symbols
MIXING = torch.tensor([[1.0, 0.5, 0.0, -0.3], [0.0, 1.0, -1.0, 0.5]], dtype=torch.float64)
TRUE, OFF, SIGMA = (
    (2, 0, 1, 2),
    0.3,
    0.6,
)  # what was measured, by how much the noise took it off, and the noise's deviation
MOVES, REVERSE = 48, 16  # of a round of split Gibbs
ABSORBING = Absorbing()
STEPS = Descent(steps=50, beta=1.0)


@dataclass(frozen=True)
class Posterior:
    """draws per figure; rounds of split Gibbs; save: write docs/results/posterior_laws.json."""

    draws: int = 5000
    rounds: tuple[int, ...] = (5, 20, 80)
    save: bool = True


def linear(x: Tensor) -> Tensor:
    """Numbers (n, 4) to (n, 2)."""
    return x @ MIXING.T


def curved(x: Tensor) -> Tensor:
    """Numbers (n, 4) to (n, 2), not linear."""
    return torch.tanh(2 * x) @ MIXING.T + 0.5 * x[:, :2] * x[:, 2:]


def nearest(e: Tensor) -> Tensor:
    return (e - VALUES).abs().argmin(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Problem:
    """What was measured by an operator, and which positions are given as they are."""

    name: str
    operator: Callable[[Tensor], Tensor]
    given: tuple[int, ...] = ()

    @property
    def soft(self) -> SoftDecode:
        return SoftDecode(VALUES.view(1, 3, 1), lambda e: e.flatten(1), nearest, "x")

    def measured(self, rows: int) -> Measured:
        y = self.operator(VALUES[None, list(TRUE)]) + OFF
        return Measured(self.operator, y.expand(rows, -1), "gaussian", SIGMA)

    @property
    def prior(self) -> Tensor:
        return TOY.conditional({i: TRUE[i] for i in self.given})

    @property
    def log_likelihood(self) -> Tensor:
        """log p(y | x) (81,), but for a constant."""
        return -self.measured(1)(VALUES[TOY.table], torch.zeros(len(TOY.p), dtype=torch.int64))

    @property
    def posterior(self) -> Tensor:
        return (self.prior.log() + self.log_likelihood).softmax(0)

    def batch(self, rows: int) -> TokenBatch:
        return TOY.batch(rows, {i: TRUE[i] for i in self.given})


PROBLEMS = (
    Problem("linear", linear),
    Problem("non-linear", curved),
    Problem("non-linear, one open", curved, (0, 1, 3)),
)
Run = Callable[[Problem, int], State]


# -- methods: (problem, draws) -> last state


def commit(denoiser: Callable[[Problem, int], object], problem: Problem, draws: int) -> State:
    """One position per step, in random order, under a denoiser."""
    return sample(denoiser(problem, draws), Commit(), problem.batch(draws), 4 - len(problem.given), seed=1)[0]


def anchored(problem: Problem, draws: int, **settings: object) -> Anchored:
    return Anchored(TOY.denoiser(ABSORBING), problem.soft, problem.measured(draws), **settings)  # type: ignore[arg-type]


def likeliest(problem: Problem, draws: int) -> Temperature:
    return Temperature(anchored(problem, draws, descent=STEPS, take="sample"), 0.0)


def steered(problem: Problem, draws: int) -> Steered:
    return Steered(TOY.denoiser(ABSORBING), problem.soft, problem.measured(draws))


def selected(problem: Problem, draws: int, count: int, alpha: float = 1.0) -> State:
    kernel = Selected(Commit(), problem.soft, problem.measured(draws), count, alpha)
    return sample(TOY.denoiser(ABSORBING), kernel, problem.batch(draws), 4 - len(problem.given), seed=1)[0]


def star(problem: Problem, draws: int) -> State:
    measured = replace(problem.measured(draws), distance="l2")  # what the released settings are for
    table = StarTable(TOY.denoiser(ABSORBING), problem.soft, measured)
    return sample(table, StarShaped(), problem.batch(draws), 20, seed=1)[0]


def best(problem: Problem, draws: int, count: int) -> State:
    run = Sampler(Commit(), Common(steps=4))
    return best_of(run, TOY.denoiser(ABSORBING), problem.batch(draws), problem.soft, problem.measured(draws), count, 1)[
        0
    ]


def cooling(rounds: int) -> Grid:
    """Noise levels of split Gibbs: from 0.5 in equal ratios to 0.2 / rounds, then 0. A round moves little where the noise is
    low, and the law is off by about the noise where it ends, so that it falls as there are more rounds.
    """
    levels = [0.5 * (0.4 / rounds) ** (i / max(1, rounds - 1)) for i in range(rounds)]
    return Grid((1.0, *levels, 0.0))


def split_gibbs(problem: Problem, draws: int, rounds: int, process: Process | None = None) -> State:
    process = process or Uniform()
    kernel = SplitGibbs(process, problem.soft, problem.measured(draws), REVERSE, MOVES)
    return sample(TOY.denoiser(process), kernel, problem.batch(draws), cooling(rounds), seed=1)[0]


METHODS: dict[str, Run] = {
    "prior sample": partial(commit, lambda problem, draws: TOY.denoiser(ABSORBING)),
    "APS, nearest codes (biased)": partial(commit, partial(anchored, descent=STEPS)),
    "APS, likeliest codes (biased)": partial(commit, likeliest),
    "APS, drawn codes (biased)": partial(commit, partial(anchored, descent=STEPS, take="sample")),
    "APS, drawn codes, expectation not quantised (biased)": partial(
        commit, partial(anchored, descent=replace(STEPS, quantised=False), take="sample")
    ),
    "APS, exact tilt (biased where several are open)": partial(
        commit, partial(anchored, likelihood="expected_cost", take="sample")
    ),
    "G2D2 (biased)": star,
    "SVDD, 5 children (biased)": partial(selected, count=5),
    "SVDD, 40 children (biased)": partial(selected, count=40),
    "SVDD, best of 5 children (biased)": partial(selected, count=5, alpha=0.0),
    "gradient guidance (biased)": partial(commit, steered),
    "best of 10 (biased)": partial(best, count=10),
}


# -- laws without draws


def blurred(process: Process, t: float) -> Tensor:
    """q_t(z | x) of all sequences (81, 81), for a process without masks."""
    law = process.log_marginal(torch.eye(3, dtype=torch.float64).log(), t).exp()[:, :3]
    return torch.stack([law[TOY.table[:, i]][:, TOY.table[:, i]] for i in range(TOY.length)]).prod(0)


def split_gibbs_law(problem: Problem, grid: Grid, process: Process | None = None) -> Tensor:
    """The law (81,) of x after rounds of split Gibbs whose reverse process and moves are perfect."""
    process = process or Uniform()
    fits = problem.log_likelihood.exp()
    z = TOY.p.new_full((len(TOY.p),), 1 / len(TOY.p))
    for step in grid:
        back = problem.prior[:, None] * blurred(process, step.t)
        x = (back / back.sum(0)) @ z
        if step.s > 0:
            forth = blurred(process, step.s) * fits
            z = x @ (forth / forth.sum(1, keepdim=True))
    return x


def one_open(problem: Problem, **settings: object) -> float:
    """The largest total variation of a table to p(x_i | the rest, y), over all positions i and all rests."""
    worst = 0.0
    for i in range(TOY.length):
        rest = TOY.table[TOY.table[:, i] == 0]
        batch = TOY.batch(len(rest))
        known = torch.arange(TOY.length).expand_as(rest) != i
        tokens = torch.where(known, batch.ids(rest), batch.layout.vocab.mask)
        batch = batch._replace(tokens=tokens, given=known)
        row = torch.arange(len(rest))
        state = State(tokens, known, batch.valid, ~batch.free, batch.free.double(), row, batch, {}, {})
        table = anchored(problem, len(rest), **settings)(state, Step(0, state.time, torch.zeros_like(state.time)))
        found = table.log_probs(row * TOY.length + i).exp()
        place = 3 ** torch.arange(TOY.length - 1, -1, -1)
        these = (rest * place).sum(1)[:, None] + torch.arange(3) * place[i]
        truth = (TOY.p.log() + problem.log_likelihood)[these].softmax(-1)
        worst = max(worst, float((found - truth).abs().sum(-1).max()) / 2)
    return worst


def exact(rounds: Sequence[int]) -> Iterator[tuple[str, str, float, str | None]]:
    """(method, problem, total variation, goal) of what needs no draws."""
    tables: dict[str, dict[str, object]] = {
        "exact tilt": {"likelihood": "expected_cost"},
        "decoded, not quantised (biased)": {"descent": Descent(200, beta=1.0, quantised=False)},
        "decoded (biased)": {"descent": Descent(200, beta=1.0)},
    }
    for problem in PROBLEMS[:2]:
        yield "prior, by enumeration", problem.name, total_variation(problem.prior, problem.posterior), None
        for count in rounds:
            away = total_variation(split_gibbs_law(problem, cooling(count)), problem.posterior)
            yield f"SGDD, {count} rounds, by enumeration", problem.name, away, None
        for name, settings in tables.items():
            goal = "<= 1e-3" if name == "exact tilt" else None
            yield f"APS table of one open position, {name}", problem.name, one_open(problem, **settings), goal


def main(argv: Sequence[str]) -> None:
    settings = parse("python -m benchmarks.posterior_laws", argv, {"posterior_laws": Posterior})["posterior_laws"]
    began, figures = time.process_time(), []
    methods: dict[str, Run] = {
        **METHODS,
        **{f"SGDD, {n} rounds": partial(split_gibbs, rounds=n) for n in settings.rounds},
    }
    last = f"SGDD, {max(settings.rounds)} rounds"

    def note(method: str, problem: str, value: float, goal: str | None) -> None:
        figures.append({"figure": f"{method}: {problem}", "value": value, "unit": "total variation", "goal": goal})

    for method, problem, value, goal in exact(settings.rounds):
        note(method, problem, value, goal)
    for each in PROBLEMS:
        truth = each.posterior
        floor = noise_floor(truth, settings.draws)
        note("noise floor", each.name, floor, None)
        for name, run in methods.items():
            state = run(each, settings.draws)
            value = total_variation(TOY.law(state.batch.symbols(state.tokens)), truth)
            note(name, each.name, value, f"<= {floor + 0.05:.3g}" if name == last else None)
            print(
                f"{each.name}, {name}: {value:.4f}, floor {floor:.4f} | {time.process_time() - began:.0f} s", flush=True
            )
    if settings.save:
        what = (
            f"toy joint of 3 symbols x 4 positions, two noisy numbers measured, {settings.draws} draws, exact denoiser"
        )
        record("posterior_laws", figures, data=what, seeds=[1])


if __name__ == "__main__":
    sys.exit(guarded(main))
