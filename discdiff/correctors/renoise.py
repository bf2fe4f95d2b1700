"""Renoise: a step of noise back, then a step of denoising, for every process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.correctors.base import Corrector, check_process, started
from discdiff.correctors.redraw import by_part
from discdiff.kernels import Ancestral, select
from discdiff.noise import CORRUPT, Noise
from discdiff.processes import Absorbing, Process
from discdiff.processes.base import alphabet_size
from discdiff.proposals import Factorised, Proposal
from discdiff.types import Alphabet, Info, State, Step


@dataclass(frozen=True)
class Renoise(Corrector):
    """x_s -> x_t' ~ q(x_t' | x_s) -> x_s ~ p(x_s | x_t') with t' = s + back * (t - s), at most 1, t where the step began.

    With an exact denoiser the law of every position at level s stays as it is, for every process and `back`; positions are
    denoised independently, so the joint law is kept up to an error that falls with the square of the step, like
    that of `Ancestral`. Masks take part: of an absorbing process about as many tokens are hidden as revealed.
    Forward-backward corrector (arXiv 2205.14987; in ReMDM's terms, 2503.00307, sigma = (a_s - a_t') / a_t').
    Raises ValueError for `back` not above 0 and a Dense process.
    """

    back: float = 1.0
    process: Process = field(default_factory=Absorbing)
    proposal: Proposal = field(default_factory=Factorised)

    def __post_init__(self) -> None:
        checked("back", self.back, self.back > 0, "above 0; 1 goes back as far as the step came")
        check_process(self.process, "Renoise")

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def decide_first(self) -> bool:
        return not self.proposal.joint

    def ready(self, state: State) -> Tensor:
        return started(state)

    def correct(self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor) -> tuple[State, Info]:
        level = state.time
        back = (level + self.back * (step.t - level).clamp(min=0)).clamp(max=1)
        back = torch.where(where, back, level)
        moving = back > level
        index = select(moving)
        if not len(index):
            return state, Info()
        x, alphabet = state.batch.symbols(state.tokens.reshape(-1)[index], index), state.batch.sites(index)
        s, t = (time.reshape(-1)[index] for time in (level, back))
        uniform = noise.uniform(CORRUPT, index)
        noisy = by_part(self.process, alphabet, lambda part: forward(part, x, s, t, uniform, alphabet))
        tokens = state.tokens.reshape(-1).scatter(0, index, state.batch.ids(noisy, index)).view(state.tokens.shape)
        kernel = Ancestral(self.process, self.proposal)
        kept = state.committed & (tokens != state.batch.layout.vocab.mask) if kernel.final else torch.zeros_like(moving)
        noised = state._replace(tokens=tokens, committed=torch.where(moving, kept, state.committed), time=back)
        there = step._replace(t=back, s=level, rate=None, score_power=None)
        after, info = kernel(denoiser, noised, there, noise.child(0))
        return after, info._replace(committed=(after.committed & ~state.committed).sum())


def forward(process: Process, x: Tensor, s: Tensor, t: Tensor, uniform: Tensor, alphabet: Alphabet) -> Tensor:
    """x_t ~ q(x_t | x_s), (n,) symbols by inverse CDF from one uniform each: keep, else mask, else a uniform token."""
    size = torch.as_tensor(alphabet_size(alphabet), device=x.device)
    step = process.transition(s, t, size)
    keep = torch.where(x == size, 1.0, step.keep) if process.mask_absorbing else step.keep
    rest = (uniform - keep - step.mask) / (step.token * size).clamp(min=1e-300)
    symbol = torch.minimum((rest.clamp(0, 1) * size).long(), size - 1)
    return torch.where(uniform < keep, x, torch.where(uniform < keep + step.mask, size, symbol))
