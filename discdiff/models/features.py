"""What a network is told that is no token: numbers and pictures, added to the slots of a segment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.models.blocks import linear
from discdiff.models.told import Told, told


class Features(nn.Module):
    """Embeddings of what the batch's `features` hold, each with weights of its own that start small."""

    def __init__(self, features: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.told = told(features)
        self.maps = nn.ModuleDict({name: _map(each, width) for name, each in self.told.items()})

    def forward(self, x: Tensor, batch: TokenBatch, columns: Tensor | None) -> Tensor:
        """x (batch, slots, width) of the network slots `columns`, with the features of those slots added.

        Raises ValueError for a feature that the batch has not or that has another shape, and for a segment of other size.
        """
        tables = batch.layout.tables(x.device)
        segment = tables.segment[tables.lead] if batch.layout.packed else tables.segment
        for name, each in self.told.items():
            here = (segment == _number(batch, name, each)).nonzero()[:, 0]
            checked(name, len(here), len(here) == each.slots, f"its segment {each.segment!r} has {each.slots} slots")
            if columns is not None and not bool(torch.isin(columns, here).any()):
                continue  # cached: nothing of it is fed
            value = _value(batch, name, each).to(x.device)
            value = self.maps[name]((value.float() / 255 if value.dtype == torch.uint8 else value).to(x.dtype))
            if columns is None:
                x = x.index_add(1, here, value.to(x.dtype))
            else:
                whole = x.new_zeros(x.shape[0], len(segment), x.shape[2]).index_copy(1, here, value.to(x.dtype))
                x = x + whole[:, columns]
        return x


class Stem(nn.Module):
    """Convolutions of stride 2, SiLU between them, down to a grid of slots; the last ones have the network's width."""

    def __init__(self, channels: int, halvings: int, width: int) -> None:
        super().__init__()
        sizes = [channels, *(max(16, width >> (halvings - 1 - i)) for i in range(halvings))]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(sizes, sizes[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, slots, width)."""
        for number, layer in enumerate(self.layers):
            x = layer(F.silu(x) if number else 2 * x - 1)
        return rearrange(x, "b c h w -> b (h w) c")


def _map(each: Told, width: int) -> nn.Module:
    if each.grid:
        return Stem(each.shape[0], int(math.log2(each.shape[1] // each.grid[0])), width)
    return linear(each.shape[-1], width, bias=True)


def _number(batch: TokenBatch, name: str, each: Told) -> int:
    names = batch.layout.names
    checked(name, each.segment, each.segment in names, f"the layout's segments are {', '.join(names)}")
    return names.index(each.segment)


def _value(batch: TokenBatch, name: str, each: Told) -> Tensor:
    """(batch, slots, size) numbers or (batch, channels, height, width)."""
    have = list(batch.features)
    checked("features", have, name in batch.features, f"this network is told {name!r} of shape {tuple(each.shape)}")
    value = batch.features[name]
    checked(name, tuple(value.shape), value.shape[1:] == torch.Size(each.shape), f"give (batch, *{tuple(each.shape)})")
    return value if each.grid else value.view(len(value), each.slots, each.shape[-1])
