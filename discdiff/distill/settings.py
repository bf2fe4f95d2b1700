"""Per-step temperature and guidance: what changes a prediction, fitted to a finer run by the divergence of one-site laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from discdiff.config import checked
from discdiff.distill.base import Fitted, known, whole
from discdiff.distill.lockstep import Lane, check_process, start
from discdiff.distill.paths import interval
from discdiff.kernels import Ancestral
from discdiff.layout import TokenBatch
from discdiff.processes import Process
from discdiff.sampling.grid import Grid, as_grid
from discdiff.types import Step

RANGES = {"temperature": (0.25, 2.0), "guidance": (0.0, 4.0)}
"""What is searched; a temperature in its logarithm."""

_RATIO = (math.sqrt(5) - 1) / 2


def fit_settings(
    denoiser: Any,
    process: Process,
    batch: TokenBatch,
    grid: Grid | int,
    teacher_steps: int,
    *,
    learn: Iterable[str] = ("temperature",),
    evaluations: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Fitted:
    """The grid with a temperature or guidance scale for every step, for wrappers around the denoiser that read them.

    The teacher, `Ancestral(process)`, splits every step into about teacher_steps / len(grid) equal parts and leaves the
    settings as they are. From its state at t_k, the value of step k minimises D[t_k, t_{k+1}] of `discdiff.distill.paths`:
    the summed KL of the teacher's one-site laws to those of the student's one prediction, so that the sum over steps
    bounds the KL of the samples' laws. Steps do not touch one another; golden section, and a value is kept only where it
    lowers the objective, which is therefore never worse than untouched. Our own: with an exact denoiser nothing changes.
    Raises ValueError before the first network call.
    """
    names, grid = tuple(learn), as_grid(grid)
    for name in names:
        known(name, tuple(RANGES), "setting of a prediction")
    checked("learn", names, bool(names), f"name at least one of {', '.join(RANGES)}")
    whole("teacher_steps", teacher_steps, len(grid))
    whole("evaluations", evaluations, 2)
    check_process(process)
    kernel, parts = Ancestral(process), max(2, round(teacher_steps / len(grid)))
    start(denoiser, kernel, batch, replace(grid, **{name: (1.0,) * len(grid) for name in names}), seed)
    lane = start(denoiser, kernel, batch, grid, seed)
    values: dict[str, list[float | None]] = {name: list(getattr(grid, name)) or [None] * len(grid) for name in names}
    before, after = 0.0, 0.0
    for k, step in enumerate(tqdm(grid, desc="settings", disable=not progress)):
        edges = [step.t + (step.s - step.t) * i / parts for i in range(parts)] + [step.s]
        moves = [Step(k * parts + i, edges[i], edges[i + 1]) for i in range(parts)]
        lanes, predictions = [], []
        for move in moves:
            lanes.append(lane)
            predictions.append(lane.predict(move))
            lane = lane.advance(move)

        def look(
            one: Step, lanes: list[Lane] = lanes, predictions: list[Any] = predictions, moves: Any = moves
        ) -> float:
            return interval(lanes, predictions, moves, lanes[0].predict(one))

        best = look(step)
        before += best
        for name in names:

            def tried(value: float, name: str = name, place: Step = step, look: Any = look) -> float:
                setting: Any = {name: value}
                return look(place._replace(**setting))

            found, value = _search(tried, name, evaluations)
            if found < best:
                best, values[name][k] = found, value
                step = step._replace(**{name: value})  # type: ignore[arg-type]
        after += best
    filled: Any = {name: tuple(column) for name, column in values.items() if any(v is not None for v in column)}
    return Fitted(replace(grid, **filled), after, before, ((before, after),))


def _search(loss: Callable[[float], float], name: str, evaluations: int) -> tuple[float, float]:
    """(least loss seen, value) of a golden-section search over the range of a setting."""
    forth, back = (math.log, math.exp) if name == "temperature" else (float, float)
    low, high = (forth(edge) for edge in RANGES[name])
    seen: dict[float, float] = {}

    def look(place: float) -> float:
        if place not in seen:
            seen[place] = loss(back(place))
        return seen[place]

    left, right = high - _RATIO * (high - low), low + _RATIO * (high - low)
    for _ in range(evaluations - 1):
        if look(left) < look(right):
            high, right = right, left
            left = high - _RATIO * (high - low)
        else:
            low, left = left, right
            right = low + _RATIO * (high - low)
    place = min(seen, key=lambda p: seen[p])
    return seen[place], back(place)
