"""How a codebook is used, and how far a reconstruction is off."""

from __future__ import annotations

import torch
from torch import Tensor


def code_counts(codes: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """How often each code occurs, per level: codes (batch, slots, depth), -1 left out -> (depth, size) int64."""
    flat = codes if mask is None else codes.masked_fill(~mask[..., None], -1)
    flat = flat.flatten(0, -2) + 1
    depth = codes.shape[-1]
    offset = torch.arange(depth, device=codes.device) * (size + 1)
    return torch.bincount((flat + offset).flatten(), minlength=depth * (size + 1)).view(depth, size + 1)[:, 1:]


def usage(counts: Tensor, least: int = 1) -> Tensor:
    """Share of the codes that occur at least `least` times, (depth, size) -> (depth,); VQ-DDM (arXiv 2112.01799) takes 10."""
    return (counts >= least).double().mean(-1)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the codes' shares, in [1, size], (depth, size) -> (depth,)."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(-1).exp()


def signal_to_noise(x: Tensor, reconstruction: Tensor) -> Tensor:
    """10 log10(|x|^2 / |x - y|^2) in decibel, per row (batch, ...) -> (batch,)."""
    x, y = x.flatten(1).double(), reconstruction.flatten(1).double()
    return 10 * torch.log10(x.square().sum(1) / (x - y).square().sum(1).clamp(min=1e-30))
