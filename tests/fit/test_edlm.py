"""EDLM (arXiv 2410.21357): x0 drawn jointly, by self-normalised importance resampling of k factorised candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from discdiff import Ancestral, sample
from discdiff.denoisers import inverse_cdf
from discdiff.noise import ORDER, TOKEN
from discdiff.proposals import Proposal, Proposed
from discdiff.testing import noise_floor, total_variation, toy


@dataclass(frozen=True)
class Resampled(Proposal):
    energy: Callable
    k: int = 2
    joint: ClassVar[bool] = True

    def draw(self, prediction, state, index, step, noise):
        drawn = [prediction.draw(index, noise, TOKEN + j) for j in range(self.k)]
        tokens, log_q = (torch.stack(x) for x in ([d.tokens for d in drawn], [d.log_prob for d in drawn]))  # (k, n)
        place = index.expand(self.k, -1)
        whole = (
            state.tokens.reshape(1, -1).repeat(self.k, 1).scatter(1, place, tokens).view(self.k, *state.tokens.shape)
        )
        carried = log_q.new_zeros(self.k, state.tokens.numel()).scatter(1, place, log_q).view_as(whole)
        weight = (-self.energy(whole, carried, ~state.committed)).softmax(0)  # (k, batch)
        row = torch.div(index, state.tokens.shape[1], rounding_mode="floor")
        chosen = inverse_cdf(weight.T, noise.row_uniform(ORDER))[row], torch.arange(len(index))
        return Proposed(tokens[chosen], log_q[chosen], (1 / weight.square().sum(0)).mean())


joint = toy()
P = joint.p.view(3, 3, 3, 3)
PREFIX = [P.sum(dim=tuple(range(i, 4))) if i < 4 else P for i in range(5)]  # PREFIX[i]: law of the first i symbols


def co_ar(whole, log_q, hidden):
    """Only masked positions count: sum of log q(x_i) - log p(x_i | x_<i)."""
    x = whole.unbind(-1)
    log_p = torch.stack([(PREFIX[i + 1][x[: i + 1]] / PREFIX[i][x[:i]]).log() for i in range(4)], -1)
    return torch.where(hidden, log_q - log_p, 0.0).sum(-1)


def test_resampling_moves_one_step_to_the_joint(rows=2000):
    plain = sample(joint.denoiser(Ancestral().process), Ancestral(), joint.batch(rows), 1, seed=1)[0]
    run = {
        k: sample(
            joint.denoiser(Ancestral().process), Ancestral(proposal=Resampled(co_ar, k)), joint.batch(rows), 1, seed=1
        )
        for k in (1, 4, 64)
    }
    far = {
        k: total_variation(joint.law(state.tokens), joint.p) / noise_floor(joint.p, rows)
        for k, (state, _) in run.items()
    }
    assert bool((run[1][0].tokens == plain.tokens).all()) and float(run[1][1].ess) == 1
    assert far[1] > 5 and far[1] > far[4] > far[64] and far[64] < 1.7 and 2 < float(run[64][1].ess) < 64
