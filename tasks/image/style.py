"""The style of a picture as numbers that know no place: products of colours and fixed random filters, at several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.anchoring import Measured
from discdiff.config import checked
from tasks.inverse.base import Operator, constant


@dataclass(frozen=True)
class Style(Operator):
    """Gram matrices E_p[f_p f_p^T] of pictures (batch, channels, height, width) at `levels` sizes, each half the last.

    f_p at a pixel: 1, its colours, and |w * x| for `width` filters of 3 x 3 pixels, drawn from `seed`, of sum 0 and length 1;
    nothing is trained. So the numbers are mean and covariance of the colours, and strength and company of edges and grains.
    Random filters at several sizes carry textures (arXiv 1606.00021); Gram matrices as style are those of 1508.06576.
    `near` gives the data term of a reference. Raises ValueError for pictures too small for the levels.
    """

    levels: int = 2
    width: int = 16
    seed: int = 0
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked("levels", self.levels, 1 <= self.levels <= 8, "1 to 8 sizes")
        checked("width", self.width, self.width >= 1, "at least one filter")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        least = 3 * 2 ** (self.levels - 1)
        checked("height and width", shape[2:], min(shape[2:]) >= least, f"at least {least} for {self.levels} levels")

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat(self.grams(x), 1)

    def grams(self, x: Tensor, region: Tensor | None = None) -> list[Tensor]:
        """One (batch, numbers) per level, the upper triangle of the matrix; region (height, width) bool: of these pixels."""
        self.check_shape(tuple(x.shape))
        found = []
        weight = x.new_ones(1, *x.shape[2:]) if region is None else region.to(x)[None]
        upper = torch.triu_indices(*[1 + x.shape[1] + self.width] * 2, device=x.device)
        filters = _filters(self.seed, self.width, x.shape[1], x.device, x.dtype)
        for level in range(self.levels):
            if level:
                x, weight = (F.avg_pool2d(each, 2, ceil_mode=True) for each in (x, weight))
            edges = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), filters).abs()
            f = torch.cat([torch.ones_like(x[:, :1]), x, edges], 1).flatten(2)
            share = weight.flatten() / weight.sum()
            gram = (f * share) @ f.mT
            found.append(gram[:, upper[0], upper[1]])
        return found

    def near(self, reference: Tensor, count: int, region: Tensor | None = None, **settings: object) -> Measured:
        """That `count` pictures have the style of a reference (1, channels, height, width), in the pixels `region`.

        Numbers of a level are counted in the length of the reference's, so that `sigma` is a share of it.
        """
        wanted = self.grams(reference)
        lengths = [y.norm() for y in wanted]

        def measure(x: Tensor) -> Tensor:
            here = None if region is None else region.to(x.device)
            return torch.cat([g / n.to(g) for g, n in zip(self.grams(x, here), lengths, strict=True)], 1)

        y = torch.cat([g / n for g, n in zip(wanted, lengths, strict=True)], 1)
        return Measured(measure, y.expand(count, -1), **settings)  # type: ignore[arg-type]


@constant
def _filters(seed: int, width: int, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(width, channels, 3, 3)."""
    drawn = torch.randn(width, channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    drawn = drawn - drawn.mean((2, 3), keepdim=True)
    return (drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]).to(device, dtype)
