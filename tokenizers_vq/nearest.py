"""The nearest code of every latent, and greedy residual codes, without a table of all distances."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 18  # distances held at a time: they stay in the cache of a core


def half_norms(codebook: Tensor) -> Tensor:
    """|e|^2 / 2 of the codes (..., K, d) -> (..., K)."""
    return codebook.square().sum(-1) / 2


def residual_codes(h: Tensor, codebook: Tensor, norms: Tensor | None = None) -> Tensor:
    """Greedy codes i_j = argmin_c |r_j - e(c; j)|, r_1 = h, r_{j+1} = r_j - e(i_j; j), coarse first.

    argmin of |e|^2 / 2 - r e, one matrix product per piece of latents and level; ties go to the lower code. h (n, d),
    codebook (Q, K, d), norms (Q, K) from `half_norms` -> (n, Q) int64. Q = 1 is plain vector quantisation.
    """
    norms = half_norms(codebook) if norms is None else norms
    depth, size = norms.shape
    codes = torch.empty(len(h), depth, dtype=torch.long, device=h.device)
    for start in range(0, len(h), max(1, PIECE // size)):
        rest = h[start : start + max(1, PIECE // size)]
        for level in range(depth):
            found = torch.addmm(norms[level], rest, codebook[level].T, alpha=-1).argmin(1)
            codes[start : start + len(rest), level] = found
            if level + 1 < depth:
                rest = rest - codebook[level][found]
    return codes


def embed(codes: Tensor, codebook: Tensor) -> Tensor:
    """sum_j e(i_j; j) over the levels that are there: codes (..., Q) int64 with -1 for an absent level -> (..., d).

    Fewer levels than the codebook (Q, K, d) has mean its first ones.
    """
    depth = codes.shape[-1]
    offset = torch.arange(depth, device=codes.device) * codebook.shape[1]
    rows = codebook[:depth].flatten(0, 1)
    found = torch.nn.functional.embedding((codes.clamp(min=0) + offset).flatten(0, -2), rows)
    absent = (codes < 0).flatten(0, -2)[..., None]
    return found.masked_fill(absent, 0).sum(-2).view(*codes.shape[:-1], codebook.shape[-1])
