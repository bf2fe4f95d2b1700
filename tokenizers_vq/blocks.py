"""Convolutions and attention over one or two axes of which only part may hold data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d}


def shaped(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask (batch, *space) against features (batch, channels, *space)."""
    return None if mask is None else mask.view(len(mask), 1, *mask.shape[1:]).to(x.dtype)


def silent(x: Tensor, mask: Tensor | None) -> Tensor:
    """Features (batch, channels, *space) with zeros where there is no data, as beyond the border."""
    held = shaped(mask, x)
    return x if held is None else x * held


class ChannelNorm(nn.Module):
    """x / rms(x) over the channels of a place, times a gain: places do not mix, so what is masked out changes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.view(1, -1, *(1,) * (x.ndim - 2))
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * gain


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second convolution begins at zero."""

    def __init__(self, axes: int, channels: int, dilation: int = 1) -> None:
        super().__init__()
        conv = CONV[axes]
        self.norms = nn.ModuleList([ChannelNorm(channels), ChannelNorm(channels)])
        self.first = conv(channels, channels, 3, padding=dilation, dilation=dilation)
        self.second = conv(channels, channels, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.first(silent(F.silu(self.norms[0](x)), mask))
        return x + self.second(silent(F.silu(self.norms[1](y)), mask))


class Attention(nn.Module):
    """A pre-norm transformer layer over all places, in space order, with sines of the place added to queries and keys."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads or channels % 2:
            raise ValueError(f"width {channels} is no even multiple of {heads} heads")
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(channels), nn.RMSNorm(channels)])
        self.places, self.qkv = nn.Linear(channels, 2 * channels, bias=False), nn.Linear(channels, 3 * channels)
        self.out, self.up, self.down = (
            nn.Linear(channels, channels),
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, channels, *space = x.shape
        y = x.flatten(2).mT  # (batch, places, channels)
        h = self.norms[0](y)
        q, k, v = self.qkv(h).chunk(3, -1)
        dq, dk = self.places(sines(space, channels, x)).chunk(2, -1)
        q, k, v = (z.view(batch, -1, self.heads, channels // self.heads).transpose(1, 2) for z in (q + dq, k + dk, v))
        seen = None if mask is None else mask.flatten(1)[:, None, None, :]
        y = y + self.out(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).reshape(y.shape))
        y = y + self.down(F.silu(self.up(self.norms[1](y))))
        return y.mT.reshape(batch, channels, *space)


def sines(space: Sequence[int], channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of every place's coordinates, (places, channels), wavelengths from 2 pi to 2 pi 1000 per axis."""
    share = channels // (2 * len(space))
    rate = 1000 ** -(torch.arange(share, device=like.device, dtype=torch.float32) / max(1, share))
    grids = torch.meshgrid(*(torch.arange(n, device=like.device, dtype=torch.float32) for n in space), indexing="ij")
    angles = torch.cat([g.flatten()[:, None] * rate for g in grids], -1)
    found = torch.cat([angles.sin(), angles.cos()], -1)
    return F.pad(found, (0, channels - found.shape[-1])).to(like.dtype)


class Encoder(nn.Module):
    """(batch, channels, *space) to (batch, code_dim, *space / strides): per stride a strided convolution and `blocks`
    residual ones with dilations 1, 3, 9, ..., then `layers` of attention.
    """

    def __init__(
        self, axes: int, channels: int, width: int, code_dim: int, strides: Sequence[int], blocks: int = 2,
        layers: int = 0, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = CONV[axes]
        self.strides = tuple(strides)
        self.first = conv(channels, width, 3, padding=1)
        self.downs = nn.ModuleList(conv(width, width, s, stride=s) for s in self.strides)
        self.stages = nn.ModuleList(
            nn.ModuleList(Residual(axes, width, 3**i) for i in range(blocks)) for _ in (0, *self.strides)
        )
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.last = conv(width, code_dim, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.first(silent(x, mask))
        for block in self.stages[0]:  # type: ignore[attr-defined]
            h = block(h, mask)
        for down, stage, stride in zip(self.downs, list(self.stages)[1:], self.strides, strict=True):
            h, mask = down(silent(h, mask)), strided(mask, stride)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, mask)
        for layer in self.attention:
            h = layer(h, mask)
        return self.last(h)


class Decoder(nn.Module):
    """The way back: attention, then per stride residual convolutions and an upsampling by repetition."""

    def __init__(
        self, axes: int, channels: int, width: int, code_dim: int, strides: Sequence[int], blocks: int = 2,
        layers: int = 0, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = CONV[axes]
        self.strides = tuple(strides)[::-1]
        self.first = conv(code_dim, width, 3, padding=1)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.ups = nn.ModuleList(conv(width, width, 3, padding=1) for _ in self.strides)
        self.stages = nn.ModuleList(
            nn.ModuleList(Residual(axes, width, 3**i) for i in reversed(range(blocks))) for _ in (0, *self.strides)
        )
        self.norm, self.last = ChannelNorm(width), conv(width, channels, 3, padding=1)

    def forward(self, e: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.first(silent(e, mask))
        for layer in self.attention:
            h = layer(h, mask)
        for block in self.stages[0]:  # type: ignore[attr-defined]
            h = block(h, mask)
        for up, stage, stride in zip(self.ups, list(self.stages)[1:], self.strides, strict=True):
            h, mask = F.interpolate(silent(h, mask), scale_factor=float(stride)), repeated(mask, stride)
            h = up(h)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, mask)
        return self.last(silent(F.silu(self.norm(h)), mask))


def strided(mask: Tensor | None, stride: int) -> Tensor | None:
    """A slot holds data where any of the places it stands for does: mask (batch, *space) -> (batch, *space / stride)."""
    if mask is None:
        return None
    axes = mask.ndim - 1
    pool = F.max_pool1d if axes == 1 else F.max_pool2d
    return pool(mask[:, None].float(), stride, stride)[:, 0] > 0


def repeated(mask: Tensor | None, stride: int) -> Tensor | None:
    """The places that the slots of a mask stand for: (batch, *space) -> (batch, *space * stride)."""
    if mask is None:
        return None
    for axis in range(1, mask.ndim):
        mask = mask.repeat_interleave(stride, axis)
    return mask
