"""Maskers: which positions a training sequence hides, and how much each hidden position counts.

A masker is `(batch, noise, t) -> Masked`; t (batch,) is the row's stratified time in (0, 1). `Bernoulli` is the ELBO;
the others train the same conditionals under another law of visible sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, MASK, Noise
from discdiff.schedules import CosineMD4, Linear, Schedule
from discdiff.types import per_position

_FULL = 0x46  # a path of its own, apart from the inner masker's draws


class Masked(NamedTuple):
    """hidden (batch, length) bool, weight (batch, length) float64 of the nats at hidden positions."""

    hidden: Tensor
    weight: Tensor


class Masker(Protocol):
    """Contract of a masker: hides free positions only."""

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked: ...


def lowest(order: Tensor, count: Tensor, free: Tensor) -> Tensor:
    """The `count` (batch,) free positions of lowest `order` in each row, bool (batch, length)."""
    place = torch.where(free, order, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return free & (place < count[:, None])


@dataclass(frozen=True)
class Bernoulli:
    """Each free position hidden with 1 - alpha(t), weight -alpha'/(1 - alpha): the NELBO of MDLM (arXiv 2406.07524)."""

    schedule: Schedule = field(default_factory=Linear)

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        time = per_position(t, batch.tokens)
        clean = self.schedule.alpha(time)
        hidden = batch.free & (noise.uniform(CORRUPT) >= clean)
        return Masked(hidden, (-self.schedule.dalpha(time) / (1 - clean)).expand(hidden.shape))


@dataclass(frozen=True)
class FixedCount:
    """MaskGIT (arXiv 2202.04200): ceil((1 - alpha(t)) n) of n free positions, uniformly; weight 1, or n / count (`elbo`).

    `elbo` makes it the any-order autoregressive bound (RADD arXiv 2406.03736), which wants every count equally often:
    raises ValueError unless the schedule is then `Linear()`.
    """

    schedule: Schedule = field(default_factory=CosineMD4)
    elbo: bool = False

    def __post_init__(self) -> None:
        if self.elbo and self.schedule != Linear():
            raise ValueError(f"elbo with {self.schedule}: n / count weighs equally likely counts, use Linear()")

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        free = batch.free
        total = free.sum(1)
        share = 1 - self.schedule.alpha(t.double())
        count = torch.minimum((share * total - 1e-9).ceil().long().clamp(min=1), total)
        hidden = lowest(noise.uniform(MASK), count, free)
        weight = (total.double() / count.clamp(min=1))[:, None] if self.elbo else torch.ones_like(share)[:, None]
        return Masked(hidden, weight.expand(hidden.shape))


@dataclass(frozen=True)
class DepthSuffix:
    """ResGen (arXiv 2412.10208): n = ceil((1 - alpha(t)) L D) units spread over the slots by the multivariate
    hypergeometric law; of a slot's k_i units the k_i deepest levels are hidden. Weight 1.
    """

    schedule: Schedule = field(default_factory=CosineMD4)

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        free = batch.free
        total = free.sum(1)
        count = torch.minimum(((1 - self.schedule.alpha(t.double())) * total - 1e-9).ceil().long(), total)
        chosen = lowest(noise.uniform(MASK), count, free)  # a uniform subset of units has hypergeometric slot counts
        level = batch.layout.tables(free.device).depth[batch.slot]
        slot = (level == 0).long().cumsum(1) - 1
        hit, deep = (
            torch.zeros_like(slot).scatter_add(1, slot, x.long()).gather(1, slot)
            for x in (chosen, torch.ones_like(free))
        )
        hidden = free & (level >= deep - hit)
        return Masked(hidden, torch.ones(hidden.shape, dtype=torch.float64, device=free.device))


@dataclass(frozen=True)
class PerBlock:
    """Block diffusion (arXiv 2503.09573): each block of `size` positions has its own time, stratified over the row."""

    size: int = 16
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"block size {self.size} must be at least 1")

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        block = torch.div(batch.slot % batch.layout.sequence, self.size, rounding_mode="floor").double()
        time = ((t[:, None] + block * 0.6180339887498949) % 1.0).clamp(min=1e-9)
        clean = self.schedule.alpha(time)
        hidden = batch.free & (noise.uniform(CORRUPT) >= clean)
        return Masked(hidden, (-self.schedule.dalpha(time) / (1 - clean)).expand(hidden.shape))


@dataclass(frozen=True)
class Span:
    """One contiguous span of a share 1 - alpha(t) of the free positions, for infilling; weight 1."""

    schedule: Schedule = field(default_factory=Linear)

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        free = batch.free
        total = free.sum(1)
        count = torch.minimum(((1 - self.schedule.alpha(t.double())) * total - 1e-9).ceil().long().clamp(min=1), total)
        start = (noise.row_uniform(MASK) * (total - count + 1)).long()
        place = free.long().cumsum(1) - 1
        hidden = free & (place >= start[:, None]) & (place < (start + count)[:, None])
        return Masked(hidden, torch.ones(hidden.shape, dtype=torch.float64, device=free.device))


@dataclass(frozen=True)
class Independent:
    """Every noised segment hides its own uniformly drawn count of n positions, weight n / count: all conditionals between
    segments are learned, each by its exact any-order bound (UniDiffuser arXiv 2303.06555, for masks).

    With chance `conditional` only one segment, drawn evenly, is hidden and the others are given whole. The weight is
    (n / count)^power: 1 is the bound, 0 counts every hidden position alike (MaskGIT), between them lies less variance.
    balanced: segments count alike, however many positions they have, so that a caption is not lost beside a sound; not a
    bound then either.
    """

    conditional: float = 0.0
    power: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.conditional <= 1:
            raise ValueError(f"conditional {self.conditional} is a chance: it must lie in [0, 1]")
        if not 0 <= self.power <= 1:
            raise ValueError(f"power {self.power} must lie between 0 (every position alike) and 1 (the bound)")

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        layout = batch.layout
        segment = layout.tables(batch.tokens.device).segment[batch.slot]
        noised = [i for i, s in enumerate(layout.segments) if s.noised]
        alone = noise.row_uniform(MASK) < self.conditional
        chosen = (noise.child(0).row_uniform(MASK) * len(noised)).long()
        order, hidden = noise.uniform(MASK), torch.zeros_like(batch.free)
        weight = torch.ones(hidden.shape, dtype=torch.float64, device=hidden.device)
        for place, number in enumerate(noised):
            free = batch.free & (segment == number)
            total = free.sum(1)
            # the shared stratified time, turned by an offset of the segment's own
            share = t.double() if place == 0 else (t.double() + noise.child(1 + place).row_uniform(MASK)) % 1.0
            count = torch.minimum((share * total).floor().long() + 1, total)
            here = lowest(order, count, free) & ~(alone & (chosen != place))[:, None]
            hidden |= here
            each = (total.double() / count.clamp(min=1)) ** self.power
            if self.balanced:
                each = each * batch.free.sum(1) / (len(noised) * total.clamp(min=1))
            weight = torch.where(here, each[:, None], weight)
        return Masked(hidden, weight)


@dataclass(frozen=True)
class FullyMasked:
    """The masker with a `share` of the rows wholly hidden, the state in which a run starts; in them every position of the named
    segments, () for all, is hidden with weight `weight`, the rest is the masker's.

    Of n positions alone `Bernoulli` and `PerBlock` hide all in 1 / (n + 1) of the rows, counts that are uniform (`Linear()`,
    `Independent`, `Span`) in 1 / n, MaskGIT's cosine (`FixedCount`) in (2 / pi) arccos(1 - 1 / n): of 32 in 3.0, 3.1 and 16 %.
    weight 1 is that of MaskGIT, and of the any-order bound where n of n are hidden. With a share above 0 no bound. An
    objective tells the network time 1 there. Raises ValueError for a share outside [0, 1], a negative weight and one such
    masker in another.
    """

    inner: Masker = field(default_factory=FixedCount)
    share: float = 0.1
    segments: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        checked("share", self.share, 0 <= self.share <= 1, "a share of the rows in [0, 1]")
        checked("weight", self.weight, 0 <= self.weight < float("inf"), "0 or more, and finite")
        checked("inner", self.inner, not isinstance(self.inner, FullyMasked), "give one share, around another masker")

    def whole(self, batch: TokenBatch, noise: Noise) -> Tensor:
        """Positions hidden because their row was chosen, bool (batch, length)."""
        chosen = noise.child(_FULL).row_uniform(MASK) < self.share
        return batch.free & batch.within(self.segments) & chosen[:, None]

    def __call__(self, batch: TokenBatch, noise: Noise, t: Tensor) -> Masked:
        masked, whole = self.inner(batch, noise, t), self.whole(batch, noise)
        return Masked(masked.hidden | whole, torch.where(whole, self.weight, masked.weight))
