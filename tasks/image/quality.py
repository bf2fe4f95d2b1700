"""How well pictures come back, beside what needs no codes: the mean picture, and the nearest training picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.image import from_bytes
from tokenizers_vq.metrics import code_counts, perplexity, usage
from tokenizers_vq.nearest import residual_codes

BATCH = 128


class Items:
    """uint8 pictures, and what else belongs to each, as rows for training; pictures become floats one by one."""

    def __init__(self, x: Tensor, **columns: Tensor) -> None:
        self.x, self.columns = x, columns

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": from_bytes(self.x[index]), **{name: c[index] for name, c in self.columns.items()}}


def batches(x: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """uint8 pictures as floats in [-1, 1], some at a time."""
    return (from_bytes(part) for part in x.split(size))


def encode(tokenizer: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Codes (n, slots, depth) of uint8 pictures and the grid of their slots."""
    outs = [tokenizer.encode(part.to(tokenizer.device)) for part in batches(x)]
    return torch.cat([out.codes.cpu() for out in outs]), outs[0].grid


def decode(tokenizer: Any, codes: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Pictures in [-1, 1] of codes, some at a time."""
    parts = codes.split(BATCH)
    return torch.cat([tokenizer.decode(part.to(tokenizer.device), grid).cpu() for part in parts])


def error(x: Tensor, y: Tensor) -> float:
    """Root mean square error as a share of the range: x uint8, y in [-1, 1], both (n, channels, height, width)."""
    total = sum(
        float((from_bytes(a) - b).square().sum(dtype=torch.float64)) for a, b in zip(x.split(512), y.split(512))
    )
    return (total / x.numel()) ** 0.5 / 2


def code_figures(codes: Tensor, size: int) -> dict[str, float]:
    """Use of the codes, mean over levels: share that occur, share that occur 10 times, perplexity, codes never used."""
    counts = code_counts(codes, size)
    return {
        "usage": float(usage(counts).mean()),
        "usage_10": float(usage(counts, 10).mean()),
        "perplexity": float(perplexity(counts).mean()),
        "dead_codes": float((counts == 0).sum(-1).double().mean()),
    }


def baselines(train: Tensor, x: Tensor) -> dict[str, float]:
    """Errors of the mean training picture and of the nearest training picture in the place of each x."""
    flat, wanted = from_bytes(train).flatten(1), from_bytes(x).flatten(1)
    nearest = flat[residual_codes(wanted, flat[None])[:, 0]].view(x.shape)
    mean = flat.mean(0).view(1, *x.shape[1:]).expand(x.shape)
    return {"error_mean_picture": error(x, mean), "error_nearest_picture": error(x, nearest)}


def figures(tokenizer: Any, train: Tensor, x: Tensor, compared: int = 500) -> tuple[dict[str, float], Tensor, Tensor]:
    """All figures on pictures x, their reconstructions and codes; baselines on the first `compared` of them."""
    codes, grid = encode(tokenizer, x)
    y = decode(tokenizer, codes, grid)
    off = error(x, y)
    found = {"error": off, "psnr": -20 * torch.log10(torch.tensor(max(off, 1e-12))).item()}
    found |= code_figures(codes, tokenizer.codebook_size)
    found |= {
        "bits_per_pixel": codes[0].numel() * torch.log2(torch.tensor(tokenizer.codebook_size)).item() / x[0, 0].numel()
    }
    if train.shape[1:] == x.shape[1:]:
        found |= baselines(train, x[:compared])
    return found, y, codes
