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
from discdiff.models.config import DEPTHS, POOLS, TIME_FEATURES, DiscDiffConfig


class SlotInputs(nn.Module):
    """Input of a network slot: embedding of its token + of its modality + of its depth, the latter two zero at first.

    In a packed layout one linear map joins the levels of a slot; it starts as their sum. Absent levels count as zero.
    """

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__()
        self.modality = nn.Embedding(POOLS, config.hidden_size)
        self.depth = nn.Embedding(DEPTHS, config.hidden_size)
        self.modality.start = self.depth.start = 0.0  # type: ignore[assignment]
        self.max_depth, width = config.max_depth, config.hidden_size
        self.pack = linear(self.max_depth * width, width, "identity") if self.max_depth > 1 else None

    def forward(self, embed: nn.Embedding, batch: TokenBatch, columns: Tensor | None) -> Tensor:
        """(batch, slots, width), of the network slots `columns` only where given."""
        if batch.layout.packed and self.pack is not None:
            place = members(batch.layout, self.max_depth, batch.tokens.device)  # (slots, depth)
            place = place if columns is None else place[columns]
            x = self._embed(embed, batch, place.clamp(min=0))  # (batch, slots, depth, width)
            present = place >= 0
            present = present if batch.unrestricted else present & batch.valid[:, place.clamp(min=0)]
            return self.pack(rearrange(x * present[..., None].to(x.dtype), "... s q w -> ... s (q w)"))
        return self._embed(embed, batch, slice(None) if columns is None else columns)

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
