"""The four closed-form families: absorbing, uniform, mask-or-replace (type A) and interpolating mask+uniform (type B)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.processes.base import Marginal, Process, as_time, ratio
from discdiff.schedules import Linear, Schedule


@dataclass(frozen=True)
class Absorbing(Process):
    """Masked diffusion: a token survives with alpha(t), else it is the mask (MDLM arXiv 2406.07524, MD4 2406.04329)."""

    schedule: Schedule = field(default_factory=Linear)
    mask_absorbing: ClassVar[bool] = True

    def marginal(self, t: Tensor, size: Any) -> Marginal:
        a = self.schedule.alpha(t)
        return Marginal(a, torch.zeros_like(a), 1 - a)

    def dmarginal(self, t: Tensor, size: Any) -> Marginal:
        da = self.schedule.dalpha(t)
        return Marginal(da, torch.zeros_like(da), -da)

    def transition(self, s: Tensor, t: Tensor, size: Any) -> Marginal:
        keep = ratio(self.schedule.alpha(t), self.schedule.alpha(s))
        return Marginal(keep, torch.zeros_like(keep), 1 - keep)

    def weight(self, t: float | Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): the ELBO weight of a masked position (MDLM eq. 10)."""
        time = torch.as_tensor(t, dtype=torch.float64)
        return -self.schedule.dalpha(time) / (1 - self.schedule.alpha(time))

    def loss(self, log_x0: Tensor, x0: Tensor, x: Tensor, t: float | Tensor, kind: str = "cavity") -> Tensor:
        """weight(t) * cross-entropy at masked positions, 0 elsewhere; own and cavity coincide at a mask."""
        nats = -log_x0.gather(-1, x0[..., None])[..., 0].double()
        return torch.where(x == log_x0.shape[-1], self.weight(as_time(t, x)) * nats, 0.0)


@dataclass(frozen=True)
class Uniform(Process):
    """A token survives with alpha(t), else it is uniform over all K (D3PM arXiv 2107.03006, UDLM 2412.10193)."""

    schedule: Schedule = field(default_factory=Linear)

    def marginal(self, t: Tensor, size: Any) -> Marginal:
        a = self.schedule.alpha(t)
        return Marginal(a, (1 - a) / size, torch.zeros_like(a))

    def dmarginal(self, t: Tensor, size: Any) -> Marginal:
        da = self.schedule.dalpha(t)
        return Marginal(da, -da / size, torch.zeros_like(da))

    def transition(self, s: Tensor, t: Tensor, size: Any) -> Marginal:
        keep = ratio(self.schedule.alpha(t), self.schedule.alpha(s))
        return Marginal(keep, (1 - keep) / size, torch.zeros_like(keep))


@dataclass(frozen=True)
class MaskOrReplace(Process):
    """VQ-Diffusion's mask-and-replace (arXiv 2111.14822 eq. 7): a masked token stays masked going forward.

    `schedule` is abar, the chance to be untouched; `survival` is 1 - gbar, the chance not to be masked; what survives
    but is not untouched is uniform. The defaults are the paper's: gbar 0 -> 0.9 and K bbar 0 -> 0.1, both linear.
    """

    schedule: Schedule = field(default_factory=Linear)
    survival: Schedule = field(default_factory=lambda: Linear(end=0.1))
    mask_absorbing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 201, dtype=torch.float64)
        spare = self.survival.alpha(t) - self.schedule.alpha(t)
        step = self.transition(t[:-1], t[1:], 2)
        if float(spare.min()) < -1e-12 or float((1 - step.keep - step.mask).min()) < -1e-12:
            raise ValueError(
                f"{self} is no valid process: replaced mass reaches {float(spare.min()):.2e}; "
                "survival must stay above schedule and fall more slowly"
            )

    def marginal(self, t: Tensor, size: Any) -> Marginal:
        a, live = self.schedule.alpha(t), self.survival.alpha(t)
        return Marginal(a, (live - a).clamp(min=0) / size, 1 - live)

    def dmarginal(self, t: Tensor, size: Any) -> Marginal:
        da, live = self.schedule.dalpha(t), self.survival.dalpha(t)
        return Marginal(da, (live - da) / size, -live)

    def transition(self, s: Tensor, t: Tensor, size: Any) -> Marginal:
        keep = ratio(self.schedule.alpha(t), self.schedule.alpha(s))
        live = ratio(self.survival.alpha(t), self.survival.alpha(s))
        return Marginal(keep, (live - keep).clamp(min=0) / size, 1 - live)

    def rates(self, t: Tensor, size: Any) -> tuple[Tensor, Tensor]:
        a, live = self.schedule, self.survival
        hazard = -live.dalpha(t) / live.alpha(t)
        return (-a.dalpha(t) / a.alpha(t) - hazard) / size, hazard


def vq_paper() -> MaskOrReplace:
    """VQ-Diffusion's schedule as the paper states it."""
    return MaskOrReplace()


def vq_released() -> MaskOrReplace:
    """VQ-Diffusion's schedule as its code has it: K bbar = 1e-6 throughout, in effect purely absorbing."""
    return MaskOrReplace(Linear(0.99999, 9e-6), Linear(0.999991, 1e-5))


@dataclass(frozen=True)
class Interpolating(Process):
    """Mask and uniform noise between data and mask; a mask may be replaced again (GIDD arXiv 2503.04482, CCDD 2510.03206).

    a = (1-t)/C, K u = c/C, g = t/C with c = B t^(g/2) (1-t)^(g/2), C = 1 + c, B = 2^g p/(1-p): `uniform` p is the share
    of uniform noise at t = 1/2, `gamma` the exponent g (GIDD takes 1, whose noise starts like sqrt(t): the
    sampling error then falls more slowly with the steps). Raises ValueError where the noise would shrink (gamma > 2, p > 0).
    """

    uniform: float = 0.2
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.uniform < 1 or not self.gamma > 0:
            raise ValueError(f"Interpolating: uniform {self.uniform} must lie in [0, 1) and gamma {self.gamma} above 0")
        self.check(sizes=(2, 8), points=1000)

    def _c(self, t: Tensor) -> tuple[Tensor, Tensor]:
        half = self.gamma / 2
        scale = 2**self.gamma * self.uniform / (1 - self.uniform)
        c = scale * (t * (1 - t)) ** half
        slope = torch.zeros_like(t) if scale == 0 else scale * half * (t * (1 - t)) ** (half - 1) * (1 - 2 * t)
        return c, slope

    def marginal(self, t: Tensor, size: Any) -> Marginal:
        c, _ = self._c(t)
        return Marginal((1 - t) / (1 + c), c / (1 + c) / size, t / (1 + c))

    def dmarginal(self, t: Tensor, size: Any) -> Marginal:
        c, slope = self._c(t)
        total = (1 + c) ** 2
        keep = -(1 + c + (1 - t) * slope) / total
        return Marginal(keep, slope / total / size, (1 + c - t * slope) / total)
