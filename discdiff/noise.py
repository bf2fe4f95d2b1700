"""Counter-based randomness: every draw is a pure function of (row seed, step, path, stream, logical position).

A row's noise therefore never depends on its neighbours, on padding, on the batch size, on the number of machines or on
the device, and nothing here touches a global generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Streams keep draws of one step apart; candidate j of a joint proposal reads TOKEN + j.
WAKE, ORDER, CORRUPT, PRIOR, TIME, MASK, LATENT, TOKEN = 0, 1, 2, 3, 4, 5, 6, 16

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed integer
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685
_STEP, _CHILD, _COPY, _EPOCH = 0x51, 0x52, 0x53, 0x54


def _folded(x: Tensor, bits: int) -> Tensor:
    """x xor its logical right shift, in one new tensor (torch's own shift of int64 is arithmetic)."""
    high = x >> bits
    high &= (1 << (64 - bits)) - 1
    high ^= x
    return high


def mix(x: Tensor) -> Tensor:
    """The 64-bit finaliser of SplitMix (Steele, Lea, Flood 2014), on int64 with wrap-around: a bijection."""
    x = _folded(x, 30)
    x *= _MIX1
    x = _folded(x, 27)
    x *= _MIX2
    return _folded(x, 31)


def _unit(bits: Tensor) -> Tensor:
    """The 52 highest bits as an odd multiple of 2^-53, float64 in (0, 1); what is in `bits` is lost."""
    bits >>= 11
    bits &= (1 << 53) - 1
    bits |= 1
    return bits.double().mul_(2.0**-53)


def _wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _fold(key: Tensor, tag: int, value: int | Tensor) -> Tensor:
    word = _wrap(value * _GOLDEN) if isinstance(value, int) else value * _GOLDEN
    return mix(mix(key ^ mix_int(tag)) + word)


@functools.lru_cache(maxsize=4096)
def mix_int(value: int) -> int:
    """`mix` of one Python integer."""
    return int(mix(torch.tensor(_wrap(value))))


def row_seeds(seed: int | Sequence[int] | Tensor | torch.Generator, batch: int) -> Tensor:
    """One int64 seed per row: an int is expanded by row number, a sequence is taken as it is, a generator is drawn from.

    `sample(..., seed=row_seeds(7, 4)[2:3])` repeats row 2 of a run with `seed=7` alone.
    """
    if isinstance(seed, torch.Generator):
        return torch.randint(-(2**63), 2**63 - 1, (batch,), generator=seed, device=seed.device).cpu()
    if isinstance(seed, bool) or not isinstance(seed, int | Sequence | Tensor):
        raise ValueError(f"seed is {seed!r}: give an int, one int per row, or a torch.Generator")
    if isinstance(seed, int):
        return mix(torch.arange(batch) * _GOLDEN + mix_int(seed))
    seeds = torch.as_tensor(seed, dtype=torch.int64).reshape(-1)
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds for a batch of {batch} rows: give one int, or one int per row")
    return seeds


@dataclass(frozen=True)
class Noise:
    """The randomness of one batch of rows at one place of a run.

    key (batch,) int64 identifies row and path; position (batch, length) int64 is the logical position, the index among
    the row's valid slots, so that the padding side and feeding only a block change nothing (nor does packing, for the
    first sample of a row).
    """

    key: Tensor
    position: Tensor

    @classmethod
    def seeded(cls, seed: int | Sequence[int] | Tensor | torch.Generator, valid: Tensor) -> Noise:
        """Noise for the rows of `valid` (batch, length) bool, from one int or one int per row."""
        key = mix(row_seeds(seed, valid.shape[0]).to(valid.device) + mix_int(1))
        return cls(key, valid.long().cumsum(1) - 1)

    @classmethod
    def training(cls, seed: int, epoch: Tensor, sample: Tensor, valid: Tensor) -> Noise:
        """Noise keyed by (seed, epoch, sample id): the same on any number of ranks, workers and resumptions."""
        key = _fold(_fold(torch.full_like(sample, mix_int(seed)), _EPOCH, epoch), _EPOCH, sample)
        return cls(key, valid.long().cumsum(1) - 1)

    def step(self, index: int | Tensor) -> Noise:
        """The noise of one step of the loop, or of one step per row (batch,)."""
        return replace(self, key=_fold(self.key, _STEP, index))

    def child(self, index: int) -> Noise:
        """The noise of one part of a step (a kernel of a chain, a sweep): no two parts share a uniform."""
        return replace(self, key=_fold(self.key, _CHILD, index))

    def rows(self, index: Tensor) -> Noise:
        """The noise of the rows `index`."""
        return Noise(self.key[index], self.position[index])

    def repeat(self, copies: int) -> Noise:
        """Each row `copies` times in a row; copy 0 keeps the row's own noise, the others have their own paths."""
        copy = torch.arange(copies, device=self.key.device).repeat(len(self.key))
        key = self.key.repeat_interleave(copies)
        return Noise(torch.where(copy == 0, key, _fold(key, _COPY, copy)), self.position.repeat_interleave(copies, 0))

    def uniform(self, stream: int, index: Tensor | None = None, channels: int | None = None) -> Tensor:
        """Float64 uniforms in the open interval (0, 1), odd multiples of 2^-53.

        (batch, length), or (n,) at the flat sites `index` (row * length + column); `channels` appends a last axis, and
        belongs on a stream of its own.
        """
        key, position = self._sites(index)
        key = _fold(key, stream, 0)
        if channels is not None:
            position = position[..., None] * channels + torch.arange(channels, device=position.device)
            key = key[..., None]
        return _unit(mix(mix(key + position * _GOLDEN) ^ key))

    def row_uniform(self, stream: int) -> Tensor:
        """One float64 uniform per row, (batch,)."""
        key = _fold(self.key, stream, 1)
        return _unit(mix(mix(key) ^ key))

    def normal(self, stream: int, channels: int, index: Tensor | None = None) -> Tensor:
        """Float64 standard normals (..., channels) by the inverse distribution function."""
        return math.sqrt(2.0) * torch.erfinv(2.0 * self.uniform(stream, index, channels) - 1.0)

    def _sites(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        if index is None:
            return self.key[:, None], self.position
        row = torch.div(index, self.position.shape[1], rounding_mode="floor")
        return self.key[row], self.position.reshape(-1)[index]
