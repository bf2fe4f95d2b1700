"""Writes episodes as a LeRobot v3.0 data set with pictures as PNG."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from discdiff.config import checked
from tasks.vla.episodes import Episode
from tasks.vla.lerobot.layout import ACTION, DATA, EPISODES, IMAGES, INDICES, INFO, STATE, STATS, TASKS, VERSION
from tasks.vla.lerobot.statistics import Totals

BATCH = 500  # episodes whose descriptions are written together
VIDEO_MB = 200  # what LeRobot says where there are no videos


def write(
    folder: str | Path,
    episodes: Iterable[Episode],
    fps: float,
    *,
    robot_type: str | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    data_files_size_in_mb: int = 100,
    chunks_size: int = 1000,
) -> Path:
    """Writes a new folder as one step, going through the episodes once; returns its path.

    Features: observation.state, action, observation.images.CAMERA. names: of the dimensions of a feature;
    data_files_size_in_mb: a new file begins before an episode that would exceed it; chunks_size: files in a folder. Beyond
    LeRobot's own columns, meta/episodes has `way`, which its reader keeps as it is.

    Raises ValueError for a folder that is not empty, no episodes, and episodes of other dimensions, cameras or sizes.
    """
    folder = free(folder)
    checked("fps", fps, bool(np.isfinite(fps)) and fps > 0, "frames per second, above 0")
    checked("data_files_size_in_mb", data_files_size_in_mb, data_files_size_in_mb >= 1, "at least 1")
    checked("chunks_size", chunks_size, chunks_size >= 1, "at least one file to a folder")
    info: dict[str, Any] = {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "chunks_size": chunks_size,
        "data_files_size_in_mb": data_files_size_in_mb,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": int(fps) if fps == int(fps) else float(fps),
        "data_path": DATA,
        "video_path": None,
    }
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _fill(work, episodes, info, dict(names or {}))
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def free(folder: str | Path) -> Path:
    """The path of a folder that can be written. Raises ValueError naming it where something is in it already."""
    folder = Path(folder)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    held = " but holds a data set" if (folder / INFO).is_file() else ""
    checked("folder", str(folder), empty, f"it is not empty{held}: remove it, or give another")
    return folder


def _fill(work: Path, episodes: Iterable[Episode], info: dict[str, Any], names: dict[str, Sequence[str]]) -> None:
    limit, per_chunk = int(info["data_files_size_in_mb"] * 2**20), info["chunks_size"]
    features: dict[str, dict[str, Any]] = {}
    tasks: dict[str, int] = {}
    totals, rows, number = Totals(), [], -1
    with (
        closing(_Files(work, DATA, limit, per_chunk)) as data,
        closing(_Files(work, EPISODES, limit, per_chunk)) as meta,
    ):
        for number, episode in enumerate(episodes):
            found, first = _features(episode, names), totals.frames
            features = features or found
            remedy = f"the first episode has {_shapes(features)}"
            checked(f"episode {number}", _shapes(found), _shapes(found) == _shapes(features), remedy)
            columns = _columns(episode, number, first, info["fps"], tasks.setdefault(episode.task, len(tasks)))
            pictures = {IMAGES + camera: x for camera, x in episode.pictures.items()}
            stats = totals.add(columns, pictures)
            table = _table(columns, pictures, features)
            chunk, file = data.place(table.nbytes)
            data.write(table)
            rows.append({
                "episode_index": number, "tasks": [episode.task], "length": len(episode),
                "data/chunk_index": chunk, "data/file_index": file,
                "dataset_from_index": first, "dataset_to_index": totals.frames, "way": episode.way,
                **{f"stats/{key}/{name}": value for key, each in stats.items() for name, value in each.items()},
            })  # fmt: skip
            if len(rows) == BATCH:
                _describe(meta, rows)
        checked("episodes", number + 1, number >= 0, "at least one episode")
        _describe(meta, rows)
    info |= {"total_episodes": number + 1, "total_frames": totals.frames, "total_tasks": len(tasks)}
    info |= {"splits": {"train": f"0:{number + 1}"}, "features": features}
    for name, content in ((INFO, info), (STATS, totals.whole())):
        text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
        (work / name).write_text(text + "\n", encoding="utf-8")
    _write_tasks(work / TASKS, list(tasks))


class _Files:
    """Tables written one after another to numbered files of about `limit` bytes at most."""

    def __init__(self, folder: Path, template: str, limit: int, per_chunk: int) -> None:
        self.folder, self.template, self.limit, self.per_chunk = folder, template, limit, per_chunk
        self.number, self.size = 0, 0
        self.writer: pq.ParquetWriter | None = None

    def place(self, size: int) -> tuple[int, int]:
        """Chunk and file that the next table, of `size` bytes, goes to."""
        if self.size and self.size + size > self.limit:
            self.close()
            self.number, self.size = self.number + 1, 0
        self.size += size
        return divmod(self.number, self.per_chunk)

    def write(self, table: pa.Table) -> None:
        """One table as one row group."""
        if self.writer is None:
            chunk, file = divmod(self.number, self.per_chunk)
            path = self.folder / self.template.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(path, table.schema, use_dictionary=False, write_page_checksum=True)
        self.writer.write_table(table, row_group_size=len(table))

    def close(self) -> None:
        """The footer of the file; without it nobody can read it."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _features(episode: Episode, names: dict[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What info.json says of each column."""
    dims = {STATE: episode.state.shape[1], ACTION: episode.action.shape[1]}
    unknown = sorted(set(names) - set(dims))
    checked("names", unknown, not unknown, f"name the dimensions of {' or '.join(dims)}")
    found: dict[str, dict[str, Any]] = {}
    for key, dim in dims.items():
        checked(f"dimensions of {key}", dim, dim >= 1, "at least 1")
        given = list(names[key]) if key in names else None
        checked(f"names of {key}", given, given is None or len(given) == dim, f"it has {dim} dimensions")
        found[key] = {"dtype": "float32", "shape": [dim], "names": given}
    for camera, x in episode.pictures.items():
        checked("camera", camera, bool(camera) and "/" not in camera, "give a name without '/'")
        found[IMAGES + camera] = {
            "dtype": "image",
            "shape": list(x.shape[1:]),
            "names": ["height", "width", "channels"],
        }
    return found | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in INDICES.items()}


def _shapes(features: dict[str, dict[str, Any]]) -> dict[str, list[int]]:
    return {key: each["shape"] for key, each in features.items() if key not in INDICES}


def _columns(episode: Episode, number: int, first: int, fps: float, task: int) -> dict[str, np.ndarray]:
    """All columns but the pictures, each (frames, dim)."""
    steps = np.arange(len(episode))
    found = {"timestamp": steps / fps, "frame_index": steps, "episode_index": steps * 0 + number}
    found |= {"index": steps + first, "task_index": steps * 0 + task}
    indices = {key: x.astype(INDICES[key])[:, None] for key, x in found.items()}
    return {STATE: episode.state, ACTION: episode.action, **indices}


def _table(columns: dict[str, np.ndarray], pictures: dict[str, np.ndarray], features: dict[str, Any]) -> pa.Table:
    """Frames with the schema that `datasets` reads: vectors as lists of fixed length, pictures as {bytes, path}."""
    arrays, told = {}, {}
    for key, x in columns.items():
        value = {"dtype": str(x.dtype), "_type": "Value"}
        flat = pa.array(np.ascontiguousarray(x).reshape(-1))
        arrays[key] = flat if x.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
        told[key] = value if x.shape[1] == 1 else {"feature": value, "length": x.shape[1], "_type": "List"}
    for key, x in pictures.items():
        paths = pa.array([f"frame-{i:06d}.png" for i in range(len(x))])
        data = pa.array([_png(picture) for picture in x], pa.binary())
        arrays[key] = pa.StructArray.from_arrays([data, paths], ["bytes", "path"])
        told[key] = {"_type": "Image"}
    table = pa.table({key: arrays[key] for key in features})
    features_told = {"info": {"features": {key: told[key] for key in features}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features_told)})


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _describe(meta: _Files, rows: list[dict[str, Any]]) -> None:
    """Writes what is known of some episodes, and forgets it."""
    if rows:
        table = pa.Table.from_pylist(rows)
        chunk, file = meta.place(table.nbytes)
        table = table.append_column("meta/episodes/chunk_index", pa.array([chunk] * len(rows), pa.int64()))
        meta.write(table.append_column("meta/episodes/file_index", pa.array([file] * len(rows), pa.int64())))
        rows.clear()


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """task_index by task, which pandas takes for the index of the data frame."""
    column = {"metadata": None}
    told = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"} | column
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"} | column,
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"} | column,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",  # of whose layout this is
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(told)}), path, write_page_checksum=True)
