"""Measurements of sound (batch, samples) in [-1, 1]; times are in seconds, so a row's padding moves nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked
from tasks.inverse.base import Masked, Operator, constant


class _Sound(Operator):
    axes: ClassVar[tuple[str, ...]] = ("batch", "samples")


@dataclass(frozen=True)
class BandLimit(_Sound):
    """Frequencies from low to high Hz pass, 0 and 1000 by default; the others are 40 dB lower or more.

    Convolution with the band's ideal filter under a Hann window of `taps` samples, silence beyond the ends. A frequency
    passes wholly, or not at all, from about 1.6 sample_rate / taps Hz on either side of an edge.
    """

    low: float = 0.0
    high: float = 1000.0
    sample_rate: int = 8000
    taps: int = 129

    def __post_init__(self) -> None:
        _check_rate(self.sample_rate)
        checked("taps", self.taps, self.taps >= 3 and self.taps % 2 == 1, "an odd number of samples, at least 3")
        checked("high", self.high, 0 < self.high < self.sample_rate / 2, f"Hz, below {self.sample_rate / 2:g}")
        checked("low", self.low, 0 <= self.low < self.high, f"Hz, from 0 to below high = {self.high:g}")

    def apply(self, x: Tensor) -> Tensor:
        taps = _band(self.low / self.sample_rate, self.high / self.sample_rate, self.taps, x.device, x.dtype)
        return F.conv1d(x[:, None], taps[None, None], padding=self.taps // 2)[:, 0]


@dataclass(frozen=True)
class Clipping(_Sound):
    """clip(x, -level, level): overdriven. 0.1 is the root mean square level that `AudioTokenizer` expects."""

    level: float = 0.1
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked("level", self.level, 0 < self.level <= 1, "a share of full scale in (0, 1]")

    def apply(self, x: Tensor) -> Tensor:
        return x.clamp(-self.level, self.level)

    def pinv(self, y: Tensor) -> Tensor:
        """y."""
        self.check_shape(tuple(y.shape))
        return y


@dataclass(frozen=True)
class Gap(Masked, _Sound):
    """Samples from start to stop seconds become 0."""

    start: float = 0.1
    stop: float = 0.2
    sample_rate: int = 8000

    def __post_init__(self) -> None:
        _check_rate(self.sample_rate)
        checked("start, stop", (self.start, self.stop), 0 <= self.start < self.stop, "seconds, 0 <= start < stop")
        first, last = self._ends
        checked("start, stop", (self.start, self.stop), first < last, f"at least a sample at {self.sample_rate} Hz")

    @property
    def _ends(self) -> tuple[int, int]:
        return round(self.start * self.sample_rate), round(self.stop * self.sample_rate)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        first, last = self._ends
        seconds = shape[1] / self.sample_rate
        fits = last <= shape[1] and last - first < shape[1]
        checked("start, stop", (self.start, self.stop), fits, f"inside of {seconds:g} s of sound, and not all of it")

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Samples (samples,)."""
        when, (first, last) = torch.arange(shape[1], device=device), self._ends
        return (when < first) | (when >= last)


def _check_rate(rate: int) -> None:
    checked("sample_rate", rate, rate >= 1, "Hz, a whole number of at least 1")


@constant
def _band(low: float, high: float, taps: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(taps,), edges as shares of the sample rate."""
    n = torch.arange(taps).double() - taps // 2
    ideal = 2 * high * torch.sinc(2 * high * n) - 2 * low * torch.sinc(2 * low * n)
    filtered = ideal * torch.hann_window(taps + 2, periodic=False, dtype=torch.float64)[1:-1]
    centre = 2 * math.pi * (low + high) / 2 if low > 0 else 0.0
    return (filtered / (filtered * torch.cos(centre * n)).sum()).to(device, dtype)
