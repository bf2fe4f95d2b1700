"""What one set of weights is asked to do: draw an image for a caption, read the caption of an image, fill in a half."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from discdiff.denoisers import ModelDenoiser, Temperature
from discdiff.kernels import Ancestral, Commit
from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.sampling import iterate, sample
from discdiff.scores import Sure
from tasks.demo import digits


def _batch(where: Layout, tokens: Tensor, hidden: Tensor, device: Any) -> TokenBatch:
    """Rows with the columns `hidden` (length,) masked and everything else given."""
    known = ~hidden.expand(tokens.shape)
    return make_batch(where, tokens.masked_fill(~known, where.vocab.mask).to(device), given=known.to(device))


def _columns(where: Layout, columns: Tensor) -> Tensor:
    hidden = torch.zeros(where.length, dtype=torch.bool)
    hidden[columns] = True
    return hidden


def empty_rows(where: Layout, texts: list[str]) -> Tensor:
    """Rows with captions and a blank image."""
    return digits.rows(where, torch.zeros(len(texts), 8, 8, dtype=torch.int64), texts)


def draw_run(model: Any, where: Layout, texts: list[str], steps: int, seed: int) -> Iterable[tuple[Any, Any]]:
    """The run that draws an image for every caption: ancestral, temperature 1, nothing truncated or guided."""
    batch = _batch(where, empty_rows(where, texts), _columns(where, where.columns("image")), model.device)
    return iterate(ModelDenoiser(model), Ancestral(), batch, steps, seed=seed)


def draw(model: Any, where: Layout, labels: Tensor, steps: int, seed: int) -> Tensor:
    """Images `(n, 8, 8)` for digits, one caption each."""
    *_, (state, _) = draw_run(model, where, digits.captions(labels), steps, seed)
    return digits.images_of(where, state.tokens.cpu())


def read_batch(model: Any, where: Layout, images: Tensor) -> TokenBatch:
    """Images with their captions masked."""
    tokens = digits.rows(where, images, [digits.TEMPLATES[0].format("zero")] * len(images))
    return _batch(where, tokens, _columns(where, where.columns("caption")), model.device)


def reader(model: Any) -> tuple[Any, Commit]:
    """Denoiser and kernel that read a caption: the surest word first, one at a time, the likeliest word."""
    return Temperature(ModelDenoiser(model), 0.0), Commit(Sure("confidence"))


def read(model: Any, where: Layout, images: Tensor) -> list[str]:
    """Captions of images."""
    denoiser, kernel = reader(model)
    state, _ = sample(denoiser, kernel, read_batch(model, where, images), digits.CAPTION)
    return [digits.read(row) for row in state.tokens[:, where.columns("caption")].cpu()]


def fill(model: Any, where: Layout, images: Tensor, texts: list[str], rows: slice, steps: int, seed: int) -> Tensor:
    """Images with the picture rows `rows` sampled anew from the rest and the caption."""
    place = torch.zeros(1, 8, 8, dtype=torch.int64)
    place[:, rows] = 1
    wanted = where.columns("image")[digits.PIXELS.encode(place).codes.reshape(-1).bool()]
    batch = _batch(where, digits.rows(where, images, texts), _columns(where, wanted), model.device)
    state, _ = sample(ModelDenoiser(model), Ancestral(), batch, steps, seed=seed)
    return digits.images_of(where, state.tokens.cpu())
