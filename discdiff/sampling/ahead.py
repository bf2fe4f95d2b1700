"""Rows that need not wait for one another: who moves when is worked out first, then every call holds each row's next change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from discdiff.clocks import Clock
from discdiff.kernels import Kernel
from discdiff.noise import Noise
from discdiff.sampling.grid import Grid
from discdiff.types import Info, State, Step

ROUNDING = 1e-9  # no step of a grid is shorter: blocks of a clock meet to some 1e-15 only


def plan(kernel: Kernel, state: State, grid: Grid, clock: Clock, noise: Noise) -> Tensor | None:
    """The step of `grid` that changes each position, (batch, length) int64, len(grid) where none does.

    None where it depends on what the network says. The network is not asked.
    """
    if not _knows(kernel):
        return None
    when = torch.full_like(state.tokens, len(grid)).reshape(-1)
    for step in grid:
        now = towards(step, state, clock)
        index = kernel.awake(state, now, noise.step(step.index))
        if index is None:
            return None
        when[index] = step.index
        committed = (when < len(grid)).view(state.tokens.shape) | ~state.free
        state = state._replace(time=now.s, committed=committed)
    return when.view(state.tokens.shape)


def run(
    kernel: Kernel, denoiser: Any, state: State, grid: Grid, clock: Clock, noise: Noise, when: Tensor
) -> Iterator[tuple[State, Info]]:
    """Carry out a plan: call k asks every row for the positions of its k-th change.

    Tokens, network rows and head rows are those of going step by step, the calls are fewer and fuller. A state holds
    rows at times of their own.
    """
    times = torch.tensor(grid.times, dtype=torch.float64, device=when.device)
    never, number = len(grid), _number(when)
    sizes = torch.bincount(number[when < never]).tolist()  # the one read from the device: all counts of the run
    order = torch.where(when < never, number, len(sizes)).reshape(-1).argsort(stable=True)
    if not sizes:
        yield state._replace(time=_end(state, clock, grid)), Info()
    for k, index in enumerate(order[: sum(sizes)].split(sizes)):
        step = torch.where(number == k, when, never).amin(1)
        moves, place = (step < never)[:, None], step.clamp(max=never - 1)
        t, s = (torch.where(moves, clock(state.batch, times[place + j]), state.time) for j in (0, 1))
        now = Step(k, torch.where(state.free, t, 0.0), torch.where(state.free, s, 0.0))
        state, info = kernel.move(denoiser, state, now, noise.step(place), index)
        if k == len(sizes) - 1:
            state = state._replace(time=_end(state, clock, grid))
        yield state, info


def towards(step: Step, state: State, clock: Clock) -> Step:
    """The step with a time per position: none rises, and rounding neither starts one early nor leaves one short of 0."""
    time, s = state.time, clock(state.batch, step.s)
    s = torch.where(s < ROUNDING, 0.0, torch.minimum(time, s))
    return step._replace(t=time, s=torch.where((s > 0) & (time - s < ROUNDING), time, s))


def _knows(kernel: Any) -> bool:
    """Whether the class that defines the kernel's step says who is awake, too: a subclass's own step may do more."""
    defines = (vars(kind) for kind in type(kernel).__mro__)
    return next(("awake" in names for names in defines if "awake" in names or "__call__" in names), False)


def _number(when: Tensor) -> Tensor:
    """(batch, length): how many earlier steps change the row, the number of the call that holds this position's step."""
    values, order = when.sort(dim=1)
    number = torch.zeros_like(values)
    number[:, 1:] = (values.diff(dim=1) > 0).cumsum(1)
    return torch.empty_like(number).scatter(1, order, number)


def _end(state: State, clock: Clock, grid: Grid) -> Tensor:
    return torch.where(state.free, torch.minimum(state.time, clock(state.batch, grid.times[-1])), state.time)
