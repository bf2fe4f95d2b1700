"""The continuous twins of a token policy, on the same trunk: parallel regression by L1, and flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.models.blocks import linear
from discdiff.noise import LATENT, Noise

CONTINUOUS = ("parallel", "flow")
NOISY = "noisy"


class ContinuousModel(DiscDiffModel):
    """The library's transformer with a linear map of the last slots to numbers in place of the head of tokens."""

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__(config)
        self.numbers = linear(config.hidden_size, config.max_depth, bias=True)

    def read(self, hidden: Tensor, chunk: int) -> Tensor:
        """Numbers (batch, chunk, dim) of the action slots, the last ones."""
        out: Tensor = self.numbers(hidden[:, -chunk:])
        return out.float()


@dataclass(frozen=True)
class Regression:
    """Mean absolute error of the normalised actions, `features["target"]` (batch, chunk, dim) (OpenVLA-OFT, arXiv 2502.19645);
    flow: the velocity x_1 - x_0 from noise x_1 ~ N(0, 1) to actions x_0, at x_t = t x_1 + (1 - t) x_0, by squared error (flow
    matching, arXiv 2210.02747). Numbers whose positions are not free, such as steps after the end, count nothing; a row without
    any is 0. Metric: `row_loss`, (batch,).
    """

    flow: bool = False

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = batch.features["target"]
        free = batch.free[:, -target[0].numel() :].view(target.shape)
        batch = batch._replace(tokens=torch.where(batch.free, batch.layout.vocab.mask, batch.tokens))
        if self.flow:
            start = noise.normal(LATENT, 1)[:, -target[0].numel() :, 0].view(target.shape).to(target.dtype)
            now = (time[:, None, None] * start + (1 - time[:, None, None]) * target).to(target.dtype)
            batch, target = batch._replace(features={**batch.features, NOISY: now}), start - target

        def head(network: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
            off = network.read(hidden, target.shape[1]) - target
            off = (off.square() if self.flow else off.abs()) * free
            row = off.sum((1, 2)) / free.sum((1, 2)).clamp(min=1)
            return row.mean(), row

        out = model(batch=batch, time=time if self.flow else None, objective=head)
        return out.loss, {"row_loss": out.extras.double()}


@torch.no_grad()
def regressed(model: Any, batch: TokenBatch, known: Tensor, steps: int, seeds: list[int]) -> Tensor:
    """Normalised actions (n, chunk, dim): in one pass, or in `steps` of Euler's method from noise of each row's own seed.

    known (n, k, dim): the first actions, kept; flow is led along the straight line from its noise to them.
    """
    slots = batch.layout.segments[-1].slots
    shape = (len(batch.tokens), slots, batch.layout.depth(batch.layout.segments[-1]))
    known, k = known.to(batch.tokens.device), known.shape[1]
    if not model.config.time_conditioning:
        checked("steps", steps, steps == 1, "regression has one")
        x = model.read(model(batch=batch).hidden, slots)
        return torch.cat([known, x[:, k:]], 1).cpu()
    noise = Noise.seeded(seeds, batch.valid)
    start = noise.normal(LATENT, 1)[:, -slots * shape[2] :, 0].reshape(shape).float()
    x, grid = start, torch.linspace(1, 0, steps + 1)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        x = torch.cat([t * start[:, :k] + (1 - t) * known, x[:, k:]], 1)
        told = batch._replace(features={**batch.features, NOISY: x})
        velocity = model.read(model(batch=told, time=torch.full((len(x),), t, device=x.device)).hidden, slots)
        x = x + (s - t) * velocity
    return torch.cat([known, x[:, k:]], 1).cpu()
