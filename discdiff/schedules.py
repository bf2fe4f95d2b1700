"""Schedules: alpha(t), the chance that a token is still clean, with its derivative and inverse, in float64.

Names collide between public repositories (two different curves are called "cosine"), so every name here says whose it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _time(t: float | Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


@dataclass(frozen=True)
class Schedule:
    """alpha: [0, 1] -> [0, 1], non-increasing, alpha(0) near 1; checked on a grid at construction.

    A schedule of your own overrides `alpha`, `dalpha` and `t_of_alpha`. Raises ValueError where alpha leaves [0, 1],
    grows, or does not match its own inverse.
    """

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        a = self.alpha(t)
        if not bool(torch.isfinite(a).all()) or bool((a < 0).any()) or bool((a > 1).any()):
            raise ValueError(
                f"{self}: alpha leaves [0, 1] (min {a.min():.4g}, max {a.max():.4g}); change the parameters"
            )
        if bool((a.diff() > 0).any()) or float(a[0]) <= float(a[-1]):
            raise ValueError(f"{self}: alpha must fall from t=0 to t=1, it goes from {a[0]:.4g} to {a[-1]:.4g}")
        if not bool((self.alpha(self.t_of_alpha(a)) - a).abs().max() < 1e-6):
            raise ValueError(f"{self}: t_of_alpha is not the inverse of alpha; correct one of the two")

    def alpha(self, t: float | Tensor) -> Tensor:
        """Chance that a token is still clean at time t; any shape, float64."""
        raise TypeError(f"{type(self).__name__} defines no alpha")

    def dalpha(self, t: float | Tensor) -> Tensor:
        """d alpha / dt."""
        raise TypeError(f"{type(self).__name__} defines no dalpha")

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        """The time at which alpha(t) = a."""
        raise TypeError(f"{type(self).__name__} defines no t_of_alpha")


@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = start + (end - start) t. "Log-linear" of MDLM, SEDD and RADD is Linear(end=1e-3)."""

    start: float = 1.0
    end: float = 0.0

    def alpha(self, t: float | Tensor) -> Tensor:
        return self.start + (self.end - self.start) * _time(t)

    def dalpha(self, t: float | Tensor) -> Tensor:
        return torch.full_like(_time(t), self.end - self.start)

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return (self.start - _time(a)) / (self.start - self.end)


@dataclass(frozen=True)
class CosineMD4(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t)), the cosine of MD4 (arXiv 2406.04329); MaskGIT's masked share cos(pi r / 2), r = 1-t."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * (1 - _time(t))) ** 2  # 1 - cos without cancellation near t = 1

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - _time(t)))

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return 1 - 4 / math.pi * torch.asin((_time(a) / 2).sqrt())


@dataclass(frozen=True)
class CosineMDLM(Schedule):
    """alpha = eps + (1 - eps) cos(pi t / 2), the "cosine" of the MDLM code: not MD4's curve."""

    eps: float = 1e-3

    def alpha(self, t: float | Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * _time(t)).clamp(min=0)

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * _time(t))

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(((_time(a) - self.eps) / (1 - self.eps)).clamp(-1, 1))


@dataclass(frozen=True)
class CosineSquaredMDLM(Schedule):
    """alpha = eps + (1 - eps) cos^2(pi t / 2), "cosine squared" of the MDLM code."""

    eps: float = 1e-3

    def alpha(self, t: float | Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * _time(t)) ** 2

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi * _time(t))

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(((_time(a) - self.eps) / (1 - self.eps)).clamp(0, 1).sqrt())


@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power (MD4, arXiv 2406.04329)."""

    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"Polynomial: power is {self.power}, it must be positive")
        super().__post_init__()

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - _time(t) ** self.power

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -self.power * _time(t) ** (self.power - 1)

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return (1 - _time(a)) ** (1 / self.power)


@dataclass(frozen=True)
class Geometric(Schedule):
    """alpha = exp(-low^(1-t) high^t) (SEDD, arXiv 2310.16834); alpha(1) = exp(-high) is not 0, so the prior term counts."""

    low: float = 1e-3
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"Geometric: needs 0 < low < high, got low={self.low}, high={self.high}")
        super().__post_init__()

    def _sigma(self, t: float | Tensor) -> Tensor:
        return torch.exp(math.log(self.low) + _time(t) * math.log(self.high / self.low))

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(-self._sigma(t))

    def dalpha(self, t: float | Tensor) -> Tensor:
        sigma = self._sigma(t)
        return -torch.exp(-sigma) * sigma * math.log(self.high / self.low)

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return (torch.log(-torch.log(_time(a))) - math.log(self.low)) / math.log(self.high / self.low)


@dataclass(frozen=True)
class LinearSigma(Schedule):
    """alpha = exp(-(low + t (high - low))): the total noise grows linearly (MDLM code)."""

    low: float = 0.0
    high: float = 10.0

    def alpha(self, t: float | Tensor) -> Tensor:
        return torch.exp(-(self.low + _time(t) * (self.high - self.low)))

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -(self.high - self.low) * self.alpha(t)

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return (-torch.log(_time(a)) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Square(Schedule):
    """alpha = (1 - t)^2; MaskGIT's "square": a share 1 - r^2 is masked after the share r = 1 - t of a run (2202.04200)."""

    def alpha(self, t: float | Tensor) -> Tensor:
        return (1 - _time(t)) ** 2

    def dalpha(self, t: float | Tensor) -> Tensor:
        return -2 * (1 - _time(t))

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return 1 - _time(a).sqrt()


@dataclass(frozen=True)
class Arccos(Schedule):
    """alpha = 2/pi arcsin(1 - t): a share 2/pi arccos(r) is masked after the share r of a run (Halton-MaskGIT, 2503.17076).

    Its slope is infinite at t = 0.
    """

    def alpha(self, t: float | Tensor) -> Tensor:
        return 2 / math.pi * torch.asin(1 - _time(t))

    def dalpha(self, t: float | Tensor) -> Tensor:
        time = _time(t)
        return -2 / math.pi / (time * (2 - time)).sqrt()

    def t_of_alpha(self, a: float | Tensor) -> Tensor:
        return 1 - torch.sin(math.pi / 2 * _time(a))


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "cos_md4": CosineMD4,
    "cos_mdlm": CosineMDLM,
    "cos2_mdlm": CosineSquaredMDLM,
    "poly": Polynomial,
    "geometric": Geometric,
    "linear_sigma": LinearSigma,
    "square": Square,
    "arccos": Arccos,
}
