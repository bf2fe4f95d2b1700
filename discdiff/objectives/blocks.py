"""Block diffusion's objective: every block noised on its own, given the clean blocks before it, in one forward pass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from discdiff.clocks import Shared
from discdiff.layout import Layout, TokenBatch
from discdiff.noise import Noise
from discdiff.objectives.elbo import Elbo

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class BlockTimes:
    """Training times of a block-causal layout: block b at t + b / phi (mod 1), moved into [time_min, 1].

    A stratified t is thus stratified in every block, and spread over a row's blocks. Positions that are not noised, the
    clean copy among them, are at 0.
    """

    time_min: float = 0.0

    def __call__(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        block = batch.layout.tables(batch.tokens.device).span[batch.slot]
        start = torch.as_tensor(t, dtype=torch.float64, device=block.device).reshape(-1, 1)
        time = self.time_min + (1 - self.time_min) * ((start + block * _GOLDEN) % 1.0)
        return torch.where(batch.noisable, time, 0.0)

    def rate(self, batch: TokenBatch, t: float | Tensor) -> Tensor:
        return torch.ones(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)


@dataclass(frozen=True)
class BlockElbo:
    """Sum over blocks b of the bound on -log p(x_b | x_<b), for rows of a block-causal layout (arXiv 2503.09573, eq. 8).

    The network sees [noised copy | clean copy] (`Layout.doubled`), twice the row, as sampling with `BlockCached` does
    block by block. `elbo` says which process and what is predicted. Loss and metrics are those of `Elbo`, per position
    of the row; `nats` is complete for schedules that start clean, up to the cut `elbo.time_min`. Raises ValueError for
    an elbo with a clock, a masker or a shift, and for a layout without blocks.
    """

    elbo: Elbo = field(default_factory=Elbo)

    def __post_init__(self) -> None:
        if self.elbo.clock != Shared() or self.elbo.masker is not None or self.elbo.shift:
            raise ValueError(
                f"{self.elbo}: blocks have times of their own and are predicted in place, leave clock, masker and shift out"
            )

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pair = doubled(batch)
        twice = Noise(noise.key, noise.position.repeat(1, 2))
        elbo = replace(self.elbo, clock=BlockTimes(self.elbo.time_min), time_min=0.0)
        loss, metrics = elbo(model, pair, twice, time)
        return 2 * loss, {**metrics, "row_loss": 2 * metrics["row_loss"]}  # the clean copy carries no loss


def doubled(batch: TokenBatch) -> TokenBatch:
    """Rows of a block-causal layout as rows [noised copy | clean copy] of its doubled layout, not noised yet.

    Raises ValueError for a layout without blocks.
    """
    if not batch.layout.block or batch.layout.is_doubled:
        raise ValueError(
            f"attention {batch.layout.attention!r}, is_doubled={batch.layout.is_doubled}: block diffusion trains on "
            "rows of a layout with attention='block_causal' and a block size"
        )
    layout = _twin(batch.layout)
    tokens, valid, sample = (torch.cat([x, x], 1) for x in (batch.tokens, batch.valid, batch.sample))
    given = torch.cat([batch.given, torch.ones_like(batch.given)], 1)
    slot = torch.cat([batch.slot, batch.slot + layout.sequence], 1)
    return TokenBatch(layout, tokens, valid, given, slot, sample, batch.unrestricted, batch.features)


@functools.lru_cache(maxsize=64)
def _twin(layout: Layout) -> Layout:
    """The doubled layout, made once, as its tables are."""
    return layout.doubled(layout.block)
