"""Likelihood as nats per token, bits per character and perplexity; samples by judged likelihood, entropy, distinct-n."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from discdiff.denoisers import ModelDenoiser, Nucleus, Temperature, TopK
from discdiff.kernels import Ancestral, Commit, FirstHitting
from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.metrics import Estimate, distinct, nelbo, unigram_entropy
from discdiff.objectives import Autoregressive
from discdiff.processes import Absorbing, Process
from discdiff.sampling import sample
from discdiff.scores import SCORES, LeftToRight
from tasks.text.rows import blank, to_text
from tasks.text.settings import Sampler
from tasks.text.training import objective_for


def kernel_for(order: str, process: Process) -> Any:
    """The kernel of an order's name."""
    if order == "ancestral":
        return Ancestral(process)
    if not isinstance(process, Absorbing):
        raise ValueError(f"order {order!r} fills masks, the model's process is {type(process).__name__}: use ancestral")
    if order == "first_hitting":
        return FirstHitting(process)
    if order not in SCORES:
        raise ValueError(f"unknown order {order!r}: choose from ancestral, first_hitting, {', '.join(SCORES)}")
    return Commit(SCORES[order], process=process)


def denoiser_for(model: Any, sampler: Sampler) -> Any:
    """The model with the sampler's temperature and truncation."""
    denoiser: Any = ModelDenoiser(model, kind=model.config.prediction)
    if sampler.temperature != 1:
        denoiser = Temperature(denoiser, sampler.temperature)
    if sampler.top_k:
        denoiser = TopK(denoiser, sampler.top_k)
    return Nucleus(denoiser, sampler.nucleus) if sampler.nucleus < 1 else denoiser


def generate(model: Any, process: Process, batch: TokenBatch, sampler: Sampler) -> Tensor:
    """Sampled token rows (count, length)."""
    steps = sampler.steps or int(batch.free.sum(1).max())
    state, _ = sample(denoiser_for(model, sampler), kernel_for(sampler.order, process), batch, steps, seed=sampler.sample_seed)
    return state.tokens


def generate_autoregressive(model: Any, layout: Layout, count: int, seed: int) -> Tensor:
    """Rows of the causal twin, left to right by the same loop."""
    batch = blank(layout, count, model.device)
    state, _ = sample(ModelDenoiser(model, shift=True), Commit(LeftToRight()), batch, layout.length - 1, seed=seed)
    return state.tokens


def likelihood(model: Any, process: Process | None, rows: list[TokenBatch], draws: int, seed: int) -> Estimate:
    """The bound (or the twin's exact likelihood) in nats per row."""
    return nelbo(model, objective_for(process), rows, draws=draws if process is not None else 1, seed=seed)


def report(estimate: Estimate, rows: list[TokenBatch], texts: list[str]) -> dict[str, float]:
    """nats per row, nats per token with its standard error, bits per character, perplexity per token."""
    tokens = sum(int(b.free.sum()) for b in rows) / estimate.rows
    characters = max(1.0, sum(map(len, texts)) / len(texts))
    per_token = estimate.per(tokens)
    return {
        "nats_per_row": estimate.mean,
        "nats_per_row_stderr": estimate.stderr,
        "nats_per_token": per_token,
        "nats_per_token_stderr": estimate.stderr / tokens,
        "bits_per_character": estimate.per(characters) / math.log(2),
        "perplexity": math.exp(min(per_token, 700.0)),
    }


def judge(tokens: Tensor, twin: Any, layout: Layout, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Samples judged by the autoregressive twin, always together with what collapse would spoil: entropy, distinct-n."""
    rows = [make_batch(layout, part, check=False) for part in tokens.split(64)]
    with torch.no_grad():
        judged = nelbo(twin, Autoregressive(), rows)
    words = tokens[:, 1:]
    return {
        "judged_nats_per_token": judged.per(layout.length - 1),
        "entropy": unigram_entropy(words.cpu()),
        "distinct_2": distinct(words, 2),
        "distinct_4": distinct(words, 4),
        "unique": len(set(to_text(tokenizer, layout, tokens))) / len(tokens),
    }
