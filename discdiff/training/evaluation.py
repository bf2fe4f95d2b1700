"""The mean of an objective over a data set, with noise that is the same at every evaluation, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from discdiff.layout import Layout, TokenBatch
from discdiff.noise import Noise
from discdiff.training.data import keyed_times, token_batch

Objective = Callable[[nn.Module, TokenBatch, Noise, Tensor], tuple[Tensor, dict[str, Tensor]]]
EVALUATION_SEED = 0x45564C  # not the run's: models of different runs are compared on the same noise
ROW_LOSS = "row_loss"


@dataclass
class Sums:
    """Weighted sums from which a mean and its standard error follow; those of several processes are added."""

    totals: dict[str, float] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def units(self, values: Tensor, weight: float) -> None:
        """Independent values (n,), each the mean of `weight` rows."""
        w, w2, n = weight, weight**2, len(values)
        x = values.double()
        self.add(
            n=n, w=w * n, wx=w * float(x.sum()), w2=w2 * n, w2x=w2 * float(x.sum()), w2xx=w2 * float((x * x).sum())
        )

    def mean_and_error(self) -> tuple[float, float]:
        """m = sum w x / sum w and sqrt(n / (n - 1) sum w^2 (x - m)^2) / sum w; the error of one value alone is nan."""
        s = self.totals
        mean = s["wx"] / s["w"]
        spread = max(s["w2xx"] - 2 * mean * s["w2x"] + mean**2 * s["w2"], 0.0)
        error = math.sqrt(spread * s["n"] / (s["n"] - 1)) / s["w"] if s["n"] > 1 else math.nan
        return mean, error


@torch.no_grad()
def evaluate_rows(
    objective: Objective,
    model: nn.Module,
    layout: Layout,
    batches: Iterable[dict[str, Any]],
    draws: int,
    each: Callable[[], None],
) -> tuple[Sums, dict[str, float]]:
    """Sums of the loss and row-weighted totals of the metrics over collated batches; `each` is called after a batch.

    Row i with draw d has the time (d + v_i) / draws, v_i from the low-discrepancy sequence over rows, and the noise keyed
    by (d, id). If the objective's metrics hold `row_loss` (rows,), the standard error is over rows, otherwise over batches.
    """
    sums, metrics = Sums(), Sums()
    for inputs in batches:
        batch = token_batch(layout, inputs)
        rows = len(batch.tokens)
        first = keyed_times(EVALUATION_SEED, inputs["epoch"], inputs["rank"])
        units: list[Tensor] = []
        for draw in range(draws):
            noise = Noise.training(EVALUATION_SEED, torch.full_like(inputs["id"], draw), inputs["id"], batch.valid)
            loss, extra = objective(model, batch, noise, (draw + first) / draws)
            units.append(extra[ROW_LOSS].reshape(rows) if ROW_LOSS in extra else loss.reshape(1))
            metrics.add(**{k: float(x) * rows / draws for k, x in extra.items() if x.numel() == 1 and k != ROW_LOSS})
        values = torch.stack(units).double().mean(0).cpu()
        sums.units(values, rows / len(values))
        each()
    return sums, metrics.totals
