"""Rows of a job as Parquet shards, written by one process or many, restartable.

Ranks never talk to one another: RANK and WORLD_SIZE say whose shards are whose. A shard's rows form one batch with
noise of their own, so the content depends neither on the number of ranks nor on what was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discdiff.config import checked, read_json
from discdiff.layout import TokenBatch
from discdiff.manifest import not_written, sync, write_json
from discdiff.training.signals import GracefulStop

logger = logging.getLogger(__name__)
JOB = "job.json"
Rows = TokenBatch | Callable[[Tensor], TokenBatch]


def run_shards(
    folder: str | Path,
    content: Callable[[Tensor], Mapping[str, list[Any]]],
    columns: list[str],
    job: Callable[[], Mapping[str, Any]],
    *,
    count: int,
    shard: int,
    seed: int,
    progress: bool,
) -> None:
    """Write `content` of row numbers (n,) for rows 0..count-1, `shard` rows per file; `columns` beside `row` are its keys.

    Shard i belongs to rank i mod WORLD_SIZE. Finished shards are kept. job: what decides the content, written to the folder
    or compared with what is there. SIGTERM and Ctrl-C end it behind the current shard with KeyboardInterrupt.
    """
    (rank, world), columns = ranks(), ["row", *columns]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder / JOB, {"count": count, "seed": seed, "shard": shard, "columns": columns, **job()})
    mine = range(rank, -(-count // shard), world)
    with GracefulStop() as stop, tqdm(total=len(mine), unit="shard", disable=rank > 0 or not progress) as bar:
        for number in mine:
            numbers = torch.arange(number * shard, min((number + 1) * shard, count))
            path = folder / _name(number)
            if not _complete(path, numbers, columns):
                if stop.requested:
                    raise KeyboardInterrupt
                _write(path, {"row": numbers.tolist(), **content(numbers)})
            bar.update()


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, a network is in evaluation mode; afterwards each of its modules has the mode it had."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, torch.nn.Module) else []
    try:
        if modes:
            model.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def check_counts(count: Any, shard: Any, seed: Any) -> None:
    """Raise ValueError for numbers that no job can have."""
    checked("count", count, type(count) is int and count >= 1, "at least one row")
    checked("shard", shard, type(shard) is int and shard >= 1, "at least one row per shard")
    checked("seed", seed, type(seed) is int, "give an int, from which every row's noise comes")


def check_rows(rows: Rows, *fitting: int) -> None:
    """Raise ValueError for a batch whose number of rows is none of `fitting`."""
    if isinstance(rows, TokenBatch) and len(rows.tokens) not in fitting:
        raise ValueError(
            f"rows hold {len(rows.tokens)} rows: give {' or '.join(map(str, dict.fromkeys(fitting)))}, as count says"
        )


def batch_of(rows: Rows, numbers: Tensor, device: Any) -> TokenBatch:
    """The rows of these numbers: of a batch, of one row that all begin from, or of a function. Raises ValueError."""
    if not isinstance(rows, TokenBatch):
        batch = rows(numbers)
        if not isinstance(batch, TokenBatch) or len(batch.tokens) != len(numbers):
            raise ValueError(f"rows({numbers.tolist()[:4]}...) must give a TokenBatch of {len(numbers)} rows")
    else:
        batch = rows.repeat(len(numbers)) if len(rows.tokens) == 1 else rows.rows(numbers.to(rows.tokens.device))
    return batch if device is None else batch.to(device)


def read_job(folder: str | Path, partial: bool = False) -> Any:
    """All rows of a job in order, a `pyarrow.Table` (`datasets.Dataset(table)`, `table.to_pandas()`).

    partial: those of finished shards only. Raises ValueError for a folder that holds no job, and for shards that are
    missing or damaged.
    """
    import pyarrow

    folder = Path(folder)
    job = read_json(folder / JOB)
    try:
        count, shard, columns = job["count"], job["shard"], job["columns"]
        total = -(-count // shard)
        _schema(columns)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{str(folder / JOB)!r} holds no job: {error!r}") from error
    parts, missing = [], []
    for number in range(total):
        numbers = torch.arange(number * shard, min((number + 1) * shard, count))
        part = _complete(folder / _name(number), numbers, columns)
        parts += [part] if part else []
        missing += [] if part else [number]
    if missing and not (partial and parts):
        raise ValueError(
            f"{str(folder)!r} lacks {len(missing)} of {total} shards, the first is {_name(missing[0])}: repeat the job, "
            "which goes on where it stopped"
        )
    return pyarrow.concat_tables(parts)


def ranks() -> tuple[int, int]:
    """(rank, number of ranks) from RANK and WORLD_SIZE, as torchrun sets them; (0, 1) without. Raises ValueError."""
    found = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = (int(value) for value in found.values())
    except ValueError as error:
        raise ValueError(f"{found} in the environment: whole numbers are expected") from error
    if not 0 <= rank < world:
        raise ValueError(f"RANK {rank} does not lie in 0..WORLD_SIZE-1, WORLD_SIZE is {world}: start it with torchrun")
    return rank, world


def _agree(path: Path, job: dict[str, Any]) -> None:
    """Write the job's settings, or compare them with those that are there."""
    job = json.loads(json.dumps({"format": 1, **job}))
    if not path.exists():
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{os.environ.get('RANK', 0)}")
        try:
            write_json(temporary, job)
            os.link(temporary, path)  # unlike a rename, fails where another rank was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    before = _flat(read_json(path))
    now = _flat(job)
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{str(path.parent)!r} was begun with {name} {before.get(name)!r}, this run has {now.get(name)!r}: go on "
                "with the same, or choose another folder"
            )


def _flat(data: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    if not isinstance(data, dict):
        return {name: data}
    return {k: v for key, value in data.items() for k, v in _flat(value, f"{name}.{key}".lstrip(".")).items()}


def _name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _schema(columns: list[str]) -> Any:
    import pyarrow as pa

    ids, floats = pa.list_(pa.int32()), pa.list_(pa.float64())
    kinds = {"row": pa.int64(), "tokens": ids, "text": pa.string(), "nats": floats}
    return pa.schema([(name, kinds[name]) for name in columns])


def _write(path: Path, content: dict[str, list[Any]]) -> None:
    """The shard appears under its name whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(content, schema=_schema(list(content)))
    for left in path.parent.glob(f".tmp-{path.name}-*"):
        left.unlink(missing_ok=True)  # of a run that was killed
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        parquet.write_table(table, temporary, write_page_checksum=True)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def _complete(path: Path, numbers: Tensor, columns: list[str]) -> Any:
    """The table of a finished shard; None where it is absent, cut short, damaged or not these rows."""
    import pyarrow as pa
    from pyarrow import parquet

    if not path.exists():
        return None
    try:
        table = parquet.read_table(path, page_checksum_verification=True, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        logger.warning("%s cannot be read and counts as missing: %s", path, error)
        return None
    if table.schema != _schema(columns) or table["row"].to_pylist() != numbers.tolist():
        logger.warning("%s does not hold rows %d..%d and counts as missing", path, numbers[0], numbers[-1])
        return None
    return table
