"""Gibbs: one token at a time is redrawn given all the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from discdiff.config import checked
from discdiff.correctors.base import Corrector, check_process, lowest
from discdiff.correctors.redraw import answerable, redraw
from discdiff.noise import ORDER, Noise
from discdiff.processes import Absorbing, Process
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Gibbs(Corrector):
    """x_i ~ q_s(x_i | x_-i) at a position uniform among the row's tokens; `calls` positions, one after another.

    With an exact denoiser it leaves the law at every level s as it is: the masks stay where they are, and a token is
    redrawn given everything else. `parallel` k > 1 redraws k tokens per network call as if they were independent: k times
    as fast and biased. Processes with a mask hide the token; without one (Uniform) the network must predict cavities, or
    its own prediction is divided by q_s(x_i | v), which says nothing at s = 0: clean tokens are then left alone.
    Raises ValueError for counts below 1 and a Dense process.
    """

    calls: int = 1
    parallel: int = 1
    process: Process = field(default_factory=Absorbing)

    def __post_init__(self) -> None:
        checked("calls", self.calls, self.calls >= 1, "at least 1 network call per correction")
        checked("parallel", self.parallel, self.parallel >= 1, "at least 1 token per network call")
        check_process(self.process, "Gibbs")

    @property
    def unbiased(self) -> bool:
        return self.parallel == 1

    @property
    def decide_first(self) -> bool:
        return True

    def cost(self, denoiser: Any) -> int:
        return self.calls

    def correct(self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor) -> tuple[State, Info]:
        where, total = where & answerable(denoiser, self.process, state), Info()
        for i in range(self.calls):
            here = noise.child(i)
            chosen = lowest(here.uniform(ORDER), where, self.parallel)
            state, info = redraw(denoiser, self.process, state, step, here, chosen)
            total = total.merge(info)
        return state, total
