"""The mean of an objective over a data set, with noise that is the same at every evaluation, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from discdiff.layout import Layout, TokenBatch
from discdiff.noise import Noise
from discdiff.training.data import keyed_times, token_batch

Objective = Callable[[nn.Module, TokenBatch, Noise, Tensor], tuple[Tensor, dict[str, Tensor]]]
EVALUATION_SEED = 0x45564C  # not the run's: models of different runs are compared on the same noise
ROW_LOSS = "row_loss"
_MOMENTS = ("n", "w", "wx", "w2", "w2x", "w2xx")


@torch.no_grad()
def evaluate_rows(
    objective: Objective,
    model: nn.Module,
    layout: Layout,
    batches: Iterable[dict[str, Any]],
    draws: int,
    each: Callable[[], None],
) -> dict[str, float]:
    """Sums over collated batches, for `summary`; `each` is called after a batch.

    Row i has at draw d the time (d + v_i) / draws, v_i from the low-discrepancy sequence over rows, and the noise keyed
    by (d, id). If the objective's metrics hold `row_loss` (rows,), the standard error is over rows, otherwise over batches.
    """
    sums = dict.fromkeys(_MOMENTS, 0.0)
    for inputs in batches:
        batch = token_batch(layout, inputs)
        rows, units = len(batch.tokens), []
        first = keyed_times(EVALUATION_SEED, inputs["epoch"], inputs["rank"])
        for draw in range(draws):
            noise = Noise.training(EVALUATION_SEED, torch.full_like(inputs["id"], draw), inputs["id"], batch.valid)
            loss, metrics = objective(model, batch, noise, (draw + first) / draws)
            units.append(metrics[ROW_LOSS].reshape(rows) if ROW_LOSS in metrics else loss.reshape(1))
            for name, x in metrics.items():
                if name != ROW_LOSS and x.numel() == 1:
                    sums[f"sum {name}"] = sums.get(f"sum {name}", 0.0) + float(x) * rows / draws
        x = torch.stack(units).double().mean(0).cpu()
        w = rows / len(x)  # rows that one independent value stands for
        moments = (len(x), w * len(x), w * float(x.sum()), w**2 * len(x), w**2 * float(x.sum()), w**2 * float(x @ x))
        for name, value in zip(_MOMENTS, moments, strict=True):
            sums[name] += value
        each()
    return sums


def summary(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Means of loss and metrics from the sums of all processes, and `loss_error`, the loss's standard error.

    m = sum w x / sum w and sqrt(n / (n - 1) sum w^2 (x - m)^2) / sum w over n independent values; nan for a single one.
    """
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    n, w, wx, w2, w2x, w2xx = (total.pop(name) for name in _MOMENTS)
    mean = wx / w
    spread = max(w2xx - 2 * mean * w2x + mean**2 * w2, 0.0)
    error = math.sqrt(spread * n / (n - 1)) / w if n > 1 else math.nan
    return {"loss": mean, "loss_error": error, **{name.removeprefix("sum "): x / w for name, x in total.items()}}
