"""Adam on a table, in place, for rows that stop one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-8


@dataclass(eq=False)
class Adam:
    """Adam (arXiv 1412.6980), or `rectified` RAdam (1908.03265), of a table phi (m, codes); rate: a number or (m, 1).

    Beyond phi and the gradient it holds its two averages and makes nothing as wide as the table.
    """

    phi: Tensor
    rate: float | Tensor
    decay: tuple[float, float] = (0.9, 0.999)
    rectified: bool = False

    def __post_init__(self) -> None:
        self.first, self.second = torch.zeros_like(self.phi), torch.zeros_like(self.phi)

    def move(self, grad: Tensor, go: Tensor, count: int) -> None:
        """Step `count`, from 0, at the sites `go` (m, 1) bool; the others keep table and averages. `grad` is overwritten."""
        grad.masked_fill_(~go, 0.0)  # 0 * nan is no number
        share = go.to(grad)
        self.first.lerp_(grad, share * (1 - self.decay[0]))
        self.second.lerp_(grad.square_(), share * (1 - self.decay[1]))
        self.phi.addcmul_(self._direction(self.first, self.second, count, grad), share * self.rate, value=-1)

    def undo(self, when: Tensor) -> None:
        """Take back the last move of the sites that stopped at inner step `when` (m,), -1 for those that did not."""
        for count in when[when > 0].unique().tolist():
            at = (when == count).nonzero()[:, 0]
            rate = self.rate[at] if isinstance(self.rate, Tensor) else self.rate
            first, second = self.first[at], self.second[at]
            self.phi[at] += rate * self._direction(first, second, count - 1, torch.empty_like(first))

    def _direction(self, first: Tensor, second: Tensor, count: int, out: Tensor) -> Tensor:
        one, two = (1 - d ** (count + 1) for d in self.decay)
        scale = 1.0
        if self.rectified:
            most = 2 / (1 - self.decay[1]) - 1
            rho = most - 2 * (count + 1) * (1 - two) / two
            if rho <= 5:  # too few steps for a variance
                return torch.div(first, one, out=out)
            scale = math.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        torch.div(second, two, out=out).sqrt_().add_(_EPS)
        return torch.div(first, out, out=out).mul_(scale / one)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each row, (m, codes) to (m, 1), without their product."""
    return torch.einsum("mk,mk->m", a, b)[:, None]
