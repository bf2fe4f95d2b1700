"""Chain: several kernels one after another as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from discdiff.kernels.base import Kernel, Several
from discdiff.noise import Noise
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Chain(Several):
    """`Chain((predictor, corrector, ...))`: the i-th kernel draws from `noise.child(i)`, so no two share a uniform.

    Raises ValueError for an empty chain.
    """

    kernels: tuple[Kernel, ...]

    @property
    def decide_first(self) -> bool:
        return all(k.decide_first for k in self.kernels)

    @property
    def final(self) -> bool:
        return all(k.final for k in self.kernels)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        total, before = Info(), state.committed
        for i, kernel in enumerate(self.kernels):
            state, info = kernel(denoiser, state, step, noise.child(i))
            total = total.merge(info)
        return state, total._replace(committed=(state.committed & ~before).sum())  # a kernel may undo the one before
