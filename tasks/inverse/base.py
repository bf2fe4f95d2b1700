"""Measurements y = A(x) + noise: what all operators share, models of noise, and the checks before any work."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.noise import LATENT, Noise

SLACK = 1e-3  # beyond the range, of rounding


class Operator(ABC):
    """A measurement A, a frozen dataclass: one differentiable function of x, the same at every call, row by row.

    What is random in it (a mask, a kernel) is a function of its `seed` and of the size of x alone, so it is the same for
    every row, wherever the row stands in a batch. Device and dtype follow x. Raises ValueError for x of another shape.
    linear: A(ax + by) = a A(x) + b A(y); axes: of x; limit: largest magnitude of x, inf for any finite x.
    """

    linear: ClassVar[bool] = True
    axes: ClassVar[tuple[str, ...]] = ("batch", "channels", "height", "width")
    limit: ClassVar[float] = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        self.check_shape(tuple(x.shape))
        return self.apply(x)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for shapes of x that A does not take."""
        name, axes = type(self).__name__, ", ".join(self.axes)
        checked(
            f"{name}: shape of x", shape, len(shape) == len(self.axes) and 0 not in shape, f"give ({axes}), not empty"
        )

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A(x) of an x whose shape was checked."""

    def pinv(self, y: Tensor) -> Tensor:
        """An x with A(x) = y for every y that A can give; the one of least norm where A is linear. Raises ValueError where
        none is natural.
        """
        raise ValueError(f"{type(self).__name__} has no pseudo inverse: start from elsewhere")


class Masked(Operator):
    """Keeps some entries and makes the others 0, so that y has x's shape and A is its own pseudo inverse."""

    @abstractmethod
    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Entries that are measured, bool, broadcast against one row of x of this shape (batch, ...)."""

    def apply(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.kept(tuple(x.shape), x.device), 0)

    def pinv(self, y: Tensor) -> Tensor:
        """y, with 0 where nothing was measured."""
        return self(y)


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A tensor that depends on hashable arguments alone (its device among them), made once.

    Never as a tensor of inference mode, which a later gradient could not pass.
    """

    @functools.lru_cache(maxsize=64)
    @functools.wraps(make)
    def kept(*arguments: Any) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return make(*arguments)

    return kept


def uniforms(seed: int, n: int) -> Tensor:
    """n float64 uniforms of a seed, the same on every device."""
    return Noise.seeded(seed, torch.ones(1, n, dtype=torch.bool)).uniform(LATENT)[0]


@dataclass(frozen=True)
class Gaussian:
    """y + sigma z, z standard normal; sigma in units of y, 0.05 as in G2D2 (arXiv 2410.14710).

    seed: an int, expanded by row number, or one int per row: a row's noise depends on its seed and on nothing else.
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        checked("sigma", self.sigma, 0 <= self.sigma < math.inf, "a standard deviation of 0 or more")

    def __call__(self, y: Tensor, seed: int | Sequence[int] | Tensor = 0) -> Tensor:
        z = _noise(y, seed).normal(LATENT, 1).view(y.shape)
        return y + self.sigma * z.to(y.dtype)


@dataclass(frozen=True)
class Poisson:
    """2 n / photons - 1 of counts n ~ Poisson(photons (y + 1) / 2): shot noise of pictures in [-1, 1], below -1 as black.

    photons: expected at white. seed: as for `Gaussian`; drawn by the inverse distribution function. Raises ValueError for
    y far below -1.
    """

    photons: float = 100.0

    def __post_init__(self) -> None:
        checked("photons", self.photons, 0 < self.photons <= 1e6, "counts at white, above 0 and at most 1e6")

    @torch.no_grad()
    def __call__(self, y: Tensor, seed: int | Sequence[int] | Tensor = 0) -> Tensor:
        least = float(y.min())
        checked("least y", least, least >= -1.5, "shot noise is of pictures in [-1, 1], take Gaussian noise")
        mean = (self.photons * (y.double() + 1) / 2).clamp(min=0)
        u = _noise(y, seed).uniform(LATENT).view(y.shape)
        low, high = torch.full_like(mean, -1), (mean + 12 * mean.sqrt() + 40).ceil()  # P(n <= low) < u <= P(n <= high)
        for _ in range(math.ceil(math.log2(float(high.max()) + 1))):
            middle = ((low + high) / 2).floor()
            reached = torch.special.gammaincc(middle + 1, mean) >= u  # P(n <= middle)
            reached &= middle > low
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        return (2 * high / self.photons - 1).to(y.dtype)


NOISES = {"gaussian": Gaussian, "poisson": Poisson}


def _noise(y: Tensor, seed: int | Sequence[int] | Tensor) -> Noise:
    return Noise.seeded(seed, torch.ones(len(y), y[0].numel(), dtype=torch.bool, device=y.device))


def check(operator: Operator, x: Tensor, y: Tensor | None = None) -> None:
    """Raise ValueError unless A takes x, its result is finite, and y, where given, is a measurement of len(x) such rows.

    Reads values from the device: once before the work. Where x is not known yet, zeros of its shape say whether y fits.
    """
    name, shape = type(operator).__name__, tuple(x.shape)
    operator.check_shape(shape)
    _check_values(f"{name}: x", x, operator.limit)
    with torch.no_grad():
        made = operator(x[:1])
    _check_values(f"{name}: its result", made, math.inf)
    if y is not None:
        wanted = (len(x), *made.shape[1:])
        checked(f"{name}: shape of y", tuple(y.shape), tuple(y.shape) == wanted, f"it makes {wanted} of {shape}")
        _check_values(f"{name}: y", y, math.inf)


def _check_values(name: str, x: Tensor, limit: float) -> None:
    checked(f"{name}, dtype", x.dtype, x.is_floating_point(), "give floats")
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    checked(f"{name}, range", (low, high), math.isfinite(low) and math.isfinite(high), "give finite numbers")
    inside = max(-low, high) <= limit + SLACK
    checked(f"{name}, range", (low, high), inside, f"give values in [-{limit:g}, {limit:g}]")


@torch.no_grad()
def measure(
    operator: Operator,
    x: Tensor,
    noise: Gaussian | Poisson | None = None,
    seed: int | Sequence[int] | Tensor = 0,
) -> Tensor:
    """y = A(x) + noise of rows x; entries that a `Masked` operator leaves out stay 0. Raises ValueError as `check` does."""
    check(operator, x)
    y = operator(x)
    if noise is None:
        return y
    y = noise(y, seed)
    return operator(y) if isinstance(operator, Masked) else y
