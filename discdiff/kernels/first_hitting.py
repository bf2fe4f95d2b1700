"""First-hitting: the reverse jump process of masked diffusion simulated exactly, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from discdiff.kernels.base import Kernel, reveal, select
from discdiff.noise import ORDER, TIME, Noise
from discdiff.processes import Absorbing
from discdiff.proposals import Factorised, Proposal
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class FirstHitting(Kernel):
    """With n masked positions the next reveal happens at 1 - alpha(tau) = (1 - alpha(t)) U^(1/n), at a uniform position.

    One network call per token and none wasted; exact for any length (arXiv 2409.02908) if the grid has as many steps as
    free positions, else the last step reveals what is left. A position waits until its clock has started.
    """

    process: Absorbing = field(default_factory=Absorbing)
    proposal: Proposal = field(default_factory=Factorised)
    unbiased: ClassVar[bool] = True
    decide_first: ClassVar[bool] = True
    final: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.process, Absorbing) or self.proposal.joint:
            raise ValueError(
                "FirstHitting reveals one masked token at a time: it needs Absorbing and a factorised proposal"
            )

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        hidden = state.free & ~state.committed & (step.s < 1)
        left = hidden.sum(1, keepdim=True)
        schedule = self.process.schedule
        reach = (1 - schedule.alpha(state.time)) * noise.row_uniform(TIME)[:, None] ** (1 / left.clamp(min=1))
        time = torch.where(hidden, schedule.t_of_alpha(1 - reach), state.time)
        order = torch.where(hidden, noise.uniform(ORDER), torch.inf)
        first = (torch.zeros_like(hidden).scatter(1, order.argmin(1, keepdim=True), True) | (step.s <= 0)) & hidden
        state, info = reveal(denoiser, self, state, step._replace(t=time, s=time), noise, select(first))
        return state._replace(time=torch.where(first, 0.0, time)), info
