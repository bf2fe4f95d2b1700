"""Schedules to beat: hand-made ones, and a search of the times in the manner of Jump Your Steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discdiff.distill.base import known, whole
from discdiff.distill.lockstep import Lane, at, check_process, pieces, start, symbols
from discdiff.kernels import Ancestral
from discdiff.kernels.base import select
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, Noise
from discdiff.processes import Absorbing, Process
from discdiff.sampling.grid import Grid
from discdiff.sampling.loop import sample
from discdiff.types import Step

FLOOR = -30.0
_RATIO = (math.sqrt(5) - 1) / 2

HAND_MADE: dict[str, Callable[[float], float]] = {
    "uniform": lambda r: 1 - r,
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "square_root": lambda r: 1 - math.sqrt(r),
    "arccos": lambda r: 2 / math.pi * math.acos(r),
}
"""Share of the positions still noise after the share r of the steps (MaskGIT arXiv 2202.04200, Halton-MaskGIT 2503.17076)."""


def hand_made(name: str, steps: int, process: Process | None = None) -> Grid:
    """The grid on which `Ancestral(process)` follows a curve of HAND_MADE: 1 - alpha(t_k) = curve(k / steps) (1 - alpha(1)).

    Raises ValueError for an unknown name and for a process without one schedule.
    """
    known(name, tuple(HAND_MADE), "schedule")
    whole("steps", steps)
    schedule = getattr(Absorbing() if process is None else process, "schedule", None)
    if schedule is None:
        raise ValueError(
            f"{type(process).__name__} has no single schedule: give times of your own, Grid((1.0, ..., 0.0))"
        )
    most = 1 - float(schedule.alpha(1.0))
    shares = (HAND_MADE[name](k / steps) for k in range(1, steps))
    return Grid((1.0, *(float(schedule.t_of_alpha(1 - most * share)) for share in shares), 0.0))


def jump_your_steps(
    denoiser: Any,
    process: Process,
    batch: TokenBatch,
    steps: int,
    teacher_steps: int = 64,
    *,
    evaluations: int = 8,
    sweeps: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Grid:
    """Times searched for the least compounding decoding error (Jump Your Steps, arXiv 2410.07761), for `Ancestral(process)`.

    A step from t to s is split at the u that most reduces its error, by golden section with `evaluations` values of
    gain(t, u, s) = E sum_i KL(q(x_s,i | x_u,i, prediction at x_u) || q(x_s,i | x_u,i, prediction at x_t)),
    x_t the teacher's clean samples corrupted, x_u one step from there: all intervals are halved in turn while the number of
    steps allows, then those with the largest gain; `sweeps` passes re-place every inner time between its neighbours.
    Raises ValueError before the first network call.
    """
    whole("steps", steps)
    whole("teacher_steps", teacher_steps)
    whole("evaluations", evaluations, 2)
    whole("sweeps", sweeps, 0)
    check_process(process)
    lane = start(denoiser, Ancestral(process), batch, Grid.uniform(teacher_steps), seed)
    clean = sample(denoiser, lane.kernel, batch, teacher_steps, seed=seed)[0].tokens
    bar = tqdm(desc="search", disable=not progress)

    def split(t: float, s: float) -> _Split:
        bar.update()
        return _golden(lambda u: _gain(lane, clean, t, u, s), t, s, evaluations)

    times, found = [1.0, 0.0], [split(1.0, 0.0)] if steps > 1 else []
    while len(times) - 1 < steps:
        room = steps - (len(times) - 1)
        ranked = sorted(range(len(found)), key=lambda i: -found[i].gain)[:room]
        times = sorted({*times, *(found[i].u for i in ranked)}, reverse=True)
        if len(times) - 1 < steps:
            found = [split(t, s) for t, s in zip(times, times[1:], strict=False)]
    for _ in range(sweeps):
        for k in range(1, steps):
            times[k] = split(times[k - 1], times[k + 1]).u
    bar.close()
    return Grid(tuple(times))


class _Split(NamedTuple):
    u: float
    gain: float


def _golden(gain: Callable[[float], float], t: float, s: float, evaluations: int) -> _Split:
    """The best u in (s, t) among those a golden-section search looks at."""
    low, high = s, t
    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    seen = {left: gain(left), right: gain(right)}
    for _ in range(evaluations - 2):
        if seen[left] > seen[right]:
            high, right = right, left
            left = high - _RATIO * (high - low)
            seen[left] = gain(left)
        else:
            low, left = left, right
            right = low + _RATIO * (high - low)
            seen[right] = gain(right)
    best = max(seen, key=lambda u: seen[u])
    return _Split(best, seen[best])


def _gain(lane: Lane, clean: Tensor, t: float, u: float, s: float) -> float:
    """How much less error t -> u -> s makes than t -> s, nats per row."""
    first, second = Step(0, t, u), Step(1, u, s)
    here = _corrupted(lane, clean, t)
    there = here.advance(first)
    before, after = here.predict(first), there.predict(second)
    total = 0.0
    late, early = here.towards(first).t, there.towards(second)
    for piece in pieces(lane.state.batch, lane.kernel.process, select(there.state.free), copies=4):
        y = symbols(there.state, piece.index)
        if isinstance(piece.process, Absorbing):
            piece, y = piece._replace(index=piece.index[y == piece.size]), y[y == piece.size]
            if not len(y):
                continue
        log_new, log_old = after.log_probs(piece.index), before.log_probs(piece.index)
        at_u, at_s = at(early.t, piece.index), at(early.s, piece.index)
        if not isinstance(piece.process, Absorbing):  # what was predicted at x_t, told the site's token at u instead
            x = symbols(here.state, piece.index)
            cavity = piece.process.cavity(log_old, x, at(late, piece.index))
            log_old = piece.process.own(cavity, y, at_u).to(log_old)
        p, q = (piece.process.log_posterior(log, y, at_u, at_s) for log in (log_new, log_old))
        weight = p.exp()
        apart = torch.where(weight > 0, weight * (p.clamp(min=FLOOR) - q.clamp(min=FLOOR)), 0.0)
        total += float(apart.sum(dtype=torch.float64))
    return total / len(clean)


def _corrupted(lane: Lane, clean: Tensor, t: float) -> Lane:
    """The run at time t with x_t drawn from clean samples; the same uniforms for every t."""
    state, batch = lane.state, lane.state.batch
    noise = Noise(lane.noise.key, lane.noise.position).child(1)
    x0 = batch.symbols(torch.where(state.free, clean, batch.tokens))
    x = lane.kernel.process.corrupt(torch.where(state.free, x0, 0), t, noise.uniform(CORRUPT), batch.alphabet)
    tokens = torch.where(state.free, batch.ids(x), state.tokens)
    committed = ~batch.free
    if lane.kernel.final:
        committed = committed | (state.free & (x != batch.alphabet.size))
    time = torch.where(state.free, torch.full_like(state.time, t), state.time)
    return lane._replace(state=state._replace(tokens=tokens, committed=committed, time=time))
