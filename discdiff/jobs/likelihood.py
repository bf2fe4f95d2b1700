"""Likelihood jobs: the bound of many rows, on one process or many.

torchrun --nproc_per_node 8 score.py         # a script that calls run_likelihood_job(model, objective, batch, "out")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.jobs.fingerprints import network, plain, source
from discdiff.jobs.shards import Rows, batch_of, check_counts, check_rows, evaluating, read_job, run_shards
from discdiff.layout import TokenBatch
from discdiff.metrics import Estimate, estimate, row_nats


def run_likelihood_job(
    model: Any,
    objective: Any,
    rows: Rows,
    folder: str | Path,
    *,
    count: int = 0,
    draws: int = 1,
    seed: int = 0,
    shard: int = 64,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> None:
    """Evaluate rows 0..count-1 into `folder`, `shard` rows per Parquet file: columns row and nats, a list of `draws` values.

    The values are those of `metrics.nelbo` over the same rows with the same seed: noise is keyed by (seed, draw, row), times
    by row and draw. rows: a batch, or a function from row numbers (n,) to their batch; count: 0 for all of a batch.
    Sharing out, going on, interruption, `settings` and errors as of `run_job`.
    """
    count = len(rows.tokens) if isinstance(rows, TokenBatch) and count == 0 else count
    check_counts(count, shard, seed)
    check_rows(rows, count)
    checked("draws", draws, type(draws) is int and draws >= 1, "at least one per row")

    def content(numbers: Tensor) -> dict[str, list[Any]]:
        batch = batch_of(rows, numbers, getattr(model, "device", None))
        return {"nats": row_nats(model, objective, batch, numbers, draws=draws, seed=seed).tolist()}

    def job() -> dict[str, Any]:
        what = {"objective": plain(objective), "draws": draws}
        return {**what, "model": network(model), "rows": source(rows), "settings": plain(dict(settings or {}))}

    with evaluating(model):
        run_shards(folder, content, ["nats"], job, count=count, shard=shard, seed=seed, progress=progress)


def job_estimate(folder: str | Path) -> Estimate:
    """Mean and standard error of a finished job's rows. Raises ValueError as `read_job`, and for a job of another kind."""
    table = read_job(folder)
    if "nats" not in table.column_names:
        raise ValueError(f"{str(folder)!r} holds {', '.join(table.column_names)}: a likelihood job writes nats")
    return estimate(torch.tensor(table["nats"].to_pylist(), dtype=torch.float64))
