"""Who may attend to whom: one rule from the layout's tables, used dense (SDPA) and by FlexAttention alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from discdiff.layout.batch import TokenBatch

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attention_rule(batch: TokenBatch) -> Rule:
    """The rule `(b, h, q, k) -> may slot q of row b attend to slot k`, in FlexAttention's `mask_mod` form.

    valid[k], same sample, and inside a span: bidirectional or k <= q; across spans: the layout's `visible`. A slot
    always sees itself, so that no row of the softmax is empty.
    """
    tables, lead = batch.layout.tables(batch.tokens.device), batch.lead
    slot = batch.slot[:, lead]
    span, valid, sample = tables.span[slot], batch.valid[:, lead], batch.sample[:, lead]
    visible, causal = tables.visible, tables.causal

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        span_q, span_k = span[b, q], span[b, k]
        inside = ~causal[span_q] | (slot[b, k] <= slot[b, q])
        allowed = torch.where(span_q == span_k, inside, visible[span_q, span_k])
        return (allowed & valid[b, k] & (sample[b, q] == sample[b, k])) | (q == k)

    return rule


def dense_mask(batch: TokenBatch) -> Tensor | None:
    """The rule as a bool tensor `(batch, 1, slots, slots)`, True = may attend; None where everything may see everything."""
    if batch.unrestricted and batch.layout.open:
        return None
    slots = torch.arange(len(batch.lead), device=batch.tokens.device)
    rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)
    if batch.unrestricted:
        rows = rows[:1]  # all rows share one mask
    rule = attention_rule(batch)
    return rule(rows[:, None, None, None], rows.new_zeros(()), slots[:, None], slots[None, :])
