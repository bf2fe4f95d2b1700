"""Reads LeRobot v3.0 data sets, anybody's: states, actions, tasks, pictures from PNG or video, as episodes or as chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from discdiff.config import checked, read_json
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import layout
from tasks.vla.lerobot.columns import agree, read_numbers, read_pictures
from tasks.vla.lerobot.layout import ACTION, IMAGES, INDICES, PICTURES, STATE, STATS, Feature, Info, Part, Row
from tasks.vla.lerobot.video import NEEDS, can_decode, read_video
from tasks.vla.sources import cut
from tokenizers_vq.action.normalise import ActionStatistics


class Windows(NamedTuple):
    """Chunks of actions and what is known where each begins: actions (n, chunk, dim), past the end of an episode its last
    action again, where action_is_pad (n, chunk) is True; state (n, dim), episode (n,), frame (n,) within it, task (n).
    """

    actions: Tensor
    action_is_pad: Tensor
    state: Tensor
    episode: Tensor
    frame: Tensor
    task: tuple[str, ...]


def windows(episodes: Iterable[Episode], chunk: int, stride: int = 1) -> Windows:
    """The chunks that begin at every `stride`-th frame of each episode. Raises ValueError for none."""
    checked("chunk", chunk, chunk >= 1, "at least one step")
    checked("stride", stride, stride >= 1, "steps from one chunk to the next, at least 1")
    parts, tasks = [], []
    for number, each in enumerate(episodes):
        actions, frame = torch.from_numpy(each.action), torch.arange(0, len(each), stride)
        found = cut(actions, torch.full((len(each),), number), chunk, stride)
        held = torch.where(found.mask[..., None], found.actions, actions[-1])
        parts.append((held, ~found.mask, torch.from_numpy(each.state)[frame], found.episode, frame))
        tasks += [each.task] * len(frame)
    checked("episodes", len(parts), len(parts) > 0, "at least one")
    actions, padded, state, episode, frame = (torch.cat(column) for column in zip(*parts, strict=True))
    return Windows(actions, padded, state, episode, frame, tuple(tasks))


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened data set; frames are read when they are asked for.

    state: the features that together are the state; action: the one that is done; cameras: features of pictures by the name
    of their camera; features: all there are, `extra` those that none of these takes.
    """

    folder: Path
    info: Info
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    parts: tuple[Part, ...]
    state: tuple[str, ...]
    action: str
    cameras: dict[str, str]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.info.fps

    @property
    def features(self) -> dict[str, Feature]:
        """All features that info.json names."""
        return self.info.features

    @property
    def extra(self) -> tuple[str, ...]:
        """Features that no episode carries, of info.json and of the files; `column` reads those of numbers or texts."""
        taken = {*self.state, self.action, *self.cameras.values(), *INDICES}
        return tuple(k for k in dict.fromkeys([*self.features, *self.parts[0].schema.names]) if k not in taken)

    @property
    def stats(self) -> ActionStatistics:
        """Statistics of the actions, as the data set tells them."""
        return self.statistics(self.action)

    def episodes(self, which: Iterable[int] | None = None, pictures: bool = True) -> Iterator[Episode]:
        """Some or all episodes in order, one at a time; pictures: decode those of `cameras`.

        An episode of several tasks names them one after another, joined by "; ". Raises ValueError, naming file and
        episode, for values that are missing, not finite or of another shape, damaged pictures, and other rates.
        """
        stored = [k for k in self.cameras.values() if self.features[k].dtype == "image"] if pictures else []
        for number, table in self._tables(which, [*self.state, self.action, *stored]):
            state = [self._numbers(table, key, number).reshape(len(table), -1) for key in self.state]
            joined = np.concatenate(state, 1) if state else np.zeros((len(table), 0))
            action = self._numbers(table, self.action, number).reshape(len(table), -1)
            seen = {name: self._pictures(table, key, number) for name, key in self.cameras.items() if pictures}
            done = dict.fromkeys(self._numbers(table, "task_index", number).reshape(-1).tolist())
            known = all(0 <= task < len(self.tasks) for task in done)
            checked(self._where("task_index", number), list(done), known, f"there are {len(self.tasks)} tasks")
            task, way = "; ".join(self.tasks[t] for t in done), self.rows[number].columns.get("way")
            try:
                yield Episode(joined.astype(np.float32), action.astype(np.float32), task, seen, str(way or ""))
            except ValueError as error:
                raise ValueError(f"{self._where('frames', number)}: {error}") from error

    def windows(self, chunk: int, stride: int = 1, which: Iterable[int] | None = None) -> Windows:
        """Chunks of actions of some or all episodes, all in memory, without pictures."""
        chosen = list(range(len(self)) if which is None else which)
        found = windows(self.episodes(chosen, pictures=False), chunk, stride)
        return found._replace(episode=torch.tensor(chosen)[found.episode])

    def column(self, key: str, which: Iterable[int] | None = None) -> np.ndarray:
        """A feature of numbers or texts over some or all episodes, (frames, *shape). Raises ValueError for pictures."""
        choice = [k for k, f in self.features.items() if f.dtype not in PICTURES]
        checked("feature", key, key in choice, f"give one of {choice}")
        for part in self.parts:
            agree(part, self.info, [key])
        found = [self._numbers(table, key, number) for number, table in self._tables(which, [key])]
        checked("episodes", len(found), len(found) > 0, "at least one")
        return np.concatenate(found)

    def statistics(self, key: str, recompute: bool = False) -> ActionStatistics:
        """Of a feature, from stats.json; recompute: of all frames instead.

        LeRobot itself writes the frame-weighted mean of the episodes' quantiles, which is no quantile of all frames:
        recompute where that matters. Raises ValueError for statistics that are not there.
        """
        if recompute:
            return ActionStatistics.of(self.column(key).reshape(self.info.frames, -1).astype(np.float64))
        try:
            told = read_json(self.folder / STATS)[key]
            flat = {name: np.asarray(value, dtype=np.float64).reshape(-1).tolist() for name, value in told.items()}
            return ActionStatistics.from_dict(flat)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            remedy = f"statistics({key!r}, recompute=True) takes them from the frames"
            raise ValueError(
                f"{STATS} of {str(self.folder)!r} has no statistics of {key!r} ({error}): {remedy}"
            ) from error

    def _tables(self, which: Iterable[int] | None, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """The frames of each episode; a row group that episodes share is read once for all that follow one another."""
        wanted = list(dict.fromkeys([*INDICES, *columns]))
        held: Any = None
        ends = [part.last for part in self.parts]
        for number in range(len(self)) if which is None else which:
            checked("episode", number, 0 <= number < len(self), f"there are {len(self)}, counted from 0")
            row = self.rows[number]
            part = self.parts[bisect_right(ends, row.first)]
            checked(f"episode {number}", str(part.path), row.last <= part.last, "it goes on in another file")
            groups = range(bisect_right(part.starts, row.first) - 1, bisect_right(part.starts, row.last - 1))
            if held is None or held[0] != (part.path, groups):
                held = None  # before the next is read
                found = layout.read_columns(layout.open_parquet(part.path), wanted, part.path, list(groups))
                held = (part.path, groups), found
            table = held[1].slice(row.first - part.starts[groups[0]], row.last - row.first)
            self._check(table, number)
            yield number, table

    def _check(self, table: pa.Table, number: int) -> None:
        """Whether these are the frames that meta/episodes means, at the rate that info.json says."""
        steps = np.arange(len(table))
        told = {"episode_index": steps * 0 + number, "frame_index": steps, "index": steps + self.rows[number].first}
        for name, wanted in told.items():
            found = self._numbers(table, name, number).reshape(-1)
            remedy = f"meta/episodes says {int(wanted[0])} to {int(wanted[-1])}"
            checked(self._where(name, number), found[:8].tolist(), np.array_equal(found, wanted), remedy)
        seconds = self._numbers(table, "timestamp", number).reshape(-1).astype(np.float64)
        late = np.abs((seconds - seconds[0]) * self.fps - steps)
        remedy = f"they are not {self.fps:.6g} frames per second: bring all episodes to one rate"
        checked(self._where("timestamp", number), seconds[:8].tolist(), bool((late < 0.5).all()), remedy)

    def _where(self, what: str, number: int) -> str:
        return f"{what} of episode {number} in {str(self.folder)!r}"

    def _numbers(self, table: pa.Table, key: str, number: int) -> np.ndarray:
        shape = (1,) if key in INDICES else self.features[key].shape
        return read_numbers(table[key], shape, self._where(key, number))

    def _pictures(self, table: pa.Table, key: str, number: int) -> np.ndarray:
        """(frames, height, width, 3) uint8 of one camera."""
        size, columns, where = self.features[key].size, self.rows[number].columns, self._where(key, number)
        if self.features[key].dtype == "image":
            return read_pictures(table[key], size, where)
        place = [columns.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index", "from_timestamp")]
        known = self.info.video_path is not None and None not in place
        checked(where, place, known, "info.json and meta/episodes do not say in which video it is")
        path = str(self.info.video_path).format(video_key=key, chunk_index=place[0], file_index=place[1])
        found = read_video(self.folder / path, float(place[2]), len(table), self.fps)  # type: ignore[arg-type]
        checked(where, found.shape[1:3], found.shape[1:3] == size, f"info.json says {size}")
        return found


def open_dataset(
    folder: str | Path,
    state: str | Iterable[str] = (STATE,),
    action: str = ACTION,
    cameras: str | Iterable[str] | None = None,
) -> Dataset:
    """Opens a folder and checks all that can be checked without reading frames.

    state: one feature or several, joined in this order, or none; action: a feature; cameras: features of pictures or names
    of cameras, such as "top" of observation.images.top, by default all pictures but depth maps.

    Raises ValueError for missing, damaged and cut files, other versions, features that are not there or of another shape
    than info.json says, mixed rates, numbers that do not add up, and videos where the extra `video` is not installed.
    """
    folder = Path(folder)
    info = layout.read_info(folder)
    state = (state,) if isinstance(state, str) else tuple(state)
    numeric = [key for key, each in info.features.items() if each.dtype not in (*PICTURES, "string", "language")]
    for name, key in (*(("state", key) for key in state), ("action", action)):
        choice = [k for k in numeric if k not in INDICES]
        checked(name, key, key in choice, f"name one of the data set's features of numbers, {choice}")
    named = _cameras(info, cameras)
    for key in (*state, action, *named.values()):
        rate = info.features[key].fps
        checked(f"fps of {key!r}", rate, rate is None or abs(rate / info.fps - 1) < 1e-3, f"others have {info.fps}")
    rows = layout.read_episodes(folder, info)
    parts = layout.read_parts(folder, info, rows)
    stored = [k for k in (*state, action, *named.values()) if info.features[k].dtype != "video"]
    for part in parts:
        agree(part, info, stored)
    return Dataset(folder, info, layout.read_tasks(folder), rows, parts, state, action, named)


def _cameras(info: Info, wanted: str | Iterable[str] | None) -> dict[str, str]:
    """Features of pictures by the name of their camera, of two that would have the same one by their own name."""
    known: dict[str, str] = {}
    for key in (key for key, each in info.features.items() if each.picture):
        name = key.removeprefix(IMAGES).removeprefix("observation.")
        known[key if name in known else name] = key
    chosen = list(known) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for each in chosen:
        checked("camera", each, each in known or each in known.values(), f"choose from {list(known)}")
    found = {name: key for name, key in known.items() if name in chosen or key in chosen}
    for name, key in found.items():
        dtype = info.features[key].dtype
        checked(f"camera {name!r}", dtype, dtype == "image" or can_decode(), NEEDS)
    return found
