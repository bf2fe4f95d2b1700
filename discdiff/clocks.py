"""Clocks: from the run's one time to the time of each position, for steps and for training alike.

A clock is `(batch, t) -> (batch, length)` float64 with t a float or (batch,); `rate` is its derivative in t, which the
loss needs. It is applied once, in the loop; a step starts from the time a position has reached, so a clock may change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.schedules import Linear, Schedule
from discdiff.types import per_position


class Clock(Protocol):
    """Contract of a clock: clock(1) = 1, clock(0) = 0, non-decreasing in t."""

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor: ...

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Shared:
    """Every position at the same time."""

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return per_position(t, batch.tokens).expand(batch.tokens.shape)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return torch.ones(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)


@dataclass(frozen=True)
class Windows:
    """Each named segment runs inside its own window (late, early) of the run, linearly: time 1 before, 0 after.

    `Windows({"plan": (1.0, 0.5), "action": (0.5, 0.0)})` finishes the plan before the actions start; segments not
    named use the whole run. Raises ValueError unless 1 >= late > early >= 0.
    """

    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (late, early) in self.windows.items():
            if not 1 >= late > early >= 0:
                raise ValueError(f"window {(late, early)} of {name!r} must fall inside [0, 1], late first")

    def _bounds(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        names = batch.layout.names
        unknown = set(self.windows) - set(names)
        if unknown:
            raise ValueError(f"windows name {sorted(unknown)}, the layout has {', '.join(names)}")
        table = torch.tensor([self.windows.get(n, (1.0, 0.0)) for n in names], dtype=torch.float64)
        late, early = table.to(batch.tokens.device)[batch.alphabet.segment].unbind(-1)
        return late, early

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        late, early = self._bounds(batch)
        return ((per_position(t, batch.tokens) - early) / (late - early)).clamp(0, 1)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        late, early = self._bounds(batch)
        time = per_position(t, batch.tokens)
        return torch.where((time >= early) & (time <= late), 1 / (late - early), 0.0)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` positions one after another, from the layout's `origin` on: block b of n moves during t in
    [1 - (b+1)/n, 1 - b/n].

    Semi-autoregressive sampling (LLaDA arXiv 2502.09992, BD3LM 2503.09573). Raises ValueError for a size below 1.
    """

    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"block size {self.size} must be at least 1")

    def _block(self, batch: TokenBatch) -> tuple[Tensor, int]:
        length, told = batch.layout.sequence, batch.layout.origin
        place = (batch.slot % length - told).clamp(min=0)
        return torch.div(place, self.size, rounding_mode="floor"), max(1, -(-(length - told) // self.size))

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        block, count = self._block(batch)
        return (per_position(t, batch.tokens) * count - (count - 1 - block)).clamp(0, 1)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        block, count = self._block(batch)
        inner = per_position(t, batch.tokens) * count - (count - 1 - block)
        return torch.where((inner >= 0) & (inner <= 1), float(count), 0.0)


@dataclass(frozen=True)
class Priority:
    """M2DM's priority (arXiv 2308.14480): gamma_i(t) = t - strength sin(pi t) f_i, salient positions (f = 1) stay longest.

    f in [-1, 1] is `batch.features[feature]` (batch, length), centred over the free positions and scaled. The mean over
    positions is t; every gamma_i is monotone iff strength <= 1/pi, else ValueError.
    """

    strength: float = 0.3
    feature: str = "priority"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 / math.pi:
            raise ValueError(
                f"strength {self.strength} must lie in [0, 1/pi]: beyond it a position would be masked again"
            )

    def _salience(self, batch: TokenBatch) -> Tensor:
        if self.feature not in batch.features:
            raise ValueError(f"no feature {self.feature!r} of shape (batch, length): batch has {list(batch.features)}")
        value, free = batch.features[self.feature].double(), batch.free
        mean = torch.where(free, value, 0.0).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
        centred = torch.where(free, value - mean, 0.0)
        widest = centred.abs().amax(1, keepdim=True)
        return torch.where(widest > 0, centred / widest, 0.0)

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        time = per_position(t, batch.tokens).expand(batch.tokens.shape)
        # sin(pi t) as sin(pi (1 - t)) where that is the smaller angle, so that gamma(1) is 1 exactly
        arc = torch.sin(math.pi * torch.minimum(time, 1 - time))
        return time - self.strength * arc * self._salience(batch)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        time = per_position(t, batch.tokens)
        return 1 - self.strength * math.pi * torch.cos(math.pi * time) * self._salience(batch)


@dataclass(eq=False)
class Importance:
    """Training times drawn where the loss is large: p(t) proportional to sqrt(E L_t^2), the loss divided by p(t).

    E is a running mean in each of `bins` bins of time; until every bin was met `visits` times, times are uniform. `least`
    is the share of p that stays uniform. For training alone: it learns from `observe`, which the trainer calls, and is
    stored with checkpoints (Nichol & Dhariwal arXiv 2102.09672 eq. 18; VQ-Diffusion arXiv 2111.14822).
    """

    bins: int = 100
    decay: float = 0.9
    visits: int = 10
    least: float = 0.001
    squares: Tensor = field(init=False, repr=False)
    counts: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checked("bins", self.bins, self.bins >= 1, "at least one")
        checked("decay", self.decay, 0 <= self.decay < 1, "a share in [0, 1)")
        checked("visits", self.visits, self.visits >= 1, "at least one per bin")
        checked("least", self.least, 0 < self.least <= 1, "a share in (0, 1]")
        self.squares, self.counts = (torch.zeros(self.bins, dtype=torch.float64) for _ in range(2))

    def density(self) -> Tensor:
        """p of the bins (bins,), mean 1."""
        root = self.squares.sqrt()
        p = root / root.mean().clamp(min=1e-300) * (1 - self.least) + self.least
        warm = (self.counts >= self.visits).all() & (root.mean() > 0)
        return torch.where(warm, p / p.mean(), 1.0)

    def _placed(self, batch: TokenBatch, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Times and 1 / p, (batch, length): the inverse of p's cumulative, linear inside a bin."""
        time = per_position(t, batch.tokens).expand(batch.tokens.shape)
        p = self.density().to(time.device)
        mass = p / self.bins
        ends = mass.cumsum(0)
        at = torch.searchsorted(ends, (time * ends[-1]).contiguous()).clamp(max=self.bins - 1)
        inside = ((time * ends[-1] - (ends - mass)[at]) / mass[at]).clamp(0, 1)
        return (at + inside) / self.bins, 1 / p[at]

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return self._placed(batch, t)[0]

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return self._placed(batch, t)[1]

    def observe(self, time: Tensor, loss: Tensor) -> None:
        """Losses (n,) of rows at these times of the run (n,), as weighted by the clock."""
        p = self.density().to(time.device)
        ends = p.cumsum(0) / p.sum()
        at = torch.searchsorted(ends, time.double().contiguous()).clamp(max=self.bins - 1)
        self.squares, self.counts = self.squares.to(time.device), self.counts.to(time.device)
        met = torch.zeros_like(self.counts).index_add_(0, at, torch.ones_like(time, dtype=torch.float64))
        total = torch.zeros_like(self.squares).index_add_(0, at, (loss.double() * p[at]).square())
        decay = torch.where(self.counts > 0, self.decay, 0.0)
        self.squares = torch.where(met > 0, decay * self.squares + (1 - decay) * total / met.clamp(min=1), self.squares)
        self.counts = self.counts + met

    def state(self) -> dict[str, list[float]]:
        """What it has learned, as JSON data."""
        return {"squares": self.squares.tolist(), "counts": self.counts.tolist()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Take up a `state`. Raises ValueError for one of another number of bins."""
        found = {name: torch.tensor(state[name], dtype=torch.float64) for name in ("squares", "counts")}
        for name, x in found.items():
            checked(name, tuple(x.shape), x.shape == (self.bins,), f"this clock has {self.bins} bins")
        self.squares, self.counts = found["squares"], found["counts"]


@dataclass(frozen=True)
class Plateau:
    """alpha rises to alpha_on, stands still there while the run's t is in (t_off, t_on], then rises to 1 (ReMDM-loop).

    alpha = alpha_on (1 - t) / (1 - t_on) before and 1 - (1 - alpha_on) t / t_off after (arXiv 2503.00307); the time is
    what the process's `schedule` has there. A kernel that may move while time stands still (`Remask` with `Held`) works
    on the plateau, others wait. Raises ValueError unless 1 > t_on > t_off > 0 and the schedule passes alpha_on.
    """

    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if not 1 > self.t_on > self.t_off > 0:
            raise ValueError(f"plateau from {self.t_on} to {self.t_off} must fall inside (0, 1), the later time first")
        low, high = float(self.schedule.alpha(1.0)), float(self.schedule.alpha(0.0))
        if not low < self.alpha_on < high:
            raise ValueError(f"alpha_on {self.alpha_on} must lie inside ({low}, {high}), where {self.schedule} passes")

    def _alpha(self, time: Tensor) -> Tensor:
        before = self.alpha_on * (1 - time) / (1 - self.t_on)
        after = 1 - (1 - self.alpha_on) * time / self.t_off
        return torch.where(time > self.t_on, before, torch.where(time > self.t_off, self.alpha_on, after))

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        time = per_position(t, batch.tokens)
        reached = self.schedule.t_of_alpha(self._alpha(time)).clamp(0, 1)
        # a schedule that starts below 1 or ends above 0 has no time for the ends
        reached = torch.where(time <= 0, 0.0, torch.where(time >= 1, 1.0, reached))
        return reached.expand(batch.tokens.shape)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        time = per_position(t, batch.tokens)
        slope = torch.where(time > self.t_on, self.alpha_on / (1 - self.t_on), (1 - self.alpha_on) / self.t_off)
        rate = -slope / self.schedule.dalpha(self(batch, t))
        return torch.where((time > self.t_off) & (time <= self.t_on), 0.0, rate)
