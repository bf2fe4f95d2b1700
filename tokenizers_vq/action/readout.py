"""From the probabilities of ordered codes to one number."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq.config import checked


def read_out(probabilities: Tensor, values: Tensor, how: str = "expectation", width: int = 9) -> Tensor:
    """One number per slot: `expectation`, `mode` or the likeliest value; arguments as there.

    Raises ValueError for another `how`.
    """
    if how == "expectation":
        return expectation(probabilities, values)
    if how == "mode":
        return mode(probabilities, values, width)
    checked("how", how, how == "argmax", "choose from expectation, mode, argmax")
    best = probabilities.argmax(-1, keepdim=True)
    return values.expand_as(probabilities).gather(-1, best)[..., 0]


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """sum_c p(c) values(c): probabilities (..., size), values that broadcast with them -> (...)."""
    return (probabilities * values).sum(-1)


def mode(probabilities: Tensor, values: Tensor, width: int = 9) -> Tensor:
    """The mean within the `width` neighbouring codes that hold the most probability: (..., size) -> (...).

    A sure slot gives its value exactly; of two separate peaks the heavier one counts alone. Raises ValueError for a width
    that is no odd number of at least 1.
    """
    checked("width", width, width >= 1 and width % 2 == 1, "an odd number of codes")
    size, half = probabilities.shape[-1], width // 2
    codes = torch.arange(size, device=probabilities.device)
    below = torch.nn.functional.pad(probabilities.cumsum(-1), (1, 0))
    mass = below[..., (codes + half + 1).clamp(max=size)] - below[..., (codes - half).clamp(min=0)]
    near = (codes - mass.argmax(-1, keepdim=True)).abs() <= half
    share = probabilities * near
    return (share * values).sum(-1) / share.sum(-1)
