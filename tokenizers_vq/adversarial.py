"""A hinge game between decoder and discriminator that needs one optimizer only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class PatchDiscriminator(nn.Module):
    """Pictures (batch, channels, height, width) to one verdict per patch, strides 2 and 2, so that any size will do."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(1, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def hinge(discriminator: nn.Module, x: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """-mean D(y), whose gradient reaches y only, and (mean relu(1 - D(x)) + mean relu(1 + D(y))) / 2, whose gradient
    reaches D only; x real, y its reconstruction. The sum of both trains both sides with one optimizer.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    generator = -functional_call(discriminator, frozen, (reconstruction,)).mean()
    verdicts = discriminator(torch.cat([x, reconstruction.detach()]))
    real, false = verdicts.chunk(2)
    return generator, (F.relu(1 - real).mean() + F.relu(1 + false).mean()) / 2
