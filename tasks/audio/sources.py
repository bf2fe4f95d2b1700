"""Sounds from folders, parquet files and telephone keys, as one float tensor (n, samples) with what is said of each."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.audio.files import SUFFIXES, Audio, Unreadable, read_sound
from tasks.audio.settings import EMBEDDED, Sounds
from tokenizers_vq.spectra import resample

METADATA = "metadata.csv"
PEAK = 0.99
Found = Iterator[tuple[str, Any, dict[str, str]]]  # name, file or bytes or Audio, what is said of it


class Clips(NamedTuple):
    """Sounds x (n, samples) in [-1, 1], silent where mask (n, samples) is False; columns: what is said of each, by name;
    damaged: files that could not be read, with the reason.
    """

    x: Tensor
    mask: Tensor
    columns: dict[str, list[str]]
    damaged: list[str]

    def rows(self, index: Tensor) -> Clips:
        """Some of them."""
        chosen = index.tolist()
        said = {name: [values[i] for i in chosen] for name, values in self.columns.items()}
        return Clips(self.x[index], self.mask[index], said, self.damaged)

    def column(self, name: str) -> list[str]:
        """Of every sound. Raises ValueError where nothing of that name is said of all."""
        if name not in self.columns:
            raise ValueError(
                f"nothing is said of {name!r}: the sounds have {', '.join(sorted(self.columns)) or 'no columns'}"
            )
        return self.columns[name]


def load(sounds: Sounds) -> tuple[Clips, Clips]:
    """Training and validation sounds. Raises ValueError where one of them would be empty."""
    clips = read(sounds.source, sounds)
    if sounds.valid is not None:
        return clips, read(sounds.valid, sounds)
    count = len(clips.x)
    kept = round(count * sounds.valid_fraction)
    if not 0 < kept < count:
        raise ValueError(f"{sounds.source!r} has {count} sounds: too few to keep a share back, give valid=")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))  # sources are often sorted by label
    return clips.rows(order[kept:].sort().values), clips.rows(order[:kept].sort().values)


def read(source: str, sounds: Sounds) -> Clips:
    """All sounds of a source. Raises ValueError for a source that is not there, holds none, or damaged ones (unless
    sounds.damaged is "skip"), and for another sample rate where sounds.other_rate is "refuse".
    """
    path = Path(source)
    if source == EMBEDDED:
        found = telephone_keys(sounds.embedded, sounds.sample_rate)
    elif path.is_dir():
        found = _folder(path)
    elif path.suffix == ".parquet" and path.is_file():
        found = _parquet(path, sounds.audio_field)
    else:
        raise ValueError(f'there is no {source!r}: give a folder, a parquet file, or "{EMBEDDED}"')
    rows: list[Tensor] = []
    said: list[dict[str, str]] = []
    damaged: list[str] = []
    other: dict[int, int] = {}
    cut = 0
    for name, data, columns in found:
        try:
            audio = data if isinstance(data, Audio) else read_sound(data)
        except Unreadable as error:
            damaged.append(f"{name} ({error})")
            continue
        if audio.rate != sounds.sample_rate:
            if sounds.other_rate == "refuse":
                raise ValueError(
                    f"{name} has {audio.rate} samples per second, not {sounds.sample_rate}: give sample_rate={audio.rate}, "
                    'or other_rate="resample"'
                )
            other[audio.rate] = other.get(audio.rate, 0) + 1
        x = resample(torch.from_numpy(audio.x)[None], audio.rate, sounds.sample_rate)[0]
        cut += len(x) > sounds.samples
        rows.append(levelled(x[: sounds.samples], sounds.loudness))
        said.append(columns)
    _tell(source, sounds, len(rows), damaged, other, cut)
    mask = torch.arange(sounds.samples) < torch.tensor([len(x) for x in rows])[:, None]
    full = torch.zeros(len(rows), sounds.samples)
    full[mask] = torch.cat(rows)
    names = [name for name in said[0] if all(name in each for each in said)]
    return Clips(full, mask, {name: [each[name] for each in said] for name in names}, damaged)


def levelled(x: Tensor, loudness: float | None) -> Tensor:
    """A sound at that root mean square in decibel of full scale, or as loud as its peak allows; silence stays silent."""
    if loudness is None:
        return x
    power, peak = float(x.square().mean().sqrt()), float(x.abs().max())
    return x if peak == 0 else x * min(10 ** (loudness / 20) / power, PEAK / peak)


def _tell(source: str, sounds: Sounds, count: int, damaged: list[str], other: dict[int, int], cut: int) -> None:
    if damaged:
        shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        message = f"{len(damaged)} of {len(damaged) + count} sounds of {source!r} cannot be read: {shown}"
        if sounds.damaged == "stop":
            raise ValueError(f'{message}; mend or remove them, or leave them out with damaged="skip"')
        print(f"left out: {message}")
    if not count:
        raise ValueError(f"{source!r} holds no sound of {', '.join(sorted(SUFFIXES))}")
    if other:
        rates = ", ".join(f"{n} of {rate} Hz" for rate, n in sorted(other.items()))
        print(f"resampled to {sounds.sample_rate} Hz: {rates}")
    if cut:
        print(f"cut to {sounds.seconds} s: {cut} of {count} sounds")


def _folder(path: Path) -> Found:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    table = path / METADATA
    if not table.is_file():
        yield from ((str(file), file, {} if file.parent == path else {"label": file.parent.name}) for file in files)
        return
    with table.open(encoding="utf-8-sig", newline="") as opened:  # spreadsheets begin it with a mark
        rows = list(csv.DictReader(opened))
    if not rows or "file_name" not in rows[0]:
        raise ValueError(f"{str(table)!r} has no column file_name: it says which file a row is about")
    named = {path / row["file_name"] for row in rows}
    bare = [str(file) for file in files if file not in named]
    if bare:
        raise ValueError(f"{len(bare)} sounds, the first {bare[0]!r}, have no row in {str(table)!r}: give each one")
    for row in rows:
        name = row.pop("file_name")
        yield str(path / name), path / name, {key: value for key, value in row.items() if key and value is not None}


def _parquet(path: Path, field: str) -> Found:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as parquet: {error}") from error
    if field not in file.schema_arrow.names:
        raise ValueError(f"{str(path)!r} has the columns {file.schema_arrow.names}: name one with audio_field=")
    number = 0
    for batch in file.iter_batches(256):
        for row in batch.to_pylist():
            audio = row.pop(field)
            name, number = f"{path}[{number}]", number + 1
            if isinstance(audio, dict):
                audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
            said = {key: str(value) for key, value in row.items() if isinstance(value, str | int)}
            yield name, audio if isinstance(audio, bytes | str) else b"", said


KEYS = {k: (low, high) for low, row in zip((697, 770, 852, 941), ("123", "456", "789", "*0#"), strict=True)
        for k, high in zip(row, (1209, 1336, 1477), strict=True) if k.isdigit()}  # fmt: skip


def telephone_keys(count: int, rate: int, seed: int = 0) -> Found:
    """Digits as telephones dial them (ITU-T Q.23): two tones, of varying length, balance and noise; label the digit."""
    dice = np.random.default_rng(seed)
    for n in range(count):
        label = str(n % 10)
        t = np.arange(int(rate * dice.uniform(0.15, 0.4))) / rate
        shape = np.minimum(1, np.minimum(t, t[-1] - t) / 0.02)  # fades of 20 ms
        low, high = (np.sin(2 * math.pi * (f * t + dice.uniform())) for f in KEYS[label])
        x = shape * (dice.uniform(0.6, 1) * low + dice.uniform(0.6, 1) * high) / 2 + 0.01 * dice.standard_normal(len(t))
        yield f"{EMBEDDED}[{n}]", Audio(x.clip(-1, 1).astype(np.float32), rate), {"label": label}
