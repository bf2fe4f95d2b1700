"""generate: token ids with masks in, token ids out, by a named sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from discdiff.config import from_dict
from discdiff.denoisers import denoiser_of, process_of
from discdiff.layout import LAYOUTS, Layout, Segment, TokenBatch, make_batch
from discdiff.sampling.loop import Seed
from discdiff.sampling.sampler import Sampler
from discdiff.sampling.sampler import sampler as build
from discdiff.types import Info, State


def generate(
    model: Any,
    tokens: TokenBatch | Tensor,
    sampler: str | Sampler = "ancestral",
    *,
    seed: Seed = 0,
    callback: Callable[[State, Info], None] | None = None,
    **knobs: Any,
) -> tuple[Tensor, Info]:
    """Fill the masks of token ids (batch, length); everything else is given and never moves.

    sampler: a name of `discdiff.PRESETS` with its `knobs`, or a `Sampler`. A plain tensor is read by the layout of the
    model where it has that length, else as one text segment; `discdiff.prompts` makes rows of different lengths. The info
    counts network calls, rows, head rows and positions fed; `callback(state, info)` sees every step. Raises ValueError,
    before the first forward, for an unknown sampler or knob, ids that are illegal and rows the model cannot take.
    """
    if isinstance(sampler, Sampler):
        if knobs:
            raise ValueError(f"knobs {sorted(knobs)} go with the name of a sampler, this one is already built")
        chosen = sampler
    else:
        chosen = build(sampler, process_of(model), **knobs)
    batch = tokens if isinstance(tokens, TokenBatch) else _batch(model, tokens)
    if len(batch.lead) > model.config.max_length:
        raise ValueError(
            f"rows have {len(batch.lead)} network slots, the model's max_length is {model.config.max_length}: shorten them"
        )
    state, info = chosen(denoiser_of(model), batch.to(model.device), seed, callback)
    return state.tokens, info


def _batch(model: Any, tokens: Tensor) -> TokenBatch:
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64:
        what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens are {what}: give int64 ids (batch, length) with {model.vocab.mask} where to fill in")
    layout = from_dict(model.config.layout, LAYOUTS) if model.config.layout else None
    if layout is None or layout.length != tokens.shape[1]:
        who: dict[str, Any] = {} if layout is None else {"attention": layout.attention, "block": layout.block}
        layout = Layout(model.vocab, (Segment("text", "text", (tokens.shape[1],)),), **who)
    return make_batch(layout, tokens, given=tokens != layout.vocab.mask)
