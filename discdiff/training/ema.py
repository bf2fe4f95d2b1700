"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from discdiff.training.states import placed


class EMA:
    """m <- d m + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after step n = 0, 1, ..., kept in float32 or wider.

    The warm-up of d keeps the first, random weights from lingering. Tied weights are averaged once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        self.mean = {name: _wide(p.detach()).clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (0 the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [_wide(p.detach()) for p in self.live.values()], 1 - decay)

    @torch.no_grad()
    def load(self, mean: Mapping[str, Tensor]) -> None:
        """Take over stored averages. Raises ValueError for other names or shapes."""
        if mean.keys() != self.mean.keys():
            raise ValueError(
                f"stored averages differ in {sorted(mean.keys() ^ self.mean.keys())[:4]} from this model's weights"
            )
        for name, x in mean.items():
            if x.shape != self.mean[name].shape:
                raise ValueError(
                    f"stored average {name} is {tuple(x.shape)}, the weight {tuple(self.mean[name].shape)}"
                )
            self.mean[name].copy_(placed(x, self.mean[name]))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the model has the averaged weights; afterwards its own again, bit for bit."""
        with torch.no_grad():
            own = [p.detach().clone() for p in self.live.values()]
            for name, p in self.live.items():
                p.copy_(self.mean[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for p, x in zip(self.live.values(), own, strict=True):
                    p.copy_(x)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
