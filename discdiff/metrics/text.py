"""The diversity of samples of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(samples: Tensor, n: int) -> float:
    """Share of distinct n-grams among all n-grams of the rows (batch, length); 1 is no repetition (arXiv 1510.03055)."""
    if not 1 <= n <= samples.shape[1]:
        raise ValueError(f"{n}-grams of rows of length {samples.shape[1]}: choose 1 <= n <= length")
    grams = samples.unfold(1, n, 1).reshape(-1, n)
    return len(torch.unique(grams, dim=0)) / len(grams)


def unigram_entropy(samples: Tensor) -> float:
    """Mean over rows of the entropy of a row's own token counts, nats: the collapse that judged likelihood hides."""
    counts = torch.stack([torch.bincount(row, minlength=int(samples.max()) + 1) for row in samples]).double()
    p = counts / counts.sum(1, keepdim=True)
    return float(-torch.xlogy(p, p).sum(1).mean())
