"""The only sampling loop: `iterate` yields every state, `sample` returns the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from discdiff.clocks import Clock, Shared
from discdiff.kernels import Kernel, check_grid, prior_tokens
from discdiff.layout import TokenBatch
from discdiff.noise import Noise
from discdiff.processes import check_layout
from discdiff.sampling.grid import Grid, as_grid
from discdiff.types import Info, State

Seed = int | Sequence[int] | Tensor | torch.Generator
LOOK_EVERY = 8  # steps between looks at the all-done flag, the loop's only read from the device
ROUNDING = 1e-9  # no step of a grid is shorter: blocks of a clock meet to some 1e-15 only
_START = -1  # the step number of the noise that draws the prior


def iterate(
    denoiser: Any,
    kernel: Kernel,
    batch: TokenBatch,
    grid: Grid | int | Sequence[float],
    *,
    seed: Seed = 0,
    clock: Clock | None = None,
    latents: dict[str, Tensor] | None = None,
) -> Iterator[tuple[State, Info]]:
    """Yield (state, info) at the start and after every step of the grid.

    `batch.given` positions never move, the other free ones start from the kernel's prior. `seed` is an int, one int per
    row, or a torch.Generator; a row's tokens depend on its own seed alone. Errors come before the first network call.
    """
    grid, clock = as_grid(grid), clock or Shared()
    _check(denoiser, kernel, batch, grid)
    noise = Noise.seeded(seed, batch.valid)
    state = kernel.init(_start(kernel, batch, noise.step(_START), dict(latents or {})))
    run = denoiser.start(batch)
    yield state, Info()
    for step in grid:
        if kernel.final and step.index % LOOK_EVERY == 0 and bool((state.committed | ~state.free).all()):
            return
        now = step._replace(t=state.time, s=_next(state.time, clock(state.batch, step.s)))
        state, info = kernel(run, state, now, noise.step(step.index))
        yield state, info


def sample(
    denoiser: Any,
    kernel: Kernel,
    batch: TokenBatch,
    grid: Grid | int | Sequence[float],
    *,
    callback: Callable[[State, Info], None] | None = None,
    **settings: Any,
) -> tuple[State, Info]:
    """Run to the end: the last state and the added-up info. `callback(state, info)` sees every step, changes nothing."""
    total = Info()
    for state, info in iterate(denoiser, kernel, batch, grid, **settings):
        total = total.merge(info)
        if callback is not None:
            callback(state, info)
    return state, total


def _start(kernel: Kernel, batch: TokenBatch, noise: Noise, latents: dict[str, Tensor]) -> State:
    rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)
    time = batch.free.double()
    state = State(batch.tokens, batch.given, batch.valid, ~batch.free, time, rows, batch, latents, {})
    return state._replace(tokens=prior_tokens(kernel.process, state, noise))


def _next(time: Tensor, s: Tensor) -> Tensor:
    """Times after a step: none rises, and rounding neither starts a position early nor leaves one just short of 0."""
    s = torch.where(s < ROUNDING, 0.0, torch.minimum(time, s))
    return torch.where((s > 0) & (time - s < ROUNDING), time, s)


def _check(denoiser: Any, kernel: Kernel, batch: TokenBatch, grid: Grid) -> None:
    layout = batch.layout
    noised = tuple(s.name for s in layout.segments if s.noised)
    if not noised or not bool(batch.free.any()):
        raise ValueError("nothing to sample: every position is given, invalid or not noised")
    check_layout(kernel.process, layout)
    if grid.times[0] != 1:
        raise ValueError(f"the grid starts at time {grid.times[0]}, a run starts from the prior: at time 1")
    readers = (*denoiser.reads, *kernel.reads)
    unread = [name for name in grid.used if name not in readers]
    if unread:
        raise ValueError(f"the grid sets {unread}, which neither the kernel nor a wrapper reads: add one, or drop them")
    check_grid(kernel, grid)
    masked = batch.given & batch.valid & batch.noisable & (batch.tokens == layout.vocab.mask)
    if bool(masked.any()):
        row, column = (int(i) for i in masked.nonzero()[0])
        raise ValueError(f"row {row}, position {column} is given but holds the mask: give a token or leave it free")
