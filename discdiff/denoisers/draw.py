"""One draw per site from logits by inverse CDF, with the statistics that orders rank by, in one pass over the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

STATISTICS = ("confidence", "margin", "entropy")
LOG_PROBS = "log_probs"  # the whole row as a statistic, (n, K) float32
Statistic = Callable[[Tensor, Tensor], Tensor]
"""A statistic beside the named ones, hashable: (weights (n, K), totals (n,)) -> (n,) float64, higher is surer, of the law
weights / total."""
_NARROW, _BLOCK = 256, 128  # columns up to which a row is cumulated whole, and columns of a block of a wider one
_PIECE = 1 << 20  # bytes that stay in a CPU's cache while several passes are made over them


class Drawn(NamedTuple):
    """Draws at n sites: tokens (n,) int64, log_prob (n,) of the drawn tokens, and the statistics asked for, (n,) each."""

    tokens: Tensor
    log_prob: Tensor
    statistics: Mapping[str, Tensor] = MappingProxyType({})


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """First column whose cumulated weight exceeds uniform * total, `(n, K), (n,) -> (n,)`; never one of weight 0.

    Two levels: sums of blocks in the weights' own precision, cumulated in float64, then one block's cumulated sum, so
    that a wide row is read once and never copied. A single 53-bit uniform decides, which keeps rare tokens that float32
    noise would lose.
    """
    return _find(weights, _cumulated(weights), uniform)


def _cumulated(weights: Tensor) -> Tensor:
    """Float64 cumulated sums of a narrow row's columns, or of a wide row's blocks."""
    width = weights.shape[1]
    if width <= _NARROW:
        return weights.double().cumsum(-1)
    whole = width - width % _BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    if whole < width:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    return sums.double().cumsum(-1)


def _find(weights: Tensor, cumulated: Tensor, uniform: Tensor) -> Tensor:
    width = weights.shape[1]
    block = _first_above(cumulated, uniform)
    if width <= _NARROW:
        return block
    ends = torch.stack([block - 1, block], 1)  # of the block before, and of this one
    low, high = torch.where(ends < 0, 0.0, cumulated.gather(1, ends.clamp(min=0))).unbind(1)
    column = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, column.clamp(max=width - 1)).double().where(column < width, 0.0).cumsum(-1)
    rest = (uniform * cumulated[:, -1] - low) / (high - low)
    return block * _BLOCK + _first_above(inside, rest.clamp(0, 1))


def _first_above(cumulated: Tensor, uniform: Tensor) -> Tensor:
    total = cumulated[:, -1:]
    target = torch.minimum(uniform[:, None] * total, total * (1 - 2.0**-52))  # rounding must not pass the last weight
    return torch.searchsorted(cumulated, target, right=True)[:, 0]


@torch.no_grad()
def draw(
    logits: Tensor,
    uniform: Tensor,
    statistics: Sequence[Any] = (),
    temperature: float = 1.0,
    owned: bool = False,
) -> Drawn:
    """Columns drawn from softmax(logits / temperature), `(n, K), (n,) -> Drawn`, in the logits' own precision (float32 or
    float64); 0 is the arg-max. The log probabilities and statistics are those of softmax(logits), whatever the temperature.
    statistics: names, LOG_PROBS, or a `Statistic`, all keys of the result. owned: the logits may be overwritten, which spares
    a copy as wide as the vocabulary.
    """
    again = temperature not in (0, 1) or any(name in (LOG_PROBS, "entropy") for name in statistics)
    shifted = logits if owned else torch.empty_like(logits)
    weights = torch.empty_like(logits) if again else shifted
    sums: list[Tensor] = []
    best: list[Any] = []
    for piece, low, weight in zip(*(_pieces(x) for x in (logits, shifted, weights)), strict=True):
        top, column = _arg_max(piece) if temperature == 0 else (piece.amax(-1, keepdim=True), None)
        torch.exp(torch.sub(piece, top, out=low), out=weight)
        sums.append(_cumulated(weight))
        best.append(column)
    cumulated = torch.cat(sums) if len(sums) > 1 else sums[0]
    total = cumulated[:, -1]
    if temperature == 0:
        columns = torch.cat(best)
    elif temperature == 1:
        columns = _find(weights, cumulated, uniform)
    else:
        columns = inverse_cdf((shifted / temperature).exp_(), uniform)
    chosen = shifted.gather(-1, columns[:, None])[:, 0].double()
    log_prob = (chosen if again else chosen.log()) - total.log()
    return Drawn(columns, log_prob, {name: _statistic(shifted, weights, total, name) for name in statistics})


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, _PIECE // (x.shape[1] * x.element_size()))) if x.device.type == "cpu" else (x,)


def _arg_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value (n, 1) and its lowest column (n,); of a wide row the best block first, then the best inside it."""
    width = logits.shape[1]
    if width <= _NARROW:
        top, column = logits.max(-1, keepdim=True)
        return top, column[:, 0]
    whole = width - width % _BLOCK
    tops = logits[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole < width:
        tops = torch.cat([tops, logits[:, whole:].amax(-1, keepdim=True)], 1)
    top, block = tops.max(-1, keepdim=True)
    column = block * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    inside = logits.gather(1, column.clamp(max=width - 1)).where(column < width, -torch.inf)
    return top, block[:, 0] * _BLOCK + inside.argmax(-1)


def candidates(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """k columns of every row and their log probabilities, `(n, K), (n, k) -> (n, k), (n, k)`, from one pass over the logits.

    Column j is the one `draw` gives for uniform j; the log probabilities are those of the law drawn from,
    softmax(logits / temperature).
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand(uniform.shape), torch.zeros_like(uniform)
    top = logits.amax(-1, keepdim=True)
    shifted = logits - top if temperature == 1 else (logits - top) / temperature
    weights = shifted.exp()
    cumulated = _cumulated(weights)
    columns = torch.stack([_find(weights, cumulated, u) for u in uniform.unbind(1)], 1)
    return columns, shifted.gather(-1, columns).double() - cumulated[:, -1:].log()


def rank(logits: Tensor, statistic: str | Statistic) -> Tensor:
    """How sure a prediction is, `(n, K) -> (n,)` float64, higher is surer: max p, p1 - p2, -entropy in nats, or a `Statistic`.

    "log_probs" is the whole row (n, K), float32.
    """
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    return _statistic(shifted, weights, _cumulated(weights)[:, -1], statistic)


def _statistic(shifted: Tensor, weights: Tensor, total: Tensor, statistic: str | Statistic) -> Tensor:
    if not isinstance(statistic, str):
        return statistic(weights, total)
    if statistic == "confidence":
        return 1 / total  # the largest weight is exp(0)
    if statistic == "margin":
        best = weights.topk(min(2, weights.shape[-1]), -1).values.double()
        return (best[:, 0] - best[:, -1]) / total if best.shape[-1] > 1 else torch.ones_like(total)
    if statistic == "entropy":
        finite = torch.where(weights > 0, shifted, 0.0)
        return (weights * finite).sum(-1, dtype=torch.float64) / total - total.log()
    if statistic == LOG_PROBS:
        return (shifted - total.log()[:, None]).float()
    raise ValueError(f"unknown statistic {statistic!r}: choose from {', '.join((*STATISTICS, LOG_PROBS))}")
