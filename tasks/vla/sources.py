"""Actions from files or from the small world, cut into chunks."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked
from tasks.vla.settings import EMBEDDED, Actions
from tasks.vla.world import demonstrate

SUFFIXES = (".npz", ".parquet")


class Chunks(NamedTuple):
    """actions (n, chunk, dim) float32, mask (n, chunk) bool: which steps are data, episode (n,)."""

    actions: Tensor
    mask: Tensor
    episode: Tensor

    def where(self, rows: Tensor) -> Chunks:
        """Some of them."""
        return Chunks(*(x[rows] for x in self))


def load(settings: Actions, chunk: int) -> tuple[Chunks, Chunks]:
    """Chunks to fit on and chunks of other episodes to evaluate on. Raises ValueError where there are too few episodes,
    where files disagree, and for files that cannot be read, by name.
    """
    if settings.source == EMBEDDED:
        shown = demonstrate(settings.episodes, settings.data_seed)
        parts = [cut(shown.action, shown.episode, chunk, settings.stride)]
    else:
        parts = list(_files(settings, chunk))
    sizes = {tuple(p.actions.shape[1:]) for p in parts}
    checked("source", settings.source, len(sizes) == 1, f"its files hold chunks of several sizes, {sorted(sizes)}")
    first = 0
    for i, part in enumerate(parts):  # episodes of different files are different ones
        parts[i] = part._replace(episode=part.episode + first)
        first = int(parts[i].episode.max()) + 1
    whole = Chunks(*(torch.cat(column) for column in zip(*parts, strict=True)))
    known = whole.episode.unique()
    checked("source", settings.source, len(known) >= 2, "at least 2 episodes are needed, one of them to evaluate on")
    kept = max(1, round(settings.valid_fraction * len(known)))
    held_out = whole.episode >= known[-min(kept, len(known) - 1)]
    return whole.where(~held_out), whole.where(held_out)


def cut(actions: Tensor, episode: Tensor, chunk: int, stride: int = 1) -> Chunks:
    """Frames (frames, dim) of episodes (frames,) to the chunks that begin at every `stride`-th frame of an episode; steps
    after its end are no data. Raises ValueError where an episode's frames are not together.
    """
    frames = torch.arange(len(actions))
    begins = torch.cat([torch.ones(1, dtype=torch.bool), episode[1:] != episode[:-1]])
    apart = int(begins.sum()) == len(episode.unique())
    checked("episodes", int(begins.sum()), apart, "the frames of an episode must be together, in order")
    first = torch.where(begins, frames, 0).cummax(0).values
    last = torch.cat([first[1:][begins[1:]], torch.tensor([len(actions)])]) if len(actions) > 1 else torch.tensor([1])
    ends = last[begins.long().cumsum(0) - 1]  # one past the last frame of each frame's episode
    starts = frames[(frames - first) % stride == 0]
    steps = starts[:, None] + torch.arange(chunk)
    mask = steps < ends[starts][:, None]
    return Chunks(actions[steps.clamp(max=len(actions) - 1)].masked_fill(~mask[..., None], 0), mask, episode[starts])


def _files(settings: Actions, chunk: int) -> Iterator[Chunks]:
    path = Path(settings.source)
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
    fits = all(p.suffix in SUFFIXES for p in found)
    checked("source", settings.source, bool(found) and fits, "no npz or parquet files there")
    failed = []
    for file in found:
        try:
            yield _read(file, settings, chunk)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            failed.append(f"{file.name}: {error}")
            if settings.damaged == "stop":
                raise ValueError(f"{failed[0]}; --damaged skip goes on without such files") from error
    if failed:
        print(f"{len(failed)} of {len(found)} files were skipped: {'; '.join(failed)}", flush=True)
    checked("source", settings.source, len(failed) < len(found), f"none of its {len(found)} files can be read")


def _read(file: Path, settings: Actions, chunk: int) -> Chunks:
    columns = _npz(file) if file.suffix == ".npz" else _parquet(file, settings.action_field, settings.episode_field)
    names = sorted(columns)
    if settings.action_field not in columns:
        raise ValueError(f"there is no {settings.action_field!r} among {names}: name it by --action_field")
    actions = torch.from_numpy(np.ascontiguousarray(columns[settings.action_field], dtype=np.float32))
    bad = ~torch.isfinite(actions)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} actions are not finite, the first in row {int(bad.nonzero()[0][0])}")
    if actions.ndim == 3:
        if actions.shape[1] != chunk:
            raise ValueError(f"its chunks have {actions.shape[1]} steps: give --chunk {actions.shape[1]}")
        mask = columns.get("mask", np.ones(actions.shape[:2], dtype=bool))
        if mask.shape != tuple(actions.shape[:2]):
            raise ValueError(f"'mask' has shape {mask.shape}: give {tuple(actions.shape[:2])}, one value per step")
        rows = columns.get(settings.episode_field, np.arange(len(actions)))
        return Chunks(actions, torch.from_numpy(mask).bool(), _episodes(rows, len(actions), settings.episode_field))
    if actions.ndim != 2 or not len(actions):
        raise ValueError(
            f"{settings.action_field!r} has shape {tuple(actions.shape)}: (frames, dim) or (rows, chunk, dim)"
        )
    if settings.episode_field not in columns:
        raise ValueError(f"there is no {settings.episode_field!r} among {names}: name it by --episode_field")
    episode = _episodes(columns[settings.episode_field], len(actions), settings.episode_field)
    return cut(actions, episode, chunk, settings.stride)


def _episodes(numbers: np.ndarray, rows: int, field: str) -> Tensor:
    if numbers.shape != (rows,):
        raise ValueError(f"{field!r} has shape {numbers.shape}: give ({rows},), one number per row of actions")
    return torch.from_numpy(np.asarray(numbers, dtype=np.int64))


def _npz(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _parquet(file: Path, action: str, episode: str) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    known = pq.read_schema(file).names

    def read(*names: str) -> dict[str, np.ndarray]:
        table = pq.read_table(file, columns=[name for name in names if name in known])
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}

    columns = read(action, episode)
    if action in columns and columns[action].ndim == 3:  # beside frames, a column of that name means something else
        columns |= read("mask")
    return columns
