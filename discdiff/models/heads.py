"""From hidden states to logits and cross-entropy, over the legal ids of each position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.layout import TokenBatch

if TYPE_CHECKING:
    from discdiff.models.network import Network


def cross_entropy(model: Network, hidden: Tensor, batch: TokenBatch, labels: Tensor) -> Tensor:
    """Sum of `-log p(label)` over the labelled positions (label >= 0), in nats, divided by batch * length."""
    loss: Tensor = hidden.sum() * 0.0  # a batch without labels has a graph, too
    for number, index, logits in _by_alphabet(model, hidden, batch, labels != -100):
        target = batch.symbols(labels.reshape(-1)[index], index)
        first, size, extras = batch.layout.alphabets[number]
        banned = batch.layout.banned(number)
        wrong = (target < 0) | (target >= size + len(extras)) | (target == (-1 if banned is None else banned))
        if bool(wrong.any()):
            row, column = divmod(int(index[wrong.nonzero()[0, 0]]), labels.shape[1])
            raise ValueError(
                f"label {int(labels[row, column])} at row {row}, position {column} is illegal: allowed are "
                f"{first}..{first + size - 1} and extras {list(extras)}, without the mask, or -100 for no loss"
            )
        loss = loss + F.cross_entropy(logits, target, reduction="sum")
    return loss / labels.numel()


def logits(model: Network, hidden: Tensor, batch: TokenBatch) -> Tensor:
    """(batch, length, vocab.total), -inf for ids that are illegal at their position; float32 or float64."""
    rows, length = batch.tokens.shape
    out = torch.full((rows * length, model.vocab.total), -torch.inf, dtype=_wide(hidden), device=hidden.device)
    for number, index, values in _by_alphabet(model, hidden, batch, torch.ones_like(batch.valid)):
        first, size, extras = batch.layout.alphabets[number]
        ids = torch.tensor([*range(first, first + size), *extras], device=hidden.device)
        out = out.index_put((index[:, None], ids), values)
    return out.view(rows, length, -1)


def _by_alphabet(
    model: Network, hidden: Tensor, batch: TokenBatch, wanted: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(alphabet, flat sites (n,), logits (n, symbols)) for the positions `wanted` (batch, length) bool."""
    alphabet = batch.layout.tables(wanted.device).alphabet[batch.slot]
    for number, legal in enumerate(batch.layout.alphabets):
        index = (wanted & (alphabet == number)).reshape(-1).nonzero()[:, 0]
        if len(index):
            values = F.linear(model.select(hidden, batch, index), model.head_weight(*legal)).to(_wide(hidden))
            banned = batch.layout.banned(number)
            if banned is not None:
                values = values.index_fill(1, torch.tensor([banned], device=values.device), -torch.inf)
            yield number, index, values


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
