"""LSD and LSD+: the coefficients and times of a few-step run, fitted to a run of many steps (arXiv 2509.19962)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discdiff.config import checked
from discdiff.distill.base import Fitted, known, whole
from discdiff.distill.lockstep import Lane, check_process, perturbed, start
from discdiff.distill.paths import measure
from discdiff.distill.settings import RANGES, fit_settings
from discdiff.distill.terms import DISTANCES, Pairs, Products, closed_form, descend, pairs, products
from discdiff.distill.tuning import START, TUNED, tune
from discdiff.kernels import Ancestral, Kernel
from discdiff.layout import TokenBatch
from discdiff.noise import mix_int
from discdiff.sampling.grid import Grid
from discdiff.types import Step

LEARNED = TUNED
OBJECTIVES = ("normalised", "paper", "kl")
SCALES = ("score", "log_score")
FITTERS = ("closed", "gradient")


def fit(
    denoiser: Any,
    kernel: Kernel,
    batch: TokenBatch,
    steps: int,
    teacher_steps: int,
    *,
    learn: Iterable[str] | None = None,
    objective: str = "normalised",
    scale: str = "score",
    distance: str = "l2",
    fitter: str = "closed",
    rounds: int = 1,
    relaxed: float = 0.0,
    largest: float = 4.0,
    updates: int = 20,
    learning_rate: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Fitted:
    """A grid of `steps` for `sample(denoiser, kernel, ...)` whose run follows `Ancestral(process)` of `teacher_steps`.

    Both run on the rows of `batch` (fully masked, or prompts) with the same noise, side by side. learn: "rate" (LSD),
    "time" (LSD+), then "temperature" and "guidance" (`fit_settings`) and "renoise" (`tune`), for parts that read them.

    "rate": Phi_k = <s*_k, s_k> / <s_k, s_k> in [0, largest] over the scores at the free sites where both runs hold the
    same symbol; with scale "log_score" their logs, weighted by s*_k, and Phi_k is a power (`Grid.score_power`). fitter
    "gradient" minimises any `distance` ("l2", "entropy") by Newton steps. "time": kappa = softmax(w) and t_k = 1 -
    sum_{l < k} kappa_l, `updates` gradient steps on w per round for sum_k |kappa_k Phi_k s_k - A_k|^2, where A_k =
    sum_{j in k} dt s*_j over the teacher's steps j of the k-th equal interval. objective "paper" is eq. (15) as printed: the
    target is the teacher's single step dt s*_k and kappa is free, so that the times fall short of 0 and the last step
    takes the rest. "kl" (our own, in no paper) is `measure(...).best(steps)` over `teacher_steps` fine times: times only.

    A scalar on a masked score only changes how many tokens a step reveals. relaxed: share of each row's start that is
    random tokens, while fitting only. rounds: fresh states each; inner products add up over them. Raises ValueError
    before the first network call.
    """
    chosen = _chosen(learn, objective, scale)
    _check(kernel, steps, teacher_steps, objective, scale, distance, fitter, rounds, relaxed, largest, updates)
    process, tuned = kernel.process, tuple(name for name in chosen if name not in ("rate", "time"))
    knob = "rate" if scale == "score" else "score_power"
    settings = {**({knob: 1.0} if "rate" in chosen else {}), **{name: START[name] for name in tuned}}
    start(denoiser, kernel, batch, Grid.uniform(steps, **settings), seed)  # all that can be wrong
    fitted = Fitted(Grid.uniform(steps), 0.0, 0.0)
    if objective == "kl":
        errors = measure(denoiser, process, batch, teacher_steps, seed=seed, rounds=rounds, progress=progress)
        best = errors.best(steps)
        fitted = Fitted(best, errors.error(best), errors.error(errors.nearest(fitted.grid)))
    elif len(tuned) < len(chosen):
        sweep = _Sweep(chosen, objective, knob, distance, fitter, largest, steps)
        trace = []
        for number in tqdm(range(rounds), desc="fit", disable=not progress):
            own = seed if number == 0 else mix_int(seed + 7919 * number)
            teacher = start(denoiser, Ancestral(process), batch, Grid.uniform(teacher_steps), own)
            student = perturbed(start(denoiser, kernel, batch, sweep.grid, own), relaxed)
            trace.append(sweep.round(teacher, student, teacher_steps, updates, learning_rate))
        fitted = Fitted(sweep.grid, trace[-1][1], trace[-1][0], tuple(trace))
    laws, tuned = tuple(n for n in tuned if n in RANGES), tuple(n for n in tuned if n not in RANGES)
    if laws:
        found = fit_settings(
            denoiser, process, batch, fitted.grid, teacher_steps, learn=laws, seed=seed, progress=progress
        )
        fitted = found._replace(trace=(*fitted.trace, *found.trace))
    if tuned:
        found = tune(denoiser, kernel, batch, fitted.grid, teacher_steps, learn=tuned, seed=seed, progress=progress)
        fitted = found._replace(trace=(*fitted.trace, *found.trace))
    return fitted


class _Sweep:
    """The schedule so far, and the inner products of every step, which add up over rounds."""

    def __init__(
        self,
        learn: tuple[str, ...],
        objective: str,
        knob: str,
        distance: str,
        fitter: str,
        largest: float,
        steps: int,
    ) -> None:
        self.rated, self.timed, self.accumulated = "rate" in learn, "time" in learn, objective == "normalised"
        self.knob, self.distance, self.fitter, self.largest = knob, distance, fitter, largest
        self.phi, self.times = [1.0] * steps, Grid.uniform(steps).times
        self.sums = [Products() for _ in range(steps)]

    @property
    def grid(self) -> Grid:
        return Grid(self.times, **({self.knob: tuple(self.phi)} if self.rated else {}))

    def round(
        self, teacher: Lane, student: Lane, teacher_steps: int, updates: int, learning_rate: float
    ) -> tuple[float, float]:
        """One pass of both runs side by side: the objective untouched and fitted, at the same states."""
        moves, per = list(Grid.uniform(teacher_steps)), teacher_steps // len(self.phi)
        before, after, matched = 0.0, 0.0, []
        for k in range(len(self.phi)):
            step = Step(k, self.times[k], self.times[k + 1])
            own, total = student.predict(step), Products()
            for j, move in enumerate(moves[k * per : (k + 1) * per]):
                if j == 0 or (self.timed and self.accumulated):
                    walk = partial(pairs, teacher, student, teacher.predict(move), own, (move, step))
                    if j == 0 and self.rated:
                        lost = self._coefficient(k, partial(walk, logs=self.knob == "score_power"))
                        before, after = before + lost[0], after + lost[1]
                    if self.timed:
                        found = products(walk())
                        cross = total.cross + (move.t - move.s) * found.cross
                        total = Products(cross=cross, own=found.own if j == 0 else total.own)
                # power 1 is the same law, drawn in the way that the student draws
                teacher = teacher.advance(move._replace(score_power=1.0) if self.knob == "score_power" else move)
            matched.append(total)
            settings: Any = {self.knob: self.phi[k]} if self.rated else {}
            student = student.advance(step._replace(**settings))
        return self._retime(matched, updates, learning_rate) if self.timed else (before, after)

    def _coefficient(self, k: int, walk: Pairs) -> tuple[float, float]:
        """Fit the coefficient of step k; the distance with 1 and with it."""
        if self.fitter == "gradient":
            self.phi[k], before, after = descend(walk, self.distance, self.knob == "score_power", self.largest)
            return before, after
        self.sums[k] = self.sums[k].add(products(walk()))
        self.phi[k] = closed_form(self.sums[k], self.largest)
        return self.sums[k].loss(1.0), self.sums[k].loss(self.phi[k])

    def _retime(self, matched: list[Products], updates: int, learning_rate: float) -> tuple[float, float]:
        """A few gradient steps on the times; objectives without the targets' own norms, which no time changes."""
        phi = torch.tensor(self.phi if self.knob == "rate" else [1.0] * len(self.phi), dtype=torch.float64)
        cross, own = torch.tensor([(m.cross, m.own) for m in matched], dtype=torch.float64).unbind(1)

        def objective(kappa: Tensor) -> Tensor:
            size = kappa * phi
            return (size.square() * own - 2 * size * cross).sum() / own.sum().clamp(min=1e-300)

        kappa = -torch.tensor(self.times, dtype=torch.float64).diff()
        free = (kappa.log() if self.accumulated else kappa.clone()).requires_grad_()
        pace = learning_rate if self.accumulated else learning_rate * float(kappa.mean())
        optimiser = torch.optim.Adam([free], lr=pace)
        untouched = best = float(objective(kappa))
        for _ in range(updates):
            with torch.enable_grad():
                loss = objective(free.softmax(0) if self.accumulated else free)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            now = (free.softmax(0) if self.accumulated else free.clamp(min=1e-6)).detach()
            if float(objective(now)) < best and float(now[:-1].sum()) < 1:
                best, kappa = float(objective(now)), now
        self.times = (1.0, *(1 - kappa.cumsum(0)[:-1]).tolist(), 0.0)
        return untouched, best


def _chosen(learn: Iterable[str] | None, objective: str, scale: str) -> tuple[str, ...]:
    known(objective, OBJECTIVES, "objective")
    known(scale, SCALES, "scale")
    if isinstance(learn, str):
        raise ValueError(f"learn is {learn!r}: give a tuple of names, such as ({learn!r},)")
    chosen = (("time",) if objective == "kl" else ("rate",)) if learn is None else tuple(learn)
    for name in chosen:
        known(name, LEARNED, "thing to learn")
    checked("learn", chosen, bool(chosen), f"name at least one of {', '.join(LEARNED)}")
    if objective == "kl" and ("rate" in chosen or "time" not in chosen):
        raise ValueError(f"learn is {chosen}: the objective 'kl' learns times; rates go with 'normalised' or 'paper'")
    if scale == "log_score" and "rate" not in chosen:
        raise ValueError(f"scale 'log_score' is for learn=('rate',), not {chosen}")
    return chosen


def _check(kernel, steps, teacher_steps, objective, scale, distance, fitter, rounds, relaxed, largest, updates) -> None:
    known(distance, tuple(DISTANCES), "distance")
    known(fitter, FITTERS, "fitter")
    check_process(kernel.process)
    for name, value in (("steps", steps), ("teacher_steps", teacher_steps), ("rounds", rounds), ("updates", updates)):
        whole(name, value)
    checked("teacher_steps", teacher_steps, teacher_steps >= steps, f"the teacher takes at least the {steps} steps")
    if objective != "kl":
        near = max(1, round(teacher_steps / steps)) * steps
        checked(
            "teacher_steps", teacher_steps, teacher_steps % steps == 0, f"a multiple of {steps} steps, such as {near}"
        )
    checked("relaxed", relaxed, 0 <= relaxed < 1, "a share of the positions in [0, 1)")
    checked("largest", largest, largest >= 1, "at least 1, so that the untouched rate is allowed")
    if fitter == "closed" and distance != "l2":
        raise ValueError(f"distance {distance!r} has no closed form: use fitter='gradient'")
    if fitter == "gradient" and rounds > 1:
        raise ValueError(f"rounds is {rounds}: the gradient fitter keeps no sums over rounds; take more rows instead")
