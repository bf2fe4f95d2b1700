"""The mean of an objective over a data set, with noise that is the same at every evaluation, and its standard error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from discdiff.layout import Layout
from discdiff.noise import Noise
from discdiff.training.data import KeyedRows, keyed_times, loader, unwrapped

if TYPE_CHECKING:
    from discdiff.training.trainer import DiffusionTrainer

Objective = Callable[[nn.Module, Any, Noise, Tensor], tuple[Tensor, dict[str, Tensor]]]
EVALUATION_SEED = 0x45564C  # not the run's: models of different runs are compared on the same noise
ROW_LOSS = "row_loss"
_MOMENTS = ("n", "w", "wx", "w2", "w2x", "w2xx")


@torch.no_grad()
def evaluate_rows(
    objective: Objective,
    model: nn.Module,
    layout: Layout | None,
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
        batch, places = unwrapped(layout, inputs)
        rows, units = len(places), []
        first = keyed_times(EVALUATION_SEED, inputs["epoch"], inputs["rank"])
        for draw in range(draws):
            noise = Noise.training(EVALUATION_SEED, torch.full_like(inputs["id"], draw), inputs["id"], places)
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


def evaluate(trainer: DiffusionTrainer, rows: Any) -> dict[str, float]:
    """Means over a data set, every row counted once, shared out among the ranks; the model keeps its mode.

    Every rank runs as many batches, the last one again where it has fewer.

    Raises ValueError for a data set without a known length, or with fewer rows than ranks.
    """
    args, model, handler = trainer.args, trainer.model, trainer.callback_handler
    if not hasattr(rows, "__len__") or len(rows) < args.world_size:
        raise ValueError("evaluation needs a data set of known length with a row per rank: take a list from a stream")
    mine = [(0, i, i) for i in range(args.process_index, len(rows), args.world_size)]
    size = args.per_device_eval_batch_size
    keys = [mine[i : i + size] for i in range(0, len(mine), size)]
    most = math.ceil(math.ceil(len(rows) / args.world_size) / size)  # sharded networks hang where ranks differ
    batches = loader(args, KeyedRows(rows), batch_sampler=keys + keys[-1:] * (most - len(keys)))
    if not trainer.accelerator._models:  # not trained yet: mixed precision as in training
        model = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    training, handler.eval_dataloader = model.training, batches

    def each() -> None:
        trainer.control = handler.on_prediction_step(args, trainer.state, trainer.control)

    def sums_of(part: Iterable[dict[str, Any]]) -> dict[str, float]:
        return evaluate_rows(trainer.objective, model, trainer.layout, part, trainer.knobs.eval_draws, each)

    moved = map(trainer._prepare_inputs, batches)
    model.eval()
    try:
        sums = sums_of(itertools.islice(moved, len(keys)))
        sums_of(moved)  # the surplus does not count
    finally:
        model.train(training)
    return summary(gather_object([sums]))
