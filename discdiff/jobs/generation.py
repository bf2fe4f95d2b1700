"""Generation jobs: many rows by a sampler, on one process or many.

torchrun --nproc_per_node 8 generate.py      # a script that calls run_job(model, batch, sampler, "out", count=100_000)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from discdiff.denoisers import denoiser_of
from discdiff.jobs.fingerprints import network, plain, source
from discdiff.jobs.shards import Rows, batch_of, check_counts, check_rows, evaluating, run_shards
from discdiff.noise import row_seeds
from discdiff.sampling import Sampler


def run_job(
    model: Any,
    rows: Rows,
    sampler: Sampler,
    folder: str | Path,
    *,
    count: int,
    seed: int = 0,
    shard: int = 64,
    text: Callable[[Tensor], list[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> None:
    """Sample rows 0..count-1 into `folder`, `shard` rows per Parquet file: columns row, tokens and, with `text`, text.

    model: a `Network`, or a denoiser. rows: one row that all begin from, a batch of `count` rows (a prompt each), or a
    function from row numbers (n,) to their batch. text: token rows (n, length) to strings. tokens are a row's valid ids;
    row r has the seed of row r of one batch of `count` rows. settings: what else decides the content, as JSON data (the
    prompts' source where `rows` is a function; the model's path where it is a bare denoiser). A network is in evaluation
    mode meanwhile.

    Shard i belongs to rank i mod WORLD_SIZE. Finished shards are kept, so repeating the call goes on, with any number of
    ranks. SIGTERM and Ctrl-C end it behind the current shard with KeyboardInterrupt. Content is equal to the bit where
    logits are: on one kind of device, with one number of threads. Raises ValueError for a folder begun with other
    settings, naming the one that differs, before the network is called.
    """
    check_counts(count, shard, seed)
    check_rows(rows, 1, count)
    denoiser, seeds = denoiser_of(model) if hasattr(model, "config") else model, row_seeds(seed, count)

    def content(numbers: Tensor) -> dict[str, list[Any]]:
        batch = batch_of(rows, numbers, getattr(model, "device", None))
        state, _ = sampler(denoiser, batch, seeds[numbers])
        ids, valid = state.tokens.cpu(), state.valid.cpu()
        tokens = [row[here].tolist() for row, here in zip(ids, valid, strict=True)]
        return {"tokens": tokens} | ({"text": text(state.tokens)} if text is not None else {})

    def job() -> dict[str, Any]:
        said = plain(dict(settings or {}))
        return {"sampler": plain(sampler), "model": network(model), "rows": source(rows), "settings": said}

    columns = ["tokens", *(["text"] if text is not None else [])]
    with evaluating(model):
        run_shards(folder, content, columns, job, count=count, shard=shard, seed=seed, progress=progress)
