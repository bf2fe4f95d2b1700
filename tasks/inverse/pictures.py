"""Measurements of pictures (batch, channels, height, width) in [-1, 1]; -1 is black.

Defaults are for pictures of about 32 x 32; the literature's, for 256 x 256, are named where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked
from tasks.inverse.base import Masked, Operator, constant, uniforms


@dataclass(frozen=True)
class SuperResolution(Operator):
    """1 / factor of the height and width, by bicubic interpolation widened by `factor` against aliases.

    Weights k((j + 1/2) / factor - (i + 1/2)) of pixel j for i, normalised, k Keys' kernel (1981) with a = -1/2, as Pillow
    and torch have it. Raises ValueError for sides that are no multiples of factor. 4 is the literature's too.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        checked("factor", self.factor, self.factor >= 1, "a whole number of at least 1")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        fits = not any(n % self.factor for n in shape[2:])
        checked("height and width", shape[2:], fits, f"multiples of factor = {self.factor}")

    def apply(self, x: Tensor) -> Tensor:
        return _both_axes(x, lambda n: _shrinking(n, self.factor, x.device, x.dtype))

    def pinv(self, y: Tensor) -> Tensor:
        """The larger picture of least norm that gives y."""
        super().check_shape(tuple(y.shape))
        return _both_axes(y, lambda n: _growing(n, self.factor, y.device, y.dtype))


@dataclass(frozen=True)
class GaussianBlur(Operator):
    """Convolution with a normalised Gaussian of `size` x `size` pixels and deviation `sigma` pixels.

    The picture is mirrored at its outermost pixels, as often as a kernel wider than the picture needs. The literature's, for
    256 x 256: size 61, sigma 3 (DPS, arXiv 2209.14687).
    """

    size: int = 9
    sigma: float = 1.5

    def __post_init__(self) -> None:
        _check_size(self.size)
        checked("sigma", self.sigma, 0 < self.sigma < math.inf, "pixels, above 0")

    def apply(self, x: Tensor) -> Tensor:
        return _both_axes(x, lambda n: _blurring(n, self.size, self.sigma, x.device, x.dtype))


@dataclass(frozen=True)
class MotionBlur(Operator):
    """Convolution with the track of a shaking camera, as wide as `size` pixels; padded as `GaussianBlur` pads.

    The track has constant speed and a heading of slow sines, from a straight line at intensity 0 to one that turns back on
    itself at 1; its centre of mass is the kernel's. A kernel is a function of (size, intensity, seed). Our construction,
    after Boracchi and Foi, Modeling the performance of image restoration from motion blur (2012). The literature's, for
    256 x 256: size 61, intensity 0.5 (DPS, arXiv 2209.14687).
    """

    size: int = 9
    intensity: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_size(self.size)
        checked("intensity", self.intensity, 0 <= self.intensity <= 1, "in [0, 1]")

    def kernel(self) -> Tensor:
        """Weights (size, size) on the CPU, float64, not negative, sum 1."""
        return _track(self.size, self.intensity, self.seed, torch.device("cpu"), torch.float64)

    def apply(self, x: Tensor) -> Tensor:
        return convolved(x, _track(self.size, self.intensity, self.seed, x.device, x.dtype)[None])


@dataclass(frozen=True)
class RandomInpainting(Masked):
    """round(share * height * width) random pixels become 0 in all channels, the same ones in every picture of a size.

    For other pixels give another seed. 0.7 is the literature's too.
    """

    share: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        checked("share", self.share, 0 <= self.share < 1, "the share of pixels to drop, in [0, 1)")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        pixels = shape[2] * shape[3]
        checked("share", self.share, round(self.share * pixels) < pixels, f"less, it drops all {pixels} pixels")

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Pixels (height, width)."""
        return _scattered(shape[2], shape[3], self.share, self.seed, device)


@dataclass(frozen=True)
class BoxInpainting(Masked):
    """Pixels that a box touches become 0; box: left, top, right, bottom as shares of width and height, as --hole has it."""

    box: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.75)

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", tuple(self.box))
        remedy = "left < right and top < bottom, shares in [0, 1]"
        checked("box", self.box, len(self.box) == 4, remedy)
        left, top, right, bottom = self.box
        checked("box", self.box, 0 <= left < right <= 1 and 0 <= top < bottom <= 1, remedy)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        left, top, right, bottom = self.box
        whole = left * shape[3] < 1 and top * shape[2] < 1 and right * shape[3] > shape[3] - 1
        whole = whole and bottom * shape[2] > shape[2] - 1
        checked("box", self.box, not whole, f"smaller, it touches all of {shape[2]} x {shape[3]} pixels")

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Pixels (height, width)."""
        return _around(shape[2], shape[3], self.box, device)


@dataclass(frozen=True)
class HighDynamicRange(Operator):
    """clip(factor x, -1, 1): dark and light parts are lost. 2 is the literature's too."""

    factor: float = 2.0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked("factor", self.factor, 1 <= self.factor < math.inf, "at least 1")

    def apply(self, x: Tensor) -> Tensor:
        return (self.factor * x).clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        """y / factor."""
        self.check_shape(tuple(y.shape))
        return y / self.factor


def convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """x (batch, channels, height, width) convolved with kernels (1 or batch, size, size), size odd, mirrored at its edge
    pixels as often as it takes.
    """
    half = kernels.shape[-1] // 2
    wide = _both_axes(x, lambda n: _mirroring(n, half, x.device, x.dtype))
    turned = kernels.flip(1, 2)  # conv2d correlates
    if len(kernels) == 1:
        return F.conv2d(wide.flatten(0, 1)[:, None], turned[:, None]).view(x.shape)
    each = turned.repeat_interleave(x.shape[1], 0)[:, None]
    return F.conv2d(wide.flatten(0, 1)[None], each, groups=len(each)).view(x.shape)


def _check_size(size: int) -> None:
    checked("size", size, size >= 1 and size % 2 == 1, "an odd number of pixels")


def _both_axes(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Height and width of x through the matrix (m, n) of their length n."""
    return matrix(x.shape[2]) @ x @ matrix(x.shape[3]).mT


@constant
def _shrinking(n: int, factor: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n / factor, n)."""
    centres = (torch.arange(n // factor).double() + 0.5) * factor
    t = ((torch.arange(n) + 0.5) - centres[:, None]).abs() / factor
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


@constant
def _growing(n: int, factor: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n factor, n)."""
    return torch.linalg.pinv(_shrinking(n * factor, factor, torch.device("cpu"), torch.float64)).to(device, dtype)


@constant
def _mirroring(n: int, half: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n + 2 half, n): a product, whose gradient adds in one order on every device."""
    period = max(1, 2 * (n - 1))
    at = torch.arange(-half, n + half) % period
    return F.one_hot(torch.minimum(at, period - at), n).to(device, dtype)


@constant
def _blurring(n: int, size: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(n, n)."""
    weights = torch.exp(-0.5 * ((torch.arange(size) - size // 2).double() / sigma) ** 2)
    wide = _mirroring(n, size // 2, torch.device("cpu"), torch.float64)
    return (wide.unfold(0, size, 1) @ (weights / weights.sum())).to(device, dtype)


@constant
def _track(size: int, intensity: float, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, size)."""
    when, waves = torch.linspace(0, 1, 512, dtype=torch.float64)[:, None], torch.arange(1, 5)
    start, *drawn = uniforms(seed, 9).split([1, 4, 4])
    turns = ((2 * drawn[0] - 1) / waves * torch.sin(math.pi * (waves * when + 2 * drawn[1]))).sum(1)
    heading = math.pi * (2 * start + intensity * turns)
    path = torch.stack([heading.sin(), heading.cos()]).cumsum(1)
    path = path - path.mean(1, keepdim=True)
    path = (size // 2) * path / path.abs().max()
    near = (1 - (path[..., None] - torch.arange(-(size // 2), size // 2 + 1)).abs()).clamp(min=0)
    kernel = near[0].mT @ near[1]  # a point is shared by the four pixels around it
    return (kernel / kernel.sum()).to(device, dtype)


@constant
def _scattered(height: int, width: int, share: float, seed: int, device: torch.device) -> Tensor:
    """(height, width)."""
    pixels = height * width
    kept = torch.ones(pixels, dtype=torch.bool)
    kept[uniforms(seed, pixels).argsort()[: round(share * pixels)]] = False
    return kept.view(height, width).to(device)


@constant
def _around(height: int, width: int, box: tuple[float, float, float, float], device: torch.device) -> Tensor:
    """(height, width)."""
    left, top, right, bottom = box
    rows, columns = torch.arange(height), torch.arange(width)
    down = (rows + 1 > top * height) & (rows < bottom * height)
    across = (columns + 1 > left * width) & (columns < right * width)
    return ~(down[:, None] & across).to(device)
