"""LSD (arXiv 2509.19962): a student of M steps learns one rate per step; the artefact is a `Grid`, plain JSON."""

import pytest
import torch

from discdiff import Absorbing, Ancestral, Grid, Linear, iterate
from discdiff.testing import toy

joint, process = toy(), Absorbing(Linear(end=1e-3))
kernel, denoiser = Ancestral(process), joint.denoiser(process)


def states(grid):
    return [state for state, _ in iterate(denoiser, kernel, joint.batch(1500), grid, seed=5)]


def score(state, t):
    """The concrete score at masked positions, 0 elsewhere, `(batch, length, symbols)`."""
    x = state.batch.symbols(state.tokens)
    log_s = process.to_score(joint.posterior(x, torch.full(x.shape, t), process), x, t)[..., :-1]
    return torch.where((x == joint.symbols)[..., None], log_s.exp(), 0.0)


def fit(teacher_steps, steps):
    """Phi_k = <s*, s> / <s, s>, the minimiser of |s* - Phi s|^2, one forward sweep."""
    teacher, times, rate = states(teacher_steps), Grid.uniform(steps).times, [1.0] * steps
    for k in range(steps):
        target = score(teacher[k * teacher_steps // steps], times[k])
        own = score(states(Grid(times, rate=tuple(rate)))[k], times[k])
        rate[k] = float((target * own).sum() / (own * own).sum())
        assert abs(float((2 * (rate[k] * own - target) * own).sum())) < 1e-6 * float((own * own).sum())
    return Grid(times, rate=tuple(rate))


def test_a_fitted_grid_is_data_and_scales_the_reveals():
    assert fit(4, 4).rate == pytest.approx([1.0] * 4, abs=1e-12)  # the teacher's own steps need no correction
    grid = fit(8, 4)
    assert Grid.from_json(grid.to_json()) == grid and grid.used == ("rate",) and grid.rate != (1.0,) * 4
    plain, ones, fitted = states(4), states(Grid.uniform(4, rate=1.0)), states(grid)
    assert all(bool((a.tokens == b.tokens).all()) for a, b in zip(plain, ones, strict=True))
    hidden = [int((~state.committed).sum()) for state in fitted]
    for k in (1, 2):  # each step reveals min(1, Phi u) of what is hidden
        early, late = (float(process.schedule.alpha(t)) for t in grid.times[k : k + 2][::-1])
        share = grid.rate[k] * (early - late) / (1 - late)
        assert 1 - hidden[k + 1] / hidden[k] == pytest.approx(share, abs=0.04) and grid.rate[k] < 0.9
