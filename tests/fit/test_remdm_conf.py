"""ReMDM-conf (arXiv 2503.00307): the less sure a token was when it was revealed, the likelier it is masked again."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from discdiff import Absorbing, Info, iterate, row_seeds, sample
from discdiff.kernels import ask, select
from discdiff.noise import MASK, TOKEN, WAKE
from discdiff.testing import toy


@dataclass(frozen=True)
class ReMDMConf:
    sigma: float = 0.3
    process: Absorbing = field(default_factory=Absorbing)
    unbiased: ClassVar[bool] = False
    decide_first: ClassVar[bool] = True
    final: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    def init(self, state):
        psi = torch.full(state.tokens.shape, torch.inf, dtype=torch.float64)
        return state._replace(memory={**state.memory, "psi": psi})

    def __call__(self, denoiser, state, step, noise):
        late, early, psi = *(self.process.schedule.alpha(x) for x in (step.t, step.s)), state.memory["psi"]
        share = torch.where(state.free & state.committed, -psi, -torch.inf).softmax(1).nan_to_num(0.0)
        again = (noise.uniform(MASK) < self.sigma * share) & (step.s > 0)
        shown = state.free & ~state.committed & (noise.uniform(WAKE) < (early - late) / (1 - late))
        tokens, psi, info = torch.where(again, state.batch.layout.vocab.mask, state.tokens), psi.clone(), Info()
        if len(index := select(shown)):
            asked = ask(denoiser, self.process, state, step, noise, index)
            drawn, info = asked.prediction.draw(asked.index, asked.noise, TOKEN), asked.info
            tokens.view(-1)[index], psi.view(-1)[index] = drawn.tokens, drawn.log_prob.exp()
        time, committed = torch.where(state.free, step.s, state.time), (state.committed | shown) & ~again
        state = state._replace(tokens=tokens, committed=committed, time=time, memory={**state.memory, "psi": psi})
        return state, info._replace(committed=shown.sum())


def test_unsure_tokens_go_back_and_rows_keep_their_own_memory():
    joint, process = toy(), Absorbing()
    states = [state for state, _ in iterate(joint.denoiser(process), ReMDMConf(), joint.batch(800), 20, seed=4)]
    deficit = max(k / 20 - float(state.committed.double().mean()) for k, state in enumerate(states))
    assert deficit > 0.1 and bool(states[-1].committed.all())  # lags behind its schedule, the last step catches up
    gone = torch.cat([a.memory["psi"][a.committed & ~b.committed] for a, b in zip(states, states[1:])])
    stayed = torch.cat([a.memory["psi"][a.committed & b.committed] for a, b in zip(states, states[1:])])
    assert len(gone) > 200 and gone.mean() < stayed.mean() - 0.01
    alone = sample(joint.denoiser(process), ReMDMConf(), joint.batch(1), 20, seed=row_seeds(4, 800)[7:8])[0]
    assert bool((alone.tokens[0] == states[-1].tokens[7]).all())
