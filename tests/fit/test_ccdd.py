"""CCDD (arXiv 2510.03206): tokens and real vectors denoised together, one network call for both."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from discdiff import Absorbing, Ancestral, Chain, FunctionDenoiser, Info, Joint, Noise, iterate, sample
from discdiff.denoisers import table
from discdiff.noise import LATENT
from discdiff.testing import toy


def posterior(late, early):
    """(weight of z_t, weight of z_0, standard deviation) of q(z_s | z_t, z_0) for z_t = A_t z_0 + sqrt(1 - A_t^2) eps."""
    ratio, spare = late / early, (1 - early**2) / (1 - late**2)
    return ratio * spare, early * (1 - ratio**2) / (1 - late**2), ((1 - ratio**2) * spare).sqrt()


@dataclass(frozen=True)
class Gaussian:
    process: Absorbing = field(default_factory=Absorbing)
    unbiased: ClassVar[bool] = True
    decide_first: ClassVar[bool] = False
    final: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def init(self, state):
        return state

    def __call__(self, denoiser, state, step, noise):
        z, clean = state.latents["z"], denoiser(state, step).latents["z"]
        a, b, std = (x[..., None] for x in posterior((1 - step.t).sqrt(), (1 - step.s).sqrt()))
        return state._replace(latents={"z": a * z + b * clean + std * noise.normal(LATENT, z.shape[-1])}), Info()


def test_two_spaces_one_call():
    assert [float(x) for x in posterior(*torch.tensor([0.6, 0.8]))] == pytest.approx([0.4219, 0.5469, 0.4961], abs=5e-5)
    joint, calls, rows = toy(), [], 4000
    target = torch.tensor([1.0, -2.0]).double().expand(rows, 4, 2)

    def network(state, step):
        calls.append(bool(state.latents["z"].isfinite().all()))
        logits = joint.denoiser(Absorbing()).function(state, step)
        return table(state.batch, logits, {"z": target})

    batch, kernel = joint.batch(rows), Joint((Ancestral(), Gaussian()))
    start = {"z": Noise.seeded(9, batch.valid).normal(LATENT, 2)}
    states = [x for x, _ in iterate(FunctionDenoiser(network), kernel, batch, 4, latents=start)]
    assert len(calls) == 4 and bool(all(calls)) and torch.allclose(states[-1].latents["z"], target, atol=1e-12)
    for k in (1, 2, 3):  # z_s is N(A_s z_0, 1 - A_s^2) at every level
        early, z = (k / 4) ** 0.5, states[k].latents["z"]
        assert (
            torch.allclose(z.mean((0, 1)), early * target[0, 0], atol=0.03)
            and abs(float(z.var((0, 1)).mean()) - 1 + k / 4) < 0.03
        )
    alone = sample(joint.denoiser(Absorbing()), Chain((Ancestral(),)), batch, 4)[0]
    assert bool((alone.tokens == states[-1].tokens).all())
