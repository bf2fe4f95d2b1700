"""One draw per site from logits by inverse CDF, with the statistics that orders rank by, in one pass over the logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STATISTICS = ("confidence", "margin", "entropy")
_BLOCK = 256


class Drawn(NamedTuple):
    """Draws at n sites: tokens (n,) int64, log_prob (n,) of the drawn tokens, statistic (n,) if one was asked for."""

    tokens: Tensor
    log_prob: Tensor
    statistic: Tensor | None = None


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """First column whose cumulated weight exceeds uniform * total, `(n, K), (n,) -> (n,)`; never one of weight 0.

    Two levels: block sums in float64, then one block's cumulated sum, so that a wide row costs one pass and no
    float64 copy of it. A single 53-bit uniform decides, which keeps rare tokens that float32 noise would lose.
    """
    n, width = weights.shape
    if width <= _BLOCK:
        return _first_above(weights.double().cumsum(-1), uniform)
    blocks = -(-width // _BLOCK)
    padded = weights if width == blocks * _BLOCK else torch.nn.functional.pad(weights, (0, blocks * _BLOCK - width))
    table = padded.view(n, blocks, _BLOCK)
    cumulated = table.sum(-1, dtype=torch.float64).cumsum(-1)
    block = _first_above(cumulated, uniform)
    row = torch.arange(n, device=weights.device)
    inside = table[row, block].double().cumsum(-1)
    before = torch.where(block > 0, cumulated[row, (block - 1).clamp(min=0)], 0.0)
    rest = (uniform * cumulated[:, -1] - before) / inside[:, -1]
    return block * _BLOCK + _first_above(inside, rest.clamp(0, 1))


def _first_above(cumulated: Tensor, uniform: Tensor) -> Tensor:
    total = cumulated[:, -1:]
    target = torch.minimum(uniform[:, None] * total, total * (1 - 2.0**-52))  # rounding must not pass the last weight
    return torch.searchsorted(cumulated, target, right=True)[:, 0]


def draw(logits: Tensor, uniform: Tensor, statistic: str | None = None) -> Drawn:
    """Columns drawn from softmax(logits), `(n, K), (n,) -> Drawn`, in the logits' own precision (float32 or float64)."""
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp()
    total = weights.sum(-1, dtype=torch.float64)
    columns = inverse_cdf(weights, uniform)
    log_prob = (logits.gather(-1, columns[:, None]) - top)[:, 0].double() - total.log()
    found = None if statistic is None else _statistic(logits, top, weights, total, statistic)
    return Drawn(columns, log_prob, found)


def rank(logits: Tensor, statistic: str) -> Tensor:
    """How sure a prediction is, `(n, K) -> (n,)` float64, higher is surer: max p, p1 - p2, or -entropy in nats."""
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp()
    return _statistic(logits, top, weights, weights.sum(-1, dtype=torch.float64), statistic)


def _statistic(logits: Tensor, top: Tensor, weights: Tensor, total: Tensor, statistic: str) -> Tensor:
    if statistic == "confidence":
        return 1 / total  # the largest weight is exp(0)
    if statistic == "margin":
        best = weights.topk(min(2, weights.shape[-1]), -1).values.double()
        return (best[:, 0] - best[:, -1]) / total if best.shape[-1] > 1 else torch.ones_like(total)
    if statistic == "entropy":
        shifted = torch.where(weights > 0, logits - top, 0.0)
        return (weights * shifted).sum(-1, dtype=torch.float64) / total - total.log()
    raise ValueError(f"unknown statistic {statistic!r}: choose from {', '.join(STATISTICS)}")
