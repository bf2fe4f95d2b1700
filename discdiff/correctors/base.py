"""The corrector contract: a kernel that leaves time alone and can be told where it may work and what it costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discdiff.kernels import Kernel
from discdiff.noise import Noise
from discdiff.processes import Dense, PerSegment, Process
from discdiff.types import Info, State, Step


class Corrector(Kernel):
    """A kernel at the level s the positions have reached, `state.time`; a corrector of your own gives `correct`.

    It works inside `where` (batch, length) bool, by default everywhere it can (`ready`). `cost(denoiser)` is the number
    of network calls of one correction, which `Budget` counts.
    """

    def cost(self, denoiser: Any) -> int:
        return 1

    def ready(self, state: State) -> Tensor:
        return standing(state)

    def correct(self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor) -> tuple[State, Info]:
        raise TypeError(f"{type(self).__name__} defines no correct")

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        return self.correct(denoiser, state, step, noise, self.ready(state))


def started(state: State) -> Tensor:
    """Free positions that no longer wait for their clock, bool (batch, length)."""
    return state.free & (state.committed | (state.time < 1))


def standing(state: State) -> Tensor:
    """Tokens that may be redrawn: free, started and not masked, bool (batch, length)."""
    return started(state) & (state.tokens != state.batch.layout.vocab.mask)


def lowest(values: Tensor, where: Tensor, count: int) -> Tensor:
    """The `count` smallest values of each row inside `where`, bool (batch, length)."""
    finite = values.clamp(max=torch.finfo(values.dtype).max)  # an infinite score is still better than no position
    place = torch.where(where, finite, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return where & (place < count)


def parts(process: Process) -> tuple[Process, ...]:
    """A process's own parts: one per segment, or itself."""
    return tuple(process.parts.values()) if isinstance(process, PerSegment) else (process,)


def check_process(process: Any, who: str) -> None:
    """Raise ValueError unless the process has closed forms."""
    if not isinstance(process, Process) or any(isinstance(part, Dense) for part in parts(process)):
        raise ValueError(
            f"{who} needs a process in closed form (Absorbing, Uniform, MaskOrReplace, Interpolating, or one per "
            f"segment), not {type(process).__name__}"
        )
