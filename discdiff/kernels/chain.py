"""Chain: several kernels one after another as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from discdiff.kernels.base import Kernel, check_grid
from discdiff.noise import Noise
from discdiff.processes import Process
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Chain(Kernel):
    """`Chain((predictor, corrector, ...))`: the i-th kernel draws from `noise.child(i)`, so no two share a uniform.

    Raises ValueError for an empty chain.
    """

    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        if not self.kernels:
            raise ValueError("a chain needs at least one kernel")

    @property
    def process(self) -> Process:
        return self.kernels[0].process

    @property
    def unbiased(self) -> bool:
        return all(k.unbiased for k in self.kernels)

    @property
    def decide_first(self) -> bool:
        return all(k.decide_first for k in self.kernels)

    @property
    def final(self) -> bool:
        return all(k.final for k in self.kernels)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for k in self.kernels for name in k.reads)

    def check(self, grid: Any) -> None:
        for kernel in self.kernels:
            check_grid(kernel, grid)

    def init(self, state: State) -> State:
        for kernel in self.kernels:
            state = kernel.init(state)
        return state

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        total, before = Info(), state.committed
        for i, kernel in enumerate(self.kernels):
            state, info = kernel(denoiser, state, step, noise.child(i))
            total = total.merge(info)
        return state, total._replace(committed=(state.committed & ~before).sum())  # a kernel may undo the one before
