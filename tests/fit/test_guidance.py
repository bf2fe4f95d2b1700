"""Guidance at the level of the posterior through `Ancestral(site=...)`, against guidance of x0 (arXiv 2412.10193)."""

import pytest
import torch

from discdiff import Absorbing, Ancestral, FunctionDenoiser, Grid, sample
from discdiff.kernels import sites
from discdiff.testing import Toy

PROCESS, ROWS = Absorbing(), 40000
COND, FREE = (torch.tensor(p, dtype=torch.float64) for p in ((0.7, 0.2, 0.1), (0.3, 0.4, 0.3)))
toy = Toy(COND, symbols=3, length=1)


def constant(p):
    return FunctionDenoiser(lambda state, step: p.log().expand(*state.tokens.shape, 3))


def guide(scale, unconditional):
    def site(log_p, asked):
        x, t, s, _ = sites(asked.state, asked.step, asked.index)
        other = unconditional(asked.state, asked.step).log_probs(asked.index)
        mixed = scale * log_p + (1 - scale) * PROCESS.log_posterior(other, x, t, s)
        return torch.where(log_p > float("-inf"), mixed, float("-inf"))

    return site


def one_step(kernel, denoiser):
    state, info = sample(denoiser, kernel, toy.batch(ROWS), Grid((1.0, 0.9)), seed=3)
    shown = state.committed[:, 0]
    return float(shown.double().mean()), state.tokens[shown, 0].bincount(minlength=3) / shown.sum(), info


@pytest.mark.parametrize("scale, expected", [(0, 0.1), (1, 0.1), (2, 0.164), (4, 0.498)])
def test_posterior_level_speeds_up_the_schedule(scale, expected):
    gain = float((COND**scale * FREE ** (1 - scale)).sum())
    assert 0.1 * gain / (0.1 * gain + 0.9) == pytest.approx(expected, abs=5e-4)
    law = COND**scale * FREE ** (1 - scale) / gain
    share, found, info = one_step(Ancestral(site=guide(scale, constant(FREE))), constant(COND))
    assert share == pytest.approx(expected, abs=0.01) and (found - law).abs().max() < 0.03 and info.nfe == 1
    share, found, _ = one_step(Ancestral(), constant(law))  # x0-level: the mixed prediction, an untouched schedule
    assert share == pytest.approx(0.1, abs=0.01) and (found - law).abs().max() < 0.03
