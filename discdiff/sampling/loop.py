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
from discdiff.sampling import ahead as rows_ahead
from discdiff.sampling.grid import Grid, as_grid
from discdiff.types import Info, State

Seed = int | Sequence[int] | Tensor | torch.Generator
LOOK_EVERY = 8  # steps between looks at the all-done flag, the loop's only read from the device
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
    ahead: bool = False,
) -> Iterator[tuple[State, Info]]:
    """Yield (state, info) at the start and after every step of the grid.

    `batch.given` positions never move, the other free ones start from the kernel's prior. `seed` is an int, one int per
    row, or a torch.Generator; a row's tokens depend on its own seed alone. Errors come before the first network call.
    ahead: where who moves is known before the network is asked, rows do not wait for one another: every call holds each
    row's next change, tokens are the same, and a yield is a call instead of a step.
    """
    grid, clock = as_grid(grid), clock or Shared()
    _check(denoiser, kernel, batch, grid)
    noise = Noise.seeded(seed, batch.valid)
    state = kernel.init(_start(kernel, batch, noise.step(_START), dict(latents or {})))
    run = denoiser.start(batch)
    yield state, Info()
    # a denoiser that starts as itself keeps nothing between calls, so its rows may be at different steps
    free = ahead and run is denoiser and set(grid.used) <= {"rate"}
    when = rows_ahead.plan(kernel, state, grid, clock, noise) if free else None
    if when is not None:
        yield from rows_ahead.run(kernel, run, state, grid, clock, noise, when)
        return
    for step in grid:
        if kernel.final and step.index % LOOK_EVERY == 0 and bool((state.committed | ~state.free).all()):
            return
        state, info = kernel(run, state, rows_ahead.towards(step, state, clock), noise.step(step.index))
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
    """Run to the end: the last state and the added-up info. `callback(state, info)` sees every step, changes no token.

    Without one, rows do not wait for one another where that is possible (`ahead`): the network calls are fewer and fuller.
    """
    return last(iterate(denoiser, kernel, batch, grid, ahead=callback is None, **settings), callback)


def last(
    run: Iterator[tuple[State, Info]], callback: Callable[[State, Info], None] | None = None
) -> tuple[State, Info]:
    """The last state of a run and its added-up info."""
    total = Info()
    for state, info in run:
        total = total.merge(info)
        if callback is not None:
            callback(state, info)
    return state, total


def _start(kernel: Kernel, batch: TokenBatch, noise: Noise, latents: dict[str, Tensor]) -> State:
    rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)
    time = batch.free.double()
    state = State(batch.tokens, batch.given, batch.valid, ~batch.free, time, rows, batch, latents, {})
    return state._replace(tokens=prior_tokens(kernel.process, state, noise))


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
