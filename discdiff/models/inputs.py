"""What enters the first block: tokens, modality and depth embedded, levels packed into slots, features of time."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from discdiff.layout import Layout, TokenBatch
from discdiff.models.blocks import linear
from discdiff.models.config import DEPTHS, PLACE_FEATURES, POOLS, TIME_FEATURES, DiscDiffConfig


class SlotInputs(nn.Module):
    """Input of a network slot: embedding of its token + of its modality, depth and place, the latter three zero at first.

    The place is that within the segment (t, h, w), as sines and cosines: rotary positions alone say where a slot is only
    in relation to others, which a picture of a few slots learns slowly. Text has no place of its own.
    In a packed layout one linear map joins the levels of a slot; it starts as their sum. Absent levels count as zero.
    """

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__()
        self.modality = nn.Embedding(POOLS, config.hidden_size)
        self.depth = nn.Embedding(DEPTHS, config.hidden_size)
        self.modality.start = self.depth.start = 0.0  # type: ignore[assignment]
        self.place = linear(PLACE_FEATURES, config.hidden_size, 0.0)
        self.max_depth, width = config.max_depth, config.hidden_size
        self.pack = linear(self.max_depth * width, width, "identity") if self.max_depth > 1 else None

    def forward(self, embed: nn.Embedding, batch: TokenBatch, columns: Tensor | None) -> Tensor:
        """(batch, slots, width), of the network slots `columns` only where given."""
        if batch.layout.packed and self.pack is not None:
            part = members(batch.layout, self.max_depth, batch.tokens.device)  # (slots, depth)
            part = part if columns is None else part[columns]
            x = self._embed(embed, batch, part.clamp(min=0))  # (batch, slots, depth, width)
            present = part >= 0
            present = present if batch.unrestricted else present & batch.valid[:, part.clamp(min=0)]
            x = self.pack(rearrange(x * present[..., None].to(x.dtype), "... s q w -> ... s (q w)"))
        else:
            x = self._embed(embed, batch, slice(None) if columns is None else columns)
        lead = batch.lead if columns is None else batch.lead[columns]
        slot = (batch.slot[:1] if batch.unrestricted else batch.slot)[:, lead]
        return x + self.place(place_features(batch.layout, batch.tokens.device)[slot].to(x.dtype))

    def _embed(self, embed: nn.Embedding, batch: TokenBatch, place: Tensor | slice) -> Tensor:
        tables = batch.layout.tables(batch.tokens.device)
        slot = (batch.slot[:1] if batch.unrestricted else batch.slot)[:, place]
        return embed(batch.tokens[:, place]) + (self.modality(tables.pool[slot]) + self.depth(tables.depth[slot]))


class SlotOutputs(nn.Module):
    """Hidden state of each level from that of its packed slot, by a linear map that starts as the identity."""

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__()
        self.max_depth = config.max_depth
        self.unpack = linear(config.hidden_size, self.max_depth * config.hidden_size, "identity")

    def forward(self, hidden: Tensor, source: Tensor, depth: Tensor) -> Tensor:
        """(n, width) at `depth` (n,) of the slots `source` (n,) of hidden (slots, width)."""
        if len(source) >= len(hidden):  # every slot is cheaper than every site
            levels = rearrange(self.unpack(hidden), "s (q w) -> (s q) w", q=self.max_depth)
            return levels.index_select(0, source * self.max_depth + depth)
        levels = rearrange(self.unpack(hidden.index_select(0, source)), "n (q w) -> (n q) w", q=self.max_depth)
        return levels.index_select(0, torch.arange(len(source), device=source.device) * self.max_depth + depth)


class TimeCondition(nn.Module):
    """Noise level to condition: sines and cosines of 1000 t at geometric frequencies, then an MLP."""

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__()
        self.first = linear(TIME_FEATURES, config.hidden_size, bias=True)
        self.second = linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, time: Tensor) -> Tensor:
        """(batch, slots, width) of time (batch, slots)."""
        half = TIME_FEATURES // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float64, device=time.device))
        angle = 1000.0 * time.double()[..., None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], -1).to(self.first.weight.dtype)
        return F.silu(self.second(F.silu(self.first(features))))


@functools.lru_cache(maxsize=64)
def members(layout: Layout, max_depth: int, device: torch.device) -> Tensor:
    """(network slots, max_depth) position of each level of each slot, -1 where a slot has no such level."""
    with torch.inference_mode(False):  # the table outlives this call: training must be able to use it
        tables = layout.tables()
        place = torch.full((len(tables.lead), max_depth), -1)
        place[tables.network, tables.depth] = torch.arange(len(tables.network))
        return place.to(device)


@functools.lru_cache(maxsize=64)
def place_features(layout: Layout, device: torch.device) -> Tensor:
    """(length, PLACE_FEATURES) sines and cosines of the coordinates in the segment, wavelengths 4 to 512 slots; 0 for text."""
    with torch.inference_mode(False):
        tables = layout.tables()
        wavelength = 4.0 * 2.0 ** torch.arange(PLACE_FEATURES // 6)
        angle = (2 * math.pi * tables.local[..., None] / wavelength).flatten(1)
        features = torch.cat([angle.cos(), angle.sin()], -1) * (tables.pool > 0)[:, None]
        return features.to(device)
