"""From hidden states to nats, at chosen positions only and over their legal ids only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from discdiff.layout import TokenBatch
from discdiff.objectives.linear_cross_entropy import linear_cross_entropy
from discdiff.processes import Process

_CACHE_BYTES, _CHUNK_BYTES, _LEAST_ROWS = 1 << 20, 64 << 20, 16

Part = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(hidden (n, width), head (K, width), sites (n,), alphabet) -> (loss scalar, weighted nats (n,))."""


def gather(
    model: Any, hidden: Tensor, batch: TokenBatch, sites: Tensor, shift: bool, part: Part
) -> tuple[Tensor, Tensor]:
    """Sum of `part` over the bool `sites` (batch, length), one alphabet at a time: loss scalar and nats of each row."""
    rows, length = batch.tokens.shape
    loss: Tensor = hidden[:0].sum()  # zero that keeps the graph of a batch in which nothing is hidden
    nats = torch.zeros(rows, dtype=torch.float64, device=hidden.device)
    for alphabet, index in _by_alphabet(batch, sites):
        chosen = model.select(hidden, batch, index, shift=shift)
        piece, each = part(chosen, model.head_weight(*batch.layout.alphabets[alphabet]), index, alphabet)
        loss = loss + piece
        nats.index_add_(0, torch.div(index, length, rounding_mode="floor"), each.detach().double())
    return loss, nats


def cross_entropy(batch: TokenBatch, weight: Tensor) -> Part:
    """weight * -log p(token) with the tokens of `batch` as targets, weight (batch, length)."""

    def part(hidden: Tensor, head: Tensor, index: Tensor, alphabet: int) -> tuple[Tensor, Tensor]:
        scale = weight.reshape(-1)[index]
        banned = batch.layout.banned(alphabet)
        columns = None if banned is None else torch.tensor([banned], device=hidden.device)
        target = batch.symbols(batch.tokens.reshape(-1)[index], index)
        loss, nats = linear_cross_entropy(hidden, head, target, row_weights=scale.to(_real(hidden)), banned=columns)
        return loss, nats.double() * scale

    return part


def density(
    batch: TokenBatch,
    noisy: TokenBatch,
    process: Process,
    when: Tensor,
    weight: Tensor,
    kind: str,
    auxiliary: float = 0.0,
    adaptive: bool = False,
) -> Part:
    """weight * process.loss; to the loss alone also auxiliary * -log p(x0 | x_t), weighted alike; adaptive: times 2 - t."""

    def value(log_x0: Tensor, x0: Tensor, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        time, scale = when.reshape(-1)[index], weight.reshape(-1)[index]
        nats = process.loss(log_x0, x0, x, time, kind) * scale
        if not auxiliary:
            return nats, nats
        more = auxiliary * scale * (2 - time if adaptive else 1.0)
        return nats + more * process.reconstruction(log_x0, x0, x, time, kind), nats

    return predicted(batch, noisy, value)


def reconstruction(batch: TokenBatch, noisy: TokenBatch, process: Process, when: Tensor, kind: str) -> Part:
    """process.reconstruction, -log p(x0 | x_t)."""

    def value(log_x0: Tensor, x0: Tensor, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nats = process.reconstruction(log_x0, x0, x, when.reshape(-1)[index], kind)
        return nats, nats

    return predicted(batch, noisy, value)


def predicted(batch: TokenBatch, noisy: TokenBatch, value: Callable[..., tuple[Tensor, Tensor]]) -> Part:
    """`value(log_x0 (n, K), x0, x, sites)`: loss (n,) and nats (n,), in bounded chunks."""

    def part(hidden: Tensor, head: Tensor, index: Tensor, alphabet: int) -> tuple[Tensor, Tensor]:
        x0, x = (b.symbols(b.tokens.reshape(-1)[index], index) for b in (batch, noisy))
        banned = batch.layout.banned(alphabet)

        def piece(h: Tensor, w: Tensor, at: slice) -> tuple[Tensor, Tensor]:
            logits = (h @ w.T).to(_real(h))
            if banned is not None:
                logits = logits.index_fill(1, torch.tensor([banned], device=h.device), -torch.inf)
            loss, nats = value(logits.log_softmax(-1), x0[at], x[at], index[at])
            return loss.sum(), nats

        return _Chunks.apply(hidden, head, piece, torch.is_grad_enabled())  # type: ignore[no-untyped-call, no-any-return]

    return part


class _Chunks(torch.autograd.Function):
    """`piece(hidden[rows], head, rows)` of all rows: losses summed, nats joined; its backward pass runs chunk by chunk with it.

    What is as wide as the alphabet then never outlives its chunk, which on a CPU fits into its cache.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, piece: Callable[..., tuple[Tensor, Tensor]], learns: bool
    ) -> tuple[Tensor, Tensor]:
        wanted = [n for n in (0, 1) if learns and ctx.needs_input_grad[n]]
        grads: list[Any] = [None, None]
        if wanted:
            grads = [torch.empty_like(hidden), torch.zeros_like(head, dtype=_real(head))]
        losses, nats = [], []
        rows = max(_LEAST_ROWS, (_CACHE_BYTES if hidden.device.type == "cpu" else _CHUNK_BYTES) // (8 * len(head)))
        for start in range(0, len(hidden), rows):
            at = slice(start, start + rows)
            inputs = [hidden[at].detach(), head.detach()]
            for n in wanted:
                inputs[n].requires_grad_()
            with torch.set_grad_enabled(bool(wanted)):
                loss, each = piece(*inputs, at)
            for n, grad in zip(
                wanted, torch.autograd.grad(loss, [inputs[n] for n in wanted]) if wanted else (), strict=True
            ):
                if n == 0:
                    grads[0][at] = grad
                else:
                    grads[1] += grad
            losses.append(loss.detach())
            nats.append(each.detach())
        ctx.save_for_backward(*(grads[n].to((hidden, head)[n].dtype) if n in wanted else None for n in (0, 1)))
        joined = torch.cat(nats)
        ctx.mark_non_differentiable(joined)
        return torch.stack(losses).sum(), joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, head = (None if grad is None else grad * loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return hidden, head, None, None


def _by_alphabet(batch: TokenBatch, sites: Tensor) -> Iterator[tuple[int, Tensor]]:
    drawn, tables = batch.layout.drawn, batch.layout.tables(sites.device)
    for alphabet in drawn:
        here = sites if len(drawn) == 1 else sites & (tables.alphabet[batch.slot] == alphabet)
        index = here.reshape(-1).nonzero()[:, 0]
        if len(index):
            yield alphabet, index


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
