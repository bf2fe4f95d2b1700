"""Likelihood bounds with their standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from discdiff.layout import TokenBatch
from discdiff.noise import Noise, row_seeds
from discdiff.objectives import BlockElbo, Elbo

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Estimate:
    """mean in nats per row, its standard error over rows, and how many rows and draws made it."""

    mean: float
    stderr: float
    rows: int
    draws: int

    def per(self, units: float) -> float:
        """Nats per unit, for rows of `units` units on average."""
        return self.mean / units

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.stderr:.4f} nats per row ({self.rows} rows, {self.draws} draws)"


@torch.no_grad()
def nelbo(
    model: Any,
    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    batches: Iterable[TokenBatch],
    *,
    draws: int = 1,
    seed: int = 0,
) -> Estimate:
    """The objective's `nats` over rows: the complete negative evidence bound of an `Elbo`, the exact NLL of an
    `Autoregressive`. Noise is keyed by (seed, draw, row number), times are stratified over rows and draws.

    An `Elbo` is evaluated without its training cut `time_min`, and with the reconstruction term where its schedule does
    not start clean; a `BlockElbo` without its cut, complete for schedules that start clean. With a masker it is the
    masker's weighted nats, which bound the likelihood for `FixedCount(elbo=True)` and for `Bernoulli` from clean to
    nothing, not in general. Raises ValueError for draws < 1 or no rows.
    """
    means, first = [], 0
    for batch in batches:
        rows = torch.arange(first, first + len(batch.tokens))
        first += len(batch.tokens)
        means.append(row_nats(model, objective, batch, rows, draws=draws, seed=seed))
    if not means:
        raise ValueError("no rows to evaluate")
    return estimate(torch.cat(means))


@torch.no_grad()
def row_nats(model: Any, objective: Any, batch: TokenBatch, rows: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """`nelbo`'s values (batch, draws) in nats of the rows numbered `rows` (batch,). Raises ValueError for draws < 1."""
    if draws < 1:
        raise ValueError(f"{draws} draws: at least 1 is needed")
    if isinstance(objective, Elbo):
        objective = replace(objective, time_min=0.0 if objective.masker is not None else 1e-6)
    elif isinstance(objective, BlockElbo):
        objective = replace(objective, elbo=replace(objective.elbo, time_min=1e-6))
    found, rows = [], rows.to(batch.tokens.device)
    for draw in range(draws):
        noise = Noise.training(seed, torch.full_like(rows, draw), rows, batch.valid)
        time = torch.frac((rows * draws + draw + 1).double() * _GOLDEN + float(row_uniform(seed)))
        nats = objective(model, batch, noise, time)[1]["nats"].double()
        found.append(nats + (reconstruction(model, objective, batch, noise) if isinstance(objective, Elbo) else 0.0))
    return torch.stack(found, 1)


def estimate(nats: Tensor) -> Estimate:
    """Mean over rows of values (rows, draws), with its standard error over rows."""
    each = nats.mean(1)
    spread = float(each.std()) if len(each) > 1 else math.inf
    return Estimate(float(each.mean()), spread / math.sqrt(len(each)), *nats.shape)


def reconstruction(model: Any, objective: Elbo, batch: TokenBatch, noise: Noise) -> Tensor:
    """-log p(x0 | x_0+) of each row in nats, (batch,): 0 unless the schedule starts with some noise already."""
    nothing = torch.zeros(len(batch.tokens), dtype=torch.float64, device=batch.tokens.device)
    clean = torch.zeros(1, dtype=torch.float64)
    if objective.masker is not None or all(
        float(part.marginal(clean, 2).keep) > 1 - 1e-12 for _, part in objective.parts(batch)
    ):
        return nothing
    tokens, when, _ = objective.corrupt(batch, noise.child(1), nothing)
    noisy = batch._replace(tokens=tokens)

    def head(network: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return objective.reconstruct(network, hidden, batch, noisy, when)

    return model(batch=noisy, time=when, objective=head).extras


def row_uniform(seed: int) -> Tensor:
    """One keyed uniform, the offset of a stratified sequence."""
    return Noise.seeded(row_seeds(seed, 1), torch.ones(1, 1, dtype=torch.bool)).uniform(4)[0, 0]
