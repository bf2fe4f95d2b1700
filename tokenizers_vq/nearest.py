"""The nearest code of every latent, and greedy residual codes, without a table of all distances."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 18  # distances held at a time where that is many rows: they stay in the cache of a core
ROWS, MOST = 256, 1 << 22  # a product of fewer rows is slow, so large codebooks hold more, up to MOST
ACCELERATOR = 1 << 26  # where a launch costs more than the cache saves


def half_norms(codebook: Tensor) -> Tensor:
    """|e|^2 / 2 of the codes (..., K, d) -> (..., K)."""
    return codebook.square().sum(-1) / 2


def piece_rows(size: int, device: torch.device) -> int:
    """Latents whose distances to `size` codes are held at a time."""
    if device.type != "cpu":
        return max(1, ACCELERATOR // size)
    return max(1, PIECE // size, min(ROWS, MOST // size))


@torch.no_grad()
def residual_codes(h: Tensor, codebook: Tensor, norms: Tensor | None = None) -> Tensor:
    """Greedy codes i_j = argmin_c |r_j - e(c; j)|, r_1 = h, r_{j+1} = r_j - e(i_j; j), coarse first.

    argmin of |e|^2 / 2 - r e, one matrix product per piece of latents and level; ties go to the lower code. h (n, d),
    codebook (Q, K, d), norms (Q, K) from `half_norms` -> (n, Q) int64. Q = 1 is plain vector quantisation.
    """
    norms = half_norms(codebook) if norms is None else norms
    depth, size = norms.shape
    codes = torch.empty(len(h), depth, dtype=torch.long, device=h.device)
    rows = piece_rows(size, h.device)
    for start in range(0, len(h), rows):
        rest = h[start : start + rows]
        for level in range(depth):
            # min: as argmin the first of equal ones, and a fifth faster
            found = torch.addmm(norms[level], rest, codebook[level].T, alpha=-1).min(1).indices
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
