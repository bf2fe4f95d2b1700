"""What one set of weights is asked to do: draw an image for a caption, read the caption of an image, fill in a half."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked, from_dict
from discdiff.denoisers import ModelDenoiser, Temperature
from discdiff.kernels import Ancestral, Commit
from discdiff.layout import LAYOUTS, Layout, TokenBatch, make_batch
from discdiff.sampling import iterate, sample
from discdiff.scores import Sure
from tasks.demo import codecs, digits
from tasks.demo.codecs import SIDE
from tasks.demo.digits import Form


def _batch(where: Layout, tokens: Tensor, hidden: Tensor, device: Any) -> TokenBatch:
    """Rows with the columns `hidden` (length,) masked and everything else given."""
    known = ~hidden.expand(tokens.shape)
    return make_batch(where, tokens.masked_fill(~known, where.vocab.mask).to(device), given=known.to(device))


def _columns(where: Layout, columns: Tensor) -> Tensor:
    hidden = torch.zeros(where.length, dtype=torch.bool)
    hidden[columns] = True
    return hidden


def empty_rows(form: Form, texts: list[str]) -> Tensor:
    """Rows with captions and a blank image."""
    return form.rows(torch.zeros(len(texts), SIDE, SIDE, dtype=torch.int64), texts)


def draw_run(model: Any, form: Form, texts: list[str], steps: int, seed: int) -> Iterable[tuple[Any, Any]]:
    """The run that draws an image for every caption: ancestral, temperature 1, nothing truncated or guided."""
    batch = _batch(form.where, empty_rows(form, texts), _columns(form.where, form.where.columns("image")), model.device)
    return iterate(ModelDenoiser(model), Ancestral(), batch, steps, seed=seed)


def draw(model: Any, form: Form, labels: Tensor, steps: int, seed: int) -> Tensor:
    """Images `(n, 8, 8)` for digits, one caption each."""
    *_, (state, _) = draw_run(model, form, digits.captions(labels), steps, seed)
    return form.images_of(state.tokens.cpu())


def read_batch(model: Any, form: Form, images: Tensor) -> TokenBatch:
    """Images with their captions masked."""
    tokens = form.rows(images, [digits.TEMPLATES[0].format("zero")] * len(images))
    return _batch(form.where, tokens, _columns(form.where, form.where.columns("caption")), model.device)


def reader(model: Any) -> tuple[Any, Commit]:
    """Denoiser and kernel that read a caption: the surest word first, one at a time, the likeliest word."""
    return Temperature(ModelDenoiser(model), 0.0), Commit(Sure("confidence"))


def read(model: Any, form: Form, images: Tensor) -> list[str]:
    """Captions of images."""
    denoiser, kernel = reader(model)
    state, _ = sample(denoiser, kernel, read_batch(model, form, images), digits.CAPTION)
    return [digits.read(row) for row in state.tokens[:, form.where.columns("caption")].cpu()]


def fill_batch(model: Any, form: Form, images: Tensor, texts: list[str], rows: slice) -> TokenBatch:
    """Captions and images of which the picture rows `rows` are hidden, from the encoder of a learned codec too."""
    seen = images.clone()
    seen[:, rows] = 0
    hidden = _columns(form.where, form.places()[rows].unique())
    return _batch(form.where, form.rows(seen, texts), hidden, model.device)


def fill(model: Any, form: Form, images: Tensor, texts: list[str], rows: slice, steps: int, seed: int) -> Tensor:
    """Images with the picture rows `rows` sampled anew from the rest and the caption."""
    batch = fill_batch(model, form, images, texts, rows)
    state, _ = sample(ModelDenoiser(model), Ancestral(), batch, steps, seed=seed)
    return form.images_of(state.tokens.cpu())


def opened(folder: str | Path) -> tuple[Any, Form]:
    """The model of a finished demo and the form of its sequence. Raises ValueError where they do not belong together."""
    from discdiff.models import DiscDiffModel

    form = Form.of(codecs.opened(Path(folder) / "tokenizer"))
    model = DiscDiffModel.from_pretrained(Path(folder) / "model").eval()
    learned, own = (_codes(where) for where in (from_dict(model.config.layout, LAYOUTS), form.where))
    checked("tokenizer", own, own == learned, f"the model beside it learned {learned}")
    return model, form


def _codes(where: Layout) -> str:
    image = where.vocab.modality("image")
    return f"{where.segments[1].shape} slots of {image.depth} levels of {image.codebook}"
