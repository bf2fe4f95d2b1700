"""What the student is compared by: scores and reverse rates at sites, and sums over two predictions in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.denoisers import Prediction
from discdiff.distill.lockstep import Lane, shared
from discdiff.processes import Absorbing, Process
from discdiff.types import Step

NEG_INF = float("-inf")
LATEST = 1 - 1e-5  # at time 1 the score of a fully noised token is 0, its forward rate infinite; SEDD stops here, too


def log_score(process: Process, log_own: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """log s_y = log p_t(y) / p_t(x) of the moves x -> y that the process can make, -inf for the others, `(n, K) -> (n, S)`.

    At a mask of an absorbing process s_y = a / (1 - a) p(x0 = y), and S = K; else S = K + 1 (SEDD arXiv 2310.16834).
    """
    t = t.clamp(max=LATEST)
    if isinstance(process, Absorbing):
        a = process.schedule.alpha(t)
        return log_own + torch.log(a / (1 - a))[:, None].to(log_own)
    score = process.to_score(process.cavity(log_own, x, t), x, t)
    return torch.where(log_speed(process, x, t, log_own.shape[-1]) > NEG_INF, score, NEG_INF).to(log_own)


def log_speed(process: Process, x: Tensor, t: Tensor, size: int) -> Tensor:
    """log Q_t(y -> x), what makes a score the reverse jump rate x -> y; as wide as the score, -inf at y = x."""
    t = t.clamp(max=LATEST)
    if isinstance(process, Absorbing):
        return process.rates(t, size)[1].log()[:, None].expand(-1, size)
    to_token, to_mask = process.rates(t, size)
    is_mask = x == size
    back = torch.where(is_mask, 0.0, torch.zeros_like(t) if process.mask_absorbing else to_token)
    into = torch.where(is_mask, to_mask, to_token)[:, None].expand(-1, size)
    return torch.cat([into, back[:, None]], 1).log().scatter(1, x[:, None], NEG_INF)


class Pair(NamedTuple):
    """Vectors (n, S) of the teacher and of the student, before its coefficient, at n sites, and the weight of each entry.

    Logs of scores are weighted by the teacher's score: unweighted, moves that hardly happen would decide.
    """

    target: Tensor
    own: Tensor
    weight: Tensor


Pairs = Callable[[], Iterator[Pair]]


def pairs(
    teacher: Lane, student: Lane, theirs: Prediction, own: Prediction, steps: tuple[Step, Step], logs: bool = False
) -> Iterator[Pair]:
    """The two runs' scores (or, `logs`, their logs) piece by piece; nothing wider than a piece is kept."""
    times = [lane.towards(step).t.reshape(-1) for lane, step in zip((teacher, student), steps, strict=True)]
    for piece, x in shared(teacher, student):
        made = [
            log_score(piece.process, p.log_probs(piece.index), x, time[piece.index])
            for p, time in zip((theirs, own), times, strict=True)
        ]
        if logs:
            live = made[0].isfinite() & made[1].isfinite()
            target, student_log = (torch.where(live, score, 0.0) for score in made)
            yield Pair(target, student_log, torch.where(live, target.exp(), 0.0))
        else:
            target = made[0].exp()
            yield Pair(target, made[1].exp(), torch.ones_like(target))


class Products(NamedTuple):
    """<s*, s*>, <s*, s>, <s, s> over all sites, weighted, float64."""

    target: float = 0.0
    cross: float = 0.0
    own: float = 0.0

    def add(self, other: Products) -> Products:
        """Those of both sets of sites."""
        return Products(*(a + b for a, b in zip(self, other, strict=True)))

    def loss(self, coefficient: float) -> float:
        """sum (s* - coefficient s)^2."""
        return self.target - 2 * coefficient * self.cross + coefficient**2 * self.own


def products(walk: Iterator[Pair]) -> Products:
    """Inner products, added up piece by piece in float64."""
    total = Products()
    for target, own, weight in walk:
        found = (weight * target * target, weight * target * own, weight * own * own)
        total = total.add(Products(*(float(x.sum(dtype=torch.float64)) for x in found)))
    return total


def closed_form(found: Products, largest: float) -> float:
    """Phi = <s*, s> / <s, s>, the minimiser of sum (s* - Phi s)^2, in [0, largest]; 1 where nothing is left to compare."""
    return min(max(found.cross / found.own, 0.0), largest) if found.own > 0 else 1.0


def squared(pair: Pair, phi: Tensor, logs: bool) -> Tensor:
    """sum w (s* - phi s)^2."""
    return (pair.weight * (pair.target - phi * pair.own).square()).sum()


def entropy(pair: Pair, phi: Tensor, logs: bool) -> Tensor:
    """Score entropy sum s_phi - s* log s_phi + s* log s* - s*, with s_phi = phi s, or s^phi for logs (arXiv 2310.16834)."""
    target, own, weight = pair
    if logs:
        loss = (phi * own).exp() - target.exp() * (phi * own - target + 1)
        return torch.where(weight > 0, loss, 0.0).sum()
    live = (target > 0) & (own > 0)
    target, own = torch.where(live, target, 1.0), torch.where(live, own, 1.0)
    loss = phi * own - target * (phi.log() + own.log() - target.log() + 1)
    return torch.where(live, loss, 0.0).sum()


DISTANCES = {"l2": squared, "entropy": entropy}


def descend(walk: Pairs, distance: str, logs: bool, largest: float, iterations: int = 30) -> tuple[float, float, float]:
    """(coefficient in [0, largest] that minimises a distance, the distance at 1, the distance there).

    Newton's method on the gradient, from 1. A step that does not lower the distance is halved, so the result is never
    worse than 1. Each iteration walks once over the predictions; the states are constants.
    """

    def look(value: float) -> tuple[float, float, float]:
        total = [0.0, 0.0, 0.0]
        for pair in walk():
            pair = Pair(*(x.detach().double() for x in pair))
            with torch.enable_grad():
                phi = torch.tensor(value, dtype=torch.float64, requires_grad=True)
                loss = DISTANCES[distance](pair, phi, logs)
                (slope,) = torch.autograd.grad(loss, phi, create_graph=True)
                (bend,) = torch.autograd.grad(slope, phi) if slope.requires_grad else (torch.zeros_like(slope),)
            total = [a + float(b) for a, b in zip(total, (loss.detach(), slope.detach(), bend), strict=True)]
        return total[0], total[1], total[2]

    lowest = 1e-6 if distance == "entropy" else 0.0
    value = 1.0
    loss, slope, bend = look(value)
    untouched = loss
    for _ in range(iterations):
        step = -slope / bend if bend > 0 else -0.1 * (slope > 0) + 0.1 * (slope < 0)
        proposed = min(max(value + step, lowest), largest)
        if abs(proposed - value) < 1e-9:
            break
        seen = look(proposed)
        while seen[0] > loss and abs(proposed - value) >= 1e-9:
            proposed = (proposed + value) / 2
            seen = look(proposed)
        if seen[0] > loss:
            break
        value, (loss, slope, bend) = proposed, seen
    return value, untouched, loss
