"""Which row is seen when, in which order and with which noise: all of it keyed by (seed, epoch, row), never by chance.

The run is one sequence of places 0, 1, 2, ...; place p is rank p % rows of epoch p // rows, and the rows of an epoch come
in an order hashed from (seed, epoch). Optimizer step k takes the places [k * batch, (k + 1) * batch), whatever the number
of ranks, workers or accumulated parts; to resume is to begin at another place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from discdiff.layout import Layout, TokenBatch, make_batch
from discdiff.noise import ORDER, TIME, Noise
from discdiff.training.signals import ignore_interrupt

Key = tuple[int, int, int]
COLUMNS = ("tokens", "valid", "given", "sample", "slot", "id")
_EPOCH_ID = -1  # noise of an epoch as a whole; rows have ids of 0 or more
_CONJUGATE = -7046029254386353131  # 2^64 times the golden ratio's conjugate, as a signed integer


def epoch_noise(seed: int, epoch: Tensor, rows: int = 1) -> Noise:
    """The noise of whole epochs, one per entry of `epoch`, for draws over `rows` places."""
    valid = torch.ones(len(epoch), rows, dtype=torch.bool, device=epoch.device)
    return Noise.training(seed, epoch, torch.full_like(epoch, _EPOCH_ID), valid)


def keyed_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of an epoch: a permutation (rows,) int64 that is a function of (seed, epoch)."""
    return epoch_noise(seed, torch.tensor([epoch]), rows).uniform(ORDER)[0].argsort(stable=True).numpy()


def keyed_times(seed: int, epoch: Tensor, rank: Tensor) -> Tensor:
    """t = frac(u_epoch + (rank + 1) * 0.6180...), float64 in [0, 1): a low-discrepancy sequence over an epoch's ranks.

    The product is taken modulo 1 in 64-bit integers, so that a rank of any size is exact. epoch, rank: (rows,) int64.
    """
    step = (((rank + 1) * _CONJUGATE) >> 11) & (2**53 - 1)
    return (epoch_noise(seed, epoch).row_uniform(TIME) + step.double() * 2.0**-53) % 1.0


class KeyedSampler(Sampler[list[Key]]):
    """Batches of (epoch, rank in the epoch, index) for one process, from place `start` up to place `stop`.

    rows: of the data set; epoch_rows: how many of them an epoch uses; batch: rows per part and process. The length counts
    from place 0 whatever `start` is, which is how `Trainer` counts steps.
    """

    def __init__(
        self, rows: int, epoch_rows: int, seed: int, batch: int, stop: int, *, start: int = 0, world: int = 1, process: int = 0
    ) -> None:  # fmt: skip
        self.rows, self.epoch_rows, self.seed, self.batch = rows, epoch_rows, seed, batch
        self.stop, self.start, self.world, self.process = stop, start, world, process

    def __len__(self) -> int:
        return self.stop // (self.batch * self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        known, order = -1, np.empty(0, dtype=np.int64)
        for block in range(self.start // self.batch + self.process, self.stop // self.batch, self.world):
            keys: list[Key] = []
            for place in range(block * self.batch, (block + 1) * self.batch):
                epoch, rank = divmod(place, self.epoch_rows)
                if epoch != known:
                    known, order = epoch, keyed_order(self.seed, epoch, self.rows)
                keys.append((epoch, rank, int(order[rank])))
            yield keys


def epoch_rows(rows: int, whole: int, drop_last: bool) -> int:
    """Rows that an epoch uses: with `drop_last`, as many as fill whole batches. Raises ValueError where that is none."""
    used = rows - rows % whole if drop_last else rows
    if used < 1:
        raise ValueError(
            f"{rows} rows fill no batch of {whole}: lower batch_size, or set drop_last=False to let a batch take rows of "
            f"several epochs"
        )
    return used


class KeyedRows(Dataset[dict[str, Any]]):
    """A map-style data set whose items also carry `id` (theirs, or the index), `epoch` and `rank`."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        indices = [index for _, _, index in keys]
        many = getattr(self.source, "__getitems__", None)
        items = many(indices) if many is not None else [self.source[index] for index in indices]
        return [{"id": i, **item, "epoch": e, "rank": r} for item, (e, r, i) in zip(items, keys, strict=True)]


def digest_of_rows(rows: Any, most: int = 16) -> str | None:
    """SHA-256 of the whole numbers (tokens, masks, bytes) of the first, the last and evenly spaced rows, `most` in all.

    Of columns of fractions only name, dtype and shape count: their last bits may differ between machines. None where a
    row is another when it is read again, as an augmented one is. Raises ValueError where an item is no row.
    """
    keyed, last = KeyedRows(rows), len(rows) - 1
    numbers = sorted({round(i * last / max(most - 1, 1)) for i in range(most)})

    def read() -> str:
        found = hashlib.sha256()
        for number in numbers:
            for name, x in sorted(collate(keyed.__getitems__([(0, 0, number)])).items()):
                found.update(f"{name}{x.dtype}{tuple(x.shape)}".encode())
                if not (x.is_floating_point() or x.is_complex()):
                    found.update(x.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    first = read()
    return first if read() == first else None


class KeyedStream(IterableDataset[dict[str, Any]]):
    """A stream whose items carry an integer `id`: rank = id, epoch = number of the pass; begun anew when it ends.

    Every process reads the whole stream and takes its own blocks of `batch` items, as `KeyedSampler` does.
    """

    def __init__(
        self, source: Iterable[Mapping[str, Any]], batch: int, stop: int, start: int, world: int, process: int
    ):
        self.source, self.batch, self.stop, self.start = source, batch, stop, start
        self.world, self.process = world, process

    def __len__(self) -> int:
        return self.stop // self.world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, (epoch, item) in zip(range(self.stop), self._passes(), strict=False):
            if place >= self.start and place // self.batch % self.world == self.process:
                if "id" not in item:
                    raise ValueError('items of a stream need an integer "id", by which their noise is keyed')
                yield {**item, "epoch": epoch, "rank": int(item["id"])}

    def _passes(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        epoch, empty = 0, False
        while not empty:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(epoch)
            empty = True
            for item in self.source:
                yield epoch, item
                empty = False
            epoch += 1
        raise ValueError(f"the stream gave nothing in pass {epoch - 1}: it must be possible to iterate it again")


def loader(args: Any, rows: Any, **options: Any) -> DataLoader:
    """A DataLoader after the `TrainingArguments`. Raises ValueError for a stream with several workers.

    It is not passed through accelerate: rows are already shared out among ranks, and nothing is read ahead of a stop.
    """
    workers = args.dataloader_num_workers
    if isinstance(rows, IterableDataset) and workers > 1:
        raise ValueError(f"workers is {workers}: one process reads a stream, set workers to 0 or 1")
    return DataLoader(
        rows,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        worker_init_fn=ignore_interrupt,
        generator=torch.Generator(),  # without one, every iterator would draw from the global generator
        **options,
    )


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Items of equal keys and shapes as one dictionary of tensors (batch, ...). Raises ValueError where they differ."""
    names = items[0].keys()
    for item in items:
        if item.keys() != names:
            raise ValueError(f"items of one batch have different keys: {sorted(names)} and {sorted(item.keys())}")
    return {name: _stack(name, [item[name] for item in items]) for name in names}


def _stack(name: str, values: list[Any]) -> Tensor:
    try:
        if isinstance(values[0], Tensor):
            return torch.stack(values)
        if isinstance(values[0], np.ndarray):
            return torch.from_numpy(np.stack(values))
        return torch.as_tensor(values)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"the items' {name!r} do not stack, each must have the same length: {error}") from error


def unwrapped(layout: Layout | None, inputs: Mapping[str, Tensor], check: bool = False) -> tuple[Any, Tensor]:
    """What the objective is given, and the places of a row that have noise of their own, bool (batch, places).

    With a layout a TokenBatch and its `valid`; without one the collated items as they are, and one place per row.
    """
    if layout is None:
        return inputs, torch.ones_like(inputs["id"], dtype=torch.bool)[:, None]
    batch = token_batch(layout, inputs, check)
    return batch, batch.valid


def token_batch(layout: Layout, inputs: Mapping[str, Tensor], check: bool = False) -> TokenBatch:
    """Collated items as a TokenBatch; the slots of packed rows restart with every document of `sample` (-1: empty).

    With `check`, raises ValueError for unknown names and whatever `make_batch` refuses.
    """
    features = {name.removeprefix("features."): x for name, x in inputs.items() if name.startswith("features.")}
    if check:
        unknown = [n for n in inputs if n not in (*COLUMNS, "epoch", "rank") and not n.startswith("features.")]
        if unknown or "tokens" not in inputs:
            raise ValueError(
                f"items have {sorted(inputs)}: known are {', '.join(COLUMNS)} (tokens needed) and features.NAME"
            )
    valid, sample, slot = inputs.get("valid"), inputs.get("sample"), inputs.get("slot")
    if sample is not None:
        valid = sample >= 0 if valid is None else valid
        slot = document_slots(sample).masked_fill(~valid, 0) if slot is None else slot
    named = {"valid": valid, "given": inputs.get("given"), "sample": sample, "slot": slot}
    return make_batch(layout, inputs["tokens"], **named, features=features, check=check)


def document_slots(sample: Tensor) -> Tensor:
    """Index of each position within its document; documents are runs of equal `sample` (batch, length) int64."""
    column = torch.arange(sample.shape[1], device=sample.device).expand_as(sample)
    fresh = torch.ones_like(sample, dtype=torch.bool)
    fresh[:, 1:] = sample[:, 1:] != sample[:, :-1]
    return column - torch.where(fresh, column, 0).cummax(1).values
