"""Who attends to whom in one forward pass, by SDPA with a dense mask or by FlexAttention: the same rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from discdiff.layout import TokenBatch, attention_rule, dense_mask
from discdiff.models.cache import KVCache

FLEX = "flex_attention"


@dataclass(frozen=True)
class Attend:
    """Attention of all layers of one forward pass: `(module, query, key, value) -> (batch, heads, slots, head_dim)`.

    mask: dense bool, or a BlockMask for FlexAttention `flex`, or None where everything sees everything. feed: the cache,
    the slots that are fed, and whether to store them; None where all slots are fed.
    """

    mask: Any
    flex: Callable[..., Any] | None = None
    feed: tuple[KVCache, Tensor, bool] | None = None

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.feed is not None:  # only then is the layer's number read: compiled, all layers are one program
            cache, columns, store = self.feed
            key, value = cache.merge(module.layer, key, value, columns, store)
        if self.flex is not None:
            return self.flex(query, key, value, block_mask=self.mask)
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":  # measured: 7 times slower backward than this
            query, key, value = query.float(), key.float(), value.float()
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask).bfloat16()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


def attend_all(batch: TokenBatch, flex: Callable[..., Any] | None = None) -> Attend:
    """Every slot of the batch asks every slot; `flex` is the function of FlexAttention to use, None is SDPA."""
    if flex is None or (batch.unrestricted and batch.layout.open):
        return Attend(dense_mask(batch), flex)
    slots, rows = len(batch.lead), 1 if batch.unrestricted else batch.tokens.shape[0]
    is_compiled = flex is not flex_attention  # else the rule is evaluated on a slots x slots table
    build = _compiled_mask() if is_compiled else create_block_mask
    return Attend(build(attention_rule(batch), rows, None, slots, slots, device=batch.tokens.device), flex)


def attend_columns(batch: TokenBatch, columns: Tensor, cache: KVCache, store: bool) -> Attend:
    """The slots `columns` ask those that are in the cache and themselves."""
    device = batch.tokens.device
    rows, slots = torch.arange(batch.tokens.shape[0], device=device), torch.arange(len(batch.lead), device=device)
    allowed = attention_rule(batch)(rows[:, None, None, None], rows.new_zeros(()), columns[:, None], slots[None, :])
    present = cache.filled.index_fill(1, columns, True)
    return Attend(allowed & present[:, None, None, :], None, (cache, columns, store))


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """FlexAttention, compiled once per process."""
    return torch.compile(flex_attention)


@functools.cache
def _compiled_mask() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)
