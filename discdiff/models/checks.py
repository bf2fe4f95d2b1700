"""What a forward pass refuses before it computes anything."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from discdiff.layout import Layout, Segment, TokenBatch, VocabLayout, make_batch
from discdiff.models.cache import KVCache
from discdiff.models.loading import vocab_message

if TYPE_CHECKING:
    from discdiff.models.network import Network


def one_batch(
    model: Network, batch: TokenBatch | None, input_ids: Tensor | None, attention_mask: Tensor | None
) -> TokenBatch:
    """The batch, or one text segment made of input_ids."""
    if (batch is None) == (input_ids is None) or (batch is not None and attention_mask is not None):
        raise ValueError("give either a batch, or input_ids with or without attention_mask")
    if batch is not None:
        return batch
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        what = f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids)
        raise ValueError(f"input_ids are {what}: give int64 ids of shape (batch, length)")
    valid = None if attention_mask is None else attention_mask.bool()
    return make_batch(_text(model.vocab, input_ids.shape[1]), input_ids, valid=valid, check=False)


def check_batch(model: Network, batch: TokenBatch) -> None:
    """Raise ValueError for a batch that this model cannot take. Ids are looked at on the CPU only: no wait for a device."""
    layout, config, total, tokens = batch.layout, model.config, model.vocab.total, batch.tokens
    if layout.vocab is not model.vocab and layout.vocab != model.vocab:
        raise ValueError(vocab_message(model.vocab, layout.vocab))
    if tokens.dtype != torch.int64:
        raise ValueError(f"tokens are {tokens.dtype}: give int64 global ids")
    if len(batch.lead) > config.max_length:
        raise ValueError(
            f"{len(batch.lead)} network slots, max_length is {config.max_length}: shorten rows or raise it"
        )
    deepest = max(layout.depth(s) for s in layout.segments) if layout.packed else 1
    most = getattr(config, "max_depth", 1)
    if deepest > most:
        raise ValueError(f"the layout packs {deepest} levels into a slot, max_depth is {most}: raise it")
    if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < total:
        low, high = int(tokens.min()), int(tokens.max())
        raise ValueError(f"tokens reach from {low} to {high}, the ids of the vocabulary from 0 to {total - 1}")


def check_request(
    model: Network,
    batch: TokenBatch,
    time: Any,
    labels: Tensor | None,
    objective: Any,
    output_logits: bool,
    columns: Tensor | None,
    cache: KVCache | None,
    store: bool,
) -> None:
    """Raise ValueError for options that do not go together."""
    rows, slots = batch.tokens.shape[0], len(batch.lead)
    if model.config.time_conditioning and time is None:
        raise ValueError("time is None: this model was made with time_conditioning=True, give the noise level")
    if labels is not None and (objective is not None or labels.shape != batch.tokens.shape):
        raise ValueError(f"labels {tuple(labels.shape)} must be {tuple(batch.tokens.shape)}, without an objective")
    if (columns is None) != (cache is None) or (store and cache is None):
        raise ValueError("columns and cache go together, store needs both: KVCache(model, batch) makes one")
    if cache is not None and not model.caches:
        raise ValueError(f"a {type(model).__name__} has no cache: take a sampler without one")
    if columns is not None and (labels is not None or objective is not None or output_logits or model.training):
        raise ValueError("a cache serves inference: call eval(), and select(..., columns=columns) instead of logits")
    if cache is not None and cache.filled.shape != (rows, slots):
        raise ValueError(f"the cache holds {tuple(cache.filled.shape)} slots, the batch {(rows, slots)}")


@functools.lru_cache(maxsize=256)
def _text(vocab: VocabLayout, length: int) -> Layout:
    return Layout(vocab, (Segment("text", "text", (length,)),))
