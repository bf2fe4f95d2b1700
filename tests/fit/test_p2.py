"""P2, path planning (arXiv 2502.03540): the best kappa(t) positions stay, committed ones compete and may be masked again."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from discdiff import Absorbing, Ancestral, FunctionDenoiser, iterate, sample
from discdiff.kernels import ask, select
from discdiff.maskers import lowest
from discdiff.noise import TOKEN
from discdiff.scores import spread
from discdiff.testing import toy


@dataclass(frozen=True)
class PathPlanning:
    process: Absorbing = field(default_factory=Absorbing)
    unbiased: ClassVar[bool] = False
    decide_first: ClassVar[bool] = False
    final: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def init(self, state):
        return state

    def __call__(self, denoiser, state, step, noise):
        index = select(state.free)
        asked = ask(denoiser, self.process, state, step, noise, index)
        drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN).tokens
        candidate = torch.where(state.committed.view(-1)[index], state.tokens.view(-1)[index], drawn)
        score = spread(state, index, asked.prediction.log_prob(asked.index, candidate))
        kappa = torch.where(state.free, self.process.schedule.alpha(step.s), 0.0).sum(1).round().long()
        kept = lowest(-score, kappa, state.free)
        tokens = state.tokens.reshape(-1).scatter(0, index, candidate).view_as(state.tokens)
        tokens = torch.where(state.free & ~kept, state.batch.layout.vocab.mask, tokens)
        done = state._replace(
            tokens=tokens, committed=kept | ~state.free, time=torch.where(state.free, step.s, state.time)
        )
        return done, asked.info._replace(committed=(kept & ~state.committed).sum())


def test_kappa_positions_are_kept_and_committed_ones_compete():
    joint, process = toy(), Absorbing()
    raw = FunctionDenoiser(joint.denoiser(process, kind="cavity").function)  # what the network thinks of its own input
    batch = joint.batch(1000, given={1: 2})
    states = [state for state, _ in iterate(raw, PathPlanning(), batch, 6, seed=2)]
    for k, state in enumerate(states):
        assert bool((state.committed.sum(1) == 1 + round(3 * k / 6)).all()) and bool((state.tokens[:, 1] == 2).all())
    assert sum(int((a.committed & ~b.committed).sum()) for a, b in zip(states, states[1:])) > 100  # masked again
    plain = sample(joint.denoiser(process), Ancestral(), batch, 6, seed=2)[0]
    likely = [float((joint.law(x.tokens) * joint.p.log()).sum()) for x in (states[-1], plain)]
    assert likely[0] > likely[1] + 0.1  # a mode seeker
