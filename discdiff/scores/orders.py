"""Orders that need no network: random, reading order, and a low-discrepancy order over each segment's own grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from discdiff.denoisers import Drawn
from discdiff.layout import Layout
from discdiff.noise import ORDER, Noise
from discdiff.scores.base import Score, spread
from discdiff.types import State, Step

BASES = (2, 3, 5)


@dataclass(frozen=True)
class Random(Score):
    """A uniformly random order: exact one position at a time."""

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        return spread(state, index, noise.uniform(ORDER, index))


@dataclass(frozen=True)
class LeftToRight(Score):
    """Reading order of the sequence: exact one position at a time."""

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        return spread(state, index, -(index % state.tokens.shape[1]))


@dataclass(frozen=True)
class Lattice(Score):
    """A fixed order in which positions of one step lie far apart, so that they depend little on each other (Halton-MaskGIT,
    arXiv 2503.17076): the Halton points of bases 2, 3, 5 on the grid (t, h, w), (h, w) or (t) of each segment.

    Levels of a slot come coarse first; segments of one pool advance at the same pace. Exact one position at a time.
    """

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        place = lattice_places(state.batch.layout, str(index.device))
        return spread(state, index, -place[state.batch.slot.reshape(-1)[index]])


@functools.lru_cache(maxsize=32)
def lattice_places(layout: Layout, device: str = "cpu") -> Tensor:
    """When each position of a layout is due, as a share of its segment, `(length,)` float64 in [0, 1)."""
    parts = []
    for segment in layout.segments:
        depth, rank = layout.depth(segment), halton_order(segment.shape).argsort()
        level = torch.arange(depth).repeat(segment.slots)
        parts.append((level * segment.slots + rank.repeat_interleave(depth)).double() / (segment.slots * depth))
    return torch.cat(parts).repeat(layout.length // layout.sequence).to(device)


@functools.lru_cache(maxsize=64)
def halton_order(shape: tuple[int, ...]) -> Tensor:
    """All cells of a grid of 1 to 3 axes (flat numbers, last axis fastest) in the order in which Halton points reach them."""
    total, count = prod(shape), 4 * prod(shape)
    while True:
        cell = torch.zeros(count, dtype=torch.int64)
        for size, base in zip(shape, BASES):
            numerator, denominator = radical_inverse(count, base)
            cell = cell * size + size * numerator // denominator  # whole numbers: no rounding at the edge of a cell
        first = torch.full((total,), count).scatter_reduce(0, cell, torch.arange(count), "amin")
        if int(first.max()) < count:
            return first.argsort()
        count *= 2


def radical_inverse(count: int, base: int) -> tuple[Tensor, int]:
    """The digits of 1..count mirrored at the point, as numerators (count,) int64 over one denominator (van der Corput)."""
    rest = torch.arange(1, count + 1)
    numerator, denominator = torch.zeros_like(rest), 1
    while denominator <= count:
        numerator, rest, denominator = numerator * base + rest % base, rest // base, denominator * base
    return numerator, denominator
