"""Likelihood as nats per token, bits per character and perplexity; samples by judged likelihood, entropy, distinct-n."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from discdiff.denoisers import ModelDenoiser, denoiser_of
from discdiff.kernels import Commit
from discdiff.layout import Layout, TokenBatch
from discdiff.metrics import Estimate, distinct, nelbo, unigram_entropy
from discdiff.processes import Process
from discdiff.sampling import sample
from discdiff.scores import LeftToRight
from discdiff.types import Info, State
from tasks.text.rows import BATCH, blank, lengths, to_text
from tasks.text.settings import Chosen
from tasks.text.training import objective_for


def run(model: Any, process: Process, batch: TokenBatch, chosen: Chosen) -> Iterator[tuple[State, Info]]:
    """The sampling run, state by state."""
    return chosen.build(process, batch.layout.block).iterate(denoiser_of(model), batch, chosen.seed)


def generate(model: Any, process: Process, batch: TokenBatch, chosen: Chosen) -> Tensor:
    """Sampled token rows (count, length)."""
    tokens = batch.tokens
    for state, _ in run(model, process, batch, chosen):
        tokens = state.tokens
    return tokens


def generate_autoregressive(model: Any, layout: Layout, count: int, seed: int) -> Tensor:
    """Rows of the causal twin, left to right by the same loop."""
    batch = blank(layout, count, model.device)
    state, _ = sample(ModelDenoiser(model, shift=True), Commit(LeftToRight()), batch, layout.length - 1, seed=seed)
    return state.tokens


def likelihood(model: Any, process: Process | None, rows: list[TokenBatch], draws: int, seed: int) -> Estimate:
    """The bound (or the twin's exact likelihood) in nats per row."""
    objective = objective_for(process, model.config.prediction, rows[0].layout.block)
    return nelbo(model, objective, rows, draws=draws if process is not None else 1, seed=seed)


def report(
    estimate: Estimate, rows: list[TokenBatch], tokenizer: PreTrainedTokenizerFast, padded: bool
) -> dict[str, float]:
    """nats per row, nats per token with its standard error, bits per character, perplexity per token.

    Of a padded row the text and one end token count as tokens, so that filling does not flatter the figures.
    """
    layout, tokens = rows[0].layout, torch.cat([b.tokens for b in rows])
    each = float(lengths(layout, tokens, padded).double().mean())
    characters = sum(map(len, to_text(tokenizer, layout, tokens, padded))) / len(tokens)
    return {
        "nats_per_row": estimate.mean,
        "nats_per_row_stderr": estimate.stderr,
        "nats_per_token": estimate.per(each),
        "nats_per_token_stderr": estimate.stderr / each,
        "bits_per_character": estimate.per(characters) / math.log(2) if characters else math.inf,
        "perplexity": math.exp(min(estimate.per(each), 700.0)),
    }


def diversity(rows: TokenBatch) -> dict[str, float]:
    """What collapse would spoil, of sampled rows: entropy within a row, distinct n-grams, share of distinct rows."""
    words = rows.tokens[:, 1:].cpu()
    return {
        "entropy": unigram_entropy(words),
        "distinct_2": distinct(words, 2),
        "distinct_4": distinct(words, 4),
        "unique": len(words.unique(dim=0)) / len(words),
    }


def judge(rows: TokenBatch, twin: Any) -> dict[str, float]:
    """Sampled rows of the autoregressive twin's layout judged by it, nats per token: to be read beside `diversity`."""
    parts = [rows.rows(index) for index in torch.arange(len(rows.tokens), device=rows.tokens.device).split(BATCH)]
    tokens = float(rows.free.sum(1).double().mean())
    return {"judged_nats_per_token": likelihood(twin, None, parts, 1, 0).per(tokens)}
