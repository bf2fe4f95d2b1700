"""Small classifiers that judge what was generated: convolutions over a picture, a sound's spectrogram or a motion."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discdiff.training import TrainingSettings
from tasks.common.fitting import Arrays, Classification, fit
from tokenizers_vq.blocks import CONV, Residual, silent, strided


class Judge(nn.Module):
    """x (batch, channels, *space), mask (batch, *space) -> logits (batch, classes); `features` are its last means."""

    def __init__(
        self, axes: int, channels: int, classes: int, width: int = 48, stages: int = 3, dropout: float = 0.3
    ) -> None:
        super().__init__()
        conv = CONV[axes]
        self.first = conv(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(axes, width) for _ in range(stages))
        self.downs = nn.ModuleList(conv(width, width, 2, stride=2) for _ in range(stages))
        self.dropout, self.last = nn.Dropout(dropout), nn.Linear(2 * width, classes)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean and maximum of every channel over the places that hold data, (batch, 2 width)."""
        h = self.first(silent(x, mask))
        for block, down in zip(self.blocks, self.downs, strict=True):
            h = F.silu(block(h, mask))
            space = [s - s % 2 for s in h.shape[2:]]  # a stride of 2 leaves the last odd place out
            mask = None if mask is None else mask[(slice(None), *(slice(s) for s in space))]
            h, mask = down(silent(h[(slice(None), slice(None), *(slice(s) for s in space))], mask)), strided(mask, 2)
        held = torch.ones_like(h[:, :1]) if mask is None else mask[:, None].to(h.dtype)
        axes = tuple(range(2, h.ndim))
        mean = (h * held).sum(axes) / held.sum(axes).clamp(min=1)
        return torch.cat([mean, h.masked_fill(held == 0, -1e4).amax(axes)], 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.last(self.dropout(self.features(x, mask)))


def train_judge(
    x: Tensor,
    label: Tensor,
    folder: str | Path,
    mask: Tensor | None = None,
    *,
    steps: int = 600,
    seed: int = 0,
    **shape: Any,
) -> Judge:
    """A judge of x (n, channels, *space) and its labels (n,), trained on nothing else, anew at every call."""
    folder = Path(folder)
    shutil.rmtree(folder.with_name(f"{folder.name}_training"), ignore_errors=True)
    torch.manual_seed(seed)  # of the initial weights, nothing in the library draws from it
    judge = Judge(x.ndim - 2, x.shape[1], int(label.max()) + 1, **shape)
    settings = TrainingSettings(
        seed=seed,
        progress=False,
        steps=steps,
        batch_size=min(64, len(x)),
        learning_rate=2e-3,
        warmup=min(50, steps),
        ema=0.995,
        weight_decay=0.05,
    )
    rows = Arrays(x=x, label=label, **({} if mask is None else {"mask": mask}))
    return fit(judge, Classification(), settings, rows, folder)


@torch.no_grad()
def predicted(judge: Judge, x: Tensor, mask: Tensor | None = None, batch: int = 256) -> Tensor:
    """The likeliest label of every row (n,), a bounded number of rows at a time."""
    judge.eval()
    device = next(judge.parameters()).device
    masks = [None] * len(x.split(batch)) if mask is None else mask.split(batch)
    parts = [
        judge(p.to(device), None if m is None else m.to(device)).argmax(1).cpu()
        for p, m in zip(x.split(batch), masks, strict=True)
    ]
    return torch.cat(parts)


def accuracy(judge: Judge, x: Tensor, label: Tensor, mask: Tensor | None = None) -> float:
    """Share of the rows judged to be their label."""
    return float((predicted(judge, x, mask) == label).double().mean())
