"""Per-step settings that no score objective sees, by coordinate search on the distance between finished samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from discdiff.config import checked
from discdiff.distill.base import Fitted, known, whole
from discdiff.distill.lockstep import start
from discdiff.kernels import Ancestral, Kernel
from discdiff.layout import TokenBatch
from discdiff.sampling.grid import Grid, as_grid
from discdiff.sampling.loop import sample

START = {"rate": 1.0, "temperature": 1.0, "renoise": 0.0, "guidance": 1.0}
"""Where a setting that the grid does not give starts from."""

TUNED = ("time", *START)
_PART = 64 << 20  # bytes of comparisons at a time

Distance = Callable[[Tensor, Tensor], float]
"""(student's tokens, teacher's tokens), (batch, length) each -> how far apart the two samples are, low is good."""


def discrepancy(one: Tensor, other: Tensor) -> float:
    """Squared maximum mean discrepancy of two samples of rows, `(n, length), (m, length)`, with k = exp(-4 Hamming / length).

    The kernel is a product of positive definite ones over the positions, so 0 in the limit means equal laws.
    """

    def mean(a: Tensor, b: Tensor) -> float:
        total, rows = 0.0, max(1, _PART // b.numel())
        for part in a.split(rows):
            apart = (part[:, None] != b[None]).sum(-1)
            total += float((-4 / b.shape[1] * apart.double()).exp().sum())
        return total / (len(a) * len(b))

    return mean(one, one) - 2 * mean(one, other) + mean(other, other)


def tune(
    denoiser: Any,
    kernel: Kernel,
    batch: TokenBatch,
    grid: Grid | int,
    teacher_steps: int,
    *,
    learn: Iterable[str] = ("temperature",),
    distance: Distance = discrepancy,
    sweeps: int = 2,
    seed: int = 0,
    progress: bool = False,
) -> Fitted:
    """Change one setting of one step at a time and keep what brings the finished samples nearer to the teacher's.

    Objective: distance(samples with the grid, samples of `Ancestral(process)` with `teacher_steps`), on the rows of `batch`
    with the same noise throughout. Only improvements are kept, so the objective never exceeds that of the grid given.
    learn: "rate", "time", "temperature", "renoise", "guidance", which the kernel or a wrapper around the denoiser must read.
    A value is tried a little higher and lower, by half as much in every sweep. About 2 steps * sweeps * len(learn) runs;
    our own. Raises ValueError before the first network call.
    """
    names = tuple(learn)
    for name in names:
        known(name, TUNED, "thing to tune")
    checked("learn", names, bool(names), f"name at least one of {', '.join(TUNED)}")
    whole("sweeps", sweeps)
    untouched = as_grid(grid)
    whole("teacher_steps", teacher_steps, len(untouched))
    filled = {
        name: tuple(START[name] if v is None else v for v in getattr(untouched, name) or [None] * len(untouched))
        for name in names
        if name != "time"
    }
    now = replace(untouched, **filled)
    start(denoiser, kernel, batch, now, seed)  # all that can be wrong with it
    target = sample(denoiser, Ancestral(kernel.process), batch, teacher_steps, seed=seed)[0].tokens

    def look(grid: Grid) -> float:
        return distance(sample(denoiser, kernel, batch, grid, seed=seed)[0].tokens, target)

    before = best = look(untouched)
    kept, trace = untouched, []
    bar = tqdm(total=sweeps * len(names) * len(untouched), desc="tune", disable=not progress)
    for sweep in range(sweeps):
        for name in names:
            for k in range(len(untouched)):
                bar.update()
                for changed in _nearby(now, name, k, 0.5**sweep):
                    found = look(changed)
                    if found < best:
                        now = kept = changed
                        best = found
                        break
        trace.append((before, best))
    return Fitted(kept, best, before, tuple(trace))


def _nearby(grid: Grid, name: str, k: int, size: float) -> Iterator[Grid]:
    """The grid with one setting of step k a little higher, then a little lower."""
    for sign in (1, -1):
        if name == "time":
            if k == 0:
                return  # a run starts from the prior
            t, room = grid.times[k], grid.times[k - 1] if sign > 0 else grid.times[k + 1]
            yield replace(grid, times=(*grid.times[:k], t + (room - t) * 0.5 * size, *grid.times[k + 1 :]))
            continue
        values = list(getattr(grid, name))
        if name in ("rate", "temperature"):
            values[k] = values[k] * math.exp(sign * 0.4 * size)
        elif name == "renoise":
            values[k] = min(max(values[k] + sign * 0.1 * size, 0.0), 1.0)
        else:
            values[k] = values[k] + sign * 0.5 * size
        if values[k] != getattr(grid, name)[k]:
            yield replace(grid, **{name: tuple(values)})
