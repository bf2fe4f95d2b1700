"""Rotary positions over three axes: time, height, width."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from discdiff.layout import Layout, TokenBatch

AXES = (0, 1, 2, 1, 2, 0, 1, 2)  # axis of pair i, repeated: t:h:w = 1/4 : 3/8 : 3/8, each with fast and slow pairs


@functools.lru_cache(maxsize=64)
def rotary_table(
    layout: Layout, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(length, head_dim / 2)` of a layout's positions.

    Pair i turns by `theta^(-2 i / head_dim)` per unit of axis `AXES[i % 8]` (RoFormer, arXiv 2104.09864, eq. 15; axes as
    in M-RoPE, arXiv 2409.12191). Where t = h = w, as in text, this is the one-dimensional rotary embedding of Llama.
    """
    with torch.inference_mode(False):  # the table outlives this call: training must be able to use it
        pairs = torch.arange(head_dim // 2)
        axis = torch.tensor(AXES)[pairs % len(AXES)]
        frequency = float(theta) ** (-pairs.double() / len(pairs))
        angle = layout.tables().positions[:, 1:4].double()[:, axis] * frequency
        return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rotary(batch: TokenBatch, slot: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(rows, 1, slots, head_dim / 2)` at the layout's positions `slot` (rows, slots).

    They are float64 in a float64 network, else float32.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = rotary_table(batch.layout, head_dim, theta, wide, slot.device)
    return cos[slot][:, None], sin[slot][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `(batch, heads, slots, head_dim)` turned; the halves of a head hold the two coordinates of its pairs."""
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
