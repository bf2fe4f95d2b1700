"""Exact draws of the toy at any noise level, one correction of them, and how far the result is from a law."""

import dataclasses
import functools
import math

import pytest
import torch

from discdiff import (
    Absorbing,
    CosineMD4,
    FunctionDenoiser,
    Interpolating,
    MaskOrReplace,
    Uniform,
)
from discdiff.noise import CORRUPT, TIME, Noise
from discdiff.testing import Toy, noise_floor, total_variation, toy
from discdiff.types import State, Step

DRAWS = 30_000
PROCESSES = {
    "absorbing": Absorbing(),
    "cosine": Absorbing(CosineMD4()),
    "uniform": Uniform(),
    "mask_or_replace": MaskOrReplace(),
    "interpolating": Interpolating(),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
PLACE = 4 ** torch.arange(3, -1, -1)


def states() -> torch.Tensor:
    """All 4^4 noisy states of the toy, symbol 3 the mask."""
    return torch.cartesian_prod(*[torch.arange(4)] * 4)


def law_at(process, law: Toy, s: float) -> torch.Tensor:
    """q_s of every noisy state, (256,)."""
    q = process.log_marginal(torch.eye(3, dtype=torch.float64).log(), s).exp()
    x = states()
    return torch.stack([q[law.table[:, i]][:, x[:, i]] for i in range(4)]).prod(0).T @ law.p


def state_of(process, x: torch.Tensor, s: float) -> State:
    """A run's state that stands at level s with the symbols x."""
    batch = toy().batch(len(x))
    committed = (x < 3) & (s == 0 or isinstance(process, Absorbing))
    time = torch.full(x.shape, s, dtype=torch.float64)
    return State(batch.ids(x), batch.given, batch.valid, committed, time, torch.arange(len(x)), batch, {}, {})


def drawn_at(process, s: float, draws: int = DRAWS, law: Toy | None = None) -> State:
    """Exact draws of q_s."""
    law = law or toy()
    noise = Noise.seeded(5, torch.ones(draws, 4, dtype=torch.bool))
    x0 = law.table[torch.searchsorted(law.p.cumsum(0), noise.row_uniform(TIME)).clamp(max=80)]
    return state_of(process, process.corrupt(x0, s, noise.uniform(CORRUPT), 3), s)


def step_of(state: State, t: float, s: float, index: int = 0) -> Step:
    full = functools.partial(torch.full, state.tokens.shape, dtype=torch.float64)
    return Step(index, full(t), full(s))


def correct(corrector, state: State, t: float, s: float, kind: str = "own", denoiser=None):
    """One correction of a step t -> s with the exact denoiser."""
    denoiser = denoiser or toy().denoiser(corrector.process, kind)
    noise = Noise.seeded(9, state.valid)
    return corrector(denoiser, state, step_of(state, t, s), noise)


def tilted(denoiser: FunctionDenoiser) -> FunctionDenoiser:
    """A denoiser that is a little off: symbol 0 gets 1.3 times its odds."""
    more = torch.tensor([1.3, 1.0, 1.0], dtype=torch.float64).log()
    return dataclasses.replace(denoiser, function=lambda state, step: denoiser.function(state, step) + more)


def found_law(state: State) -> torch.Tensor:
    """Empirical law over noisy states."""
    code = (state.batch.symbols(state.tokens) * PLACE).sum(1)
    return torch.bincount(code, minlength=256).double() / len(code)


def floors(state: State, truth: torch.Tensor) -> float:
    return total_variation(found_law(state), truth) / noise_floor(truth, len(state.tokens))


def moved(before: State, after: State) -> float:
    return float((before.tokens != after.tokens).double().mean())


def mass(found: torch.Tensor) -> torch.Tensor:
    """One-site laws, (4, 4)."""
    return torch.stack([torch.stack([found[states()[:, i] == v].sum() for v in range(4)]) for i in range(4)])


def masked(state: State) -> torch.Tensor:
    return state.tokens == state.batch.layout.vocab.mask


def chi_square(state: State, truth: torch.Tensor) -> float:
    """Chi-square of the one-site laws, in standard deviations above its mean."""
    n, seen, expected = len(state.tokens), mass(found_law(state)), mass(truth)
    live = expected > 0
    assert not seen[~live].any()
    freedom = int(live.sum()) - 4
    return (float((n * (seen - expected)[live] ** 2 / expected[live]).sum()) - freedom) / math.sqrt(2 * freedom)
