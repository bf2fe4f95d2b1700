"""M2DM (arXiv 2308.14480): salient tokens survive longer and are produced first; one clock for training and sampling."""

import math

import pytest
import torch

from discdiff import Absorbing, Ancestral, Noise, Priority, iterate, sample
from discdiff.noise import CORRUPT
from discdiff.testing import toy

joint, process, STRENGTH = toy(), Absorbing(), 0.3
SALIENCE = torch.tensor([3.0, -1.0, 1.0, 0.0])


def batch_of(rows, salience=SALIENCE):
    return joint.batch(rows)._replace(features={"priority": salience.expand(rows, 4)})


def final(clock, batch):
    return sample(joint.denoiser(process), Ancestral(), batch, 6, clock=clock, seed=1)[0].tokens


def test_training_with_the_clock_is_still_the_likelihood():
    rows, clock, x0 = 20000, Priority(STRENGTH), torch.tensor([0, 2, 1, 1])
    batch, t = batch_of(rows), (torch.arange(rows) + 0.5) / rows
    noisy = process.corrupt(x0.expand(rows, 4), clock(batch, t), Noise.seeded(0, batch.valid).uniform(CORRUPT), 3)
    log_x0 = joint.posterior(noisy, clock(batch, t), process)
    nats = (clock.rate(batch, t) * process.loss(log_x0, x0.expand(rows, 4), noisy, clock(batch, t))).sum(1)
    exact = -math.log(joint.p[int((x0 * torch.tensor([27, 9, 3, 1])).sum())])
    assert float(nats.mean()) == pytest.approx(exact, abs=5 * float(nats.std()) / rows**0.5) and nats.std() < 0.1 * rows


def test_no_strength_and_no_salience_are_the_plain_sampler():  # M8, M9
    plain = final(None, batch_of(50))
    assert bool((final(Priority(0.0), batch_of(50)) == plain).all())
    assert bool((final(Priority(STRENGTH), batch_of(50, torch.ones(4))) == plain).all())
    assert bool((final(Priority(STRENGTH), batch_of(50)) != plain).any())


def test_salient_positions_come_first():  # M10
    run = iterate(joint.denoiser(process), Ancestral(), batch_of(1500), 25, clock=Priority(STRENGTH))
    hidden = torch.stack([(~state.committed).double().mean(0) for state, _ in run])
    revealed = 1 - hidden.mean(0)  # mean over the grid of the share that is out already: the mean time of the reveal
    f = (SALIENCE - SALIENCE.mean()) / (SALIENCE - SALIENCE.mean()).abs().max()
    assert revealed.tolist() == pytest.approx((0.5 + STRENGTH * 2 / math.pi * f).tolist(), abs=0.03)
    assert revealed.argsort().tolist() == SALIENCE.argsort().tolist()
