"""Generation jobs: many rows by a sampler, as Parquet shards, on one process or many, restartable.

    torchrun --nproc_per_node 8 generate.py      # a script that calls run_job(model, batch, sampler, "out", count=100_000)

Ranks never talk to one another: RANK and WORLD_SIZE say whose shards are whose. A shard's rows form one batch with
seeds of their own, so the content depends neither on the number of ranks nor on what was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discdiff.config import checked, read_json, to_dict
from discdiff.denoisers import denoiser_of
from discdiff.layout import TokenBatch
from discdiff.manifest import not_written, sync, write_json
from discdiff.noise import row_seeds
from discdiff.sampling import Sampler
from discdiff.training.signals import GracefulStop

logger = logging.getLogger(__name__)
JOB = "job.json"
Rows = TokenBatch | Callable[[Tensor], TokenBatch]


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
    prompts' source where `rows` is a function; the model's path where it is a bare denoiser).

    Shard i belongs to rank i mod WORLD_SIZE. Finished shards are kept, so repeating the call goes on, with any number of
    ranks. SIGTERM and Ctrl-C end it behind the current shard with KeyboardInterrupt. Content is equal to the bit where
    logits are: on one kind of device, with one number of threads. Raises ValueError for a folder begun with other
    settings, naming the one that differs, before the network is called.
    """
    checked("count", count, type(count) is int and count >= 1, "at least one row")
    checked("shard", shard, type(shard) is int and shard >= 1, "at least one row per shard")
    checked("seed", seed, type(seed) is int, "give an int, from which every row's seed comes")
    if isinstance(rows, TokenBatch) and len(rows.tokens) not in (1, count):
        raise ValueError(f"rows hold {len(rows.tokens)} rows: give one that all begin from, or count={count} rows")
    rank, world = ranks()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["row", "tokens", *(["text"] if text else [])]
    _agree(
        folder / JOB,
        {
            "count": count,
            "seed": seed,
            "shard": shard,
            "columns": columns,
            "sampler": _plain(sampler),
            "model": _model(model),
            "rows": _digest(rows._asdict()) if isinstance(rows, TokenBatch) else "function",
            "settings": _plain(dict(settings or {})),
        },
    )
    seeds, mine = row_seeds(seed, count), range(rank, -(-count // shard), world)
    denoiser = denoiser_of(model) if hasattr(model, "config") else model
    with GracefulStop() as stop, tqdm(total=len(mine), unit="shard", disable=rank > 0 or not progress) as bar:
        for number in mine:
            numbers = torch.arange(number * shard, min((number + 1) * shard, count))
            path = folder / _name(number)
            if not _complete(path, numbers, columns):
                if stop.requested:
                    raise KeyboardInterrupt
                batch = _batch(rows, numbers, getattr(model, "device", None))
                state, _ = sampler(denoiser, batch, seeds[numbers])
                ids, valid = state.tokens.cpu(), state.valid.cpu()
                content: dict[str, list[Any]] = {
                    "row": numbers.tolist(),
                    "tokens": [row[here].tolist() for row, here in zip(ids, valid, strict=True)],
                }
                if text is not None:
                    content["text"] = text(state.tokens)
                _write(path, content)
            bar.update()


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


def _batch(rows: Rows, numbers: Tensor, device: Any) -> TokenBatch:
    if not isinstance(rows, TokenBatch):
        batch = rows(numbers)
        if not isinstance(batch, TokenBatch) or len(batch.tokens) != len(numbers):
            raise ValueError(f"rows({numbers.tolist()[:4]}...) must give a TokenBatch of {len(numbers)} rows")
    else:
        batch = rows.repeat(len(numbers)) if len(rows.tokens) == 1 else rows.rows(numbers.to(rows.tokens.device))
    return batch if device is None else batch.to(device)


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


def _plain(value: Any) -> Any:
    """Settings as JSON data; networks by their weights, functions by their name."""

    def name(part: Any) -> Any:
        if isinstance(part, torch.nn.Module | Tensor):
            return _model(part)
        if isinstance(part, functools.partial):
            return {"function": part.func, "args": to_dict(part.args), **to_dict(part.keywords)}
        if hasattr(part, "__qualname__"):
            return part.__qualname__
        return {"type": type(part).__qualname__, **{k: to_dict(v) for k, v in getattr(part, "__dict__", {}).items()}}

    return json.loads(json.dumps(to_dict(value), default=name))


def _model(model: Any) -> Any:
    """What tells one network from another: SHA-256 of its weights, its settings and the kind of device it is on."""
    if isinstance(model, Tensor):
        return _digest({"tensor": model})
    if not isinstance(model, torch.nn.Module):
        return type(model).__qualname__
    config = getattr(model, "config", None)
    shown = {k: v for k, v in config.to_dict().items() if not k.startswith("_")} if config is not None else {}
    device = next((x.device.type for x in model.parameters()), "cpu")
    said = json.dumps(shown, default=str, sort_keys=True)
    return {"weights": _digest(dict(model.state_dict())), "config": _digest({"": said}), "device": device}


def _digest(parts: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, part in parts.items():
        found.update(name.encode())
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            found.update(_digest(part).encode())
        else:
            found.update(json.dumps(_plain(part), sort_keys=True).encode())
    return found.hexdigest()


def _name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _schema(columns: list[str]) -> Any:
    import pyarrow as pa

    kinds = {"row": pa.int64(), "tokens": pa.list_(pa.int32()), "text": pa.string()}
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
