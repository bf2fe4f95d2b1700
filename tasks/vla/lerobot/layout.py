"""The files of a LeRobot v3.0 data set that describe the others: info.json, tasks, episodes, and the schemas of the frames."""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from discdiff.config import checked, read_json

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INDICES = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
}  # fmt: skip
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
PICTURES = ("image", "video")
_NEEDED = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
_FEW = (1, 3, 4)  # channels of a picture


@dataclass(frozen=True)
class Feature:
    """A column of the frames: dtype ("float32", ..., "string", "image", "video"), shape of one value, names of its
    dimensions, frames per second where the feature has its own, and whether it is a depth map.
    """

    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    fps: float | None = None
    depth: bool = False

    @property
    def picture(self) -> bool:
        """Whether a value is a colour picture."""
        return self.dtype in PICTURES and not self.depth

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture, whose shape may begin or end with the channels."""
        first = str(self.names[0]) if isinstance(self.names, list) and self.names else ""
        fewer = self.shape[0] in _FEW and self.shape[-1] not in _FEW
        leads = first.startswith("c") or (fewer and not first.startswith("h"))
        return (self.shape[1], self.shape[2]) if leads else (self.shape[0], self.shape[1])


class Info(NamedTuple):
    """What info.json says; content: all of it."""

    fps: float
    features: dict[str, Feature]
    episodes: int
    frames: int
    data_path: str
    video_path: str | None
    content: dict[str, Any]


class Row(NamedTuple):
    """An episode: frames first..last - 1 of the data set, and all columns of meta/episodes but its statistics."""

    first: int
    last: int
    columns: dict[str, Any]


class Part(NamedTuple):
    """A file of frames: its path, the first frame of each of its row groups, one past its last, and its columns."""

    path: Path
    starts: tuple[int, ...]
    last: int
    schema: pa.Schema


def read_info(folder: Path) -> Info:
    """Raises ValueError for a folder without info.json, for other versions, and for entries that are missing or wrong."""
    checked("folder", str(folder), (folder / INFO).is_file(), f"no LeRobot data set: {INFO} is missing there")
    content = read_json(folder / INFO)
    version = str(content.get("codebase_version"))
    remedy = "this reads v3: bring older ones to it by LeRobot's own converter (lerobot.datasets.v30)"
    checked("codebase_version", version, re.fullmatch(r"v?3(\.\d+)*", version) is not None, remedy)
    storage = content.get("storage_format", "parquet")
    checked("storage_format", storage, storage in (None, "parquet"), "only parquet is read: convert it to the default")
    where = f"{INFO} of {str(folder)!r}"
    fps: Any = content.get("fps")
    features: Any = content.get("features")
    checked(f"fps in {where}", fps, _number(fps) and fps > 0, "frames per second, above 0")
    checked(f"features in {where}", features, isinstance(features, dict) and bool(features), "a dictionary of features")
    for name in ("total_episodes", "total_frames"):
        value = content.get(name)
        checked(f"{name} in {where}", value, isinstance(value, int) and value > 0, "a number of at least 1")
    data: Any = content.get("data_path")
    video: Any = content.get("video_path")
    _template(f"data_path in {where}", data, {"chunk_index", "file_index"})
    if video is not None:
        _template(f"video_path in {where}", video, {"video_key", "chunk_index", "file_index"})
    known = {key: _feature(f"feature {key!r} in {where}", key, each) for key, each in features.items()}
    return Info(float(fps), known, content["total_episodes"], content["total_frames"], data, video, content)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _template(name: str, value: Any, fields: set[str]) -> None:
    """A path of its own fields, inside the data set."""
    try:
        found = {field for _, field, _, _ in string.Formatter().parse(value) if field is not None}
    except (ValueError, TypeError):
        found = set()
    remedy = f"a path inside the data set with {' and '.join('{' + f + '}' for f in sorted(fields))}"
    inside = isinstance(value, str) and not Path(value).is_absolute() and ".." not in Path(value).parts
    checked(name, value, found == fields and inside, remedy)


def _feature(name: str, key: str, given: Any) -> Feature:
    checked(name, given, isinstance(given, dict) and "/" not in key and key not in (".", ".."), "give {dtype, shape}")
    dtype, shape = given.get("dtype"), given.get("shape")
    fits = isinstance(shape, list | tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    fits = fits and (dtype not in PICTURES or len(shape) == 3)
    checked(
        name, given, isinstance(dtype, str) and fits, "give a dtype and a shape, of pictures (height, width, channels)"
    )
    told = [given.get(name) for name in ("video_info", "info")]
    info = {key: value for each in told if isinstance(each, dict) for key, value in each.items()}
    fps = given.get("fps", info.get("video.fps"))
    depth = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
    return Feature(dtype, tuple(shape), given.get("names"), float(fps) if _number(fps) else None, depth)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises ValueError naming the file where it is missing, cut short or otherwise no parquet file."""
    checked("file", str(path), path.is_file(), "it is missing: copy the data set again")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        remedy = "damaged, or never closed by its writer (LeRobot: dataset.finalize())"
        raise ValueError(f"{str(path)!r} is no parquet file, {remedy}: {error}") from error


def read_columns(file: pq.ParquetFile, columns: list[str], path: Path, groups: list[int] | None = None) -> pa.Table:
    """Some columns of some row groups. Raises ValueError naming the file for columns that are not there and for damage."""
    missing = sorted(set(columns) - set(file.schema_arrow.names))
    checked("columns", missing, not missing, f"they are missing in {str(path)!r}, which has {file.schema_arrow.names}")
    try:
        table = file.read(columns) if groups is None else file.read_row_groups(groups, columns)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    return table.select(columns)  # the name of a column is also a prefix of nested ones


def read_tasks(folder: Path) -> tuple[str, ...]:
    """What to do, in words, by task_index. Raises ValueError for a file without words and for gaps in the numbers.

    The words are the index of a pandas data frame, called "task" or nothing.
    """
    path = folder / TASKS
    file = open_parquet(path)
    names = file.schema_arrow.names
    described = (file.schema_arrow.pandas_metadata or {}).get("index_columns", [])
    index = [n for n in (*described, "task", "__index_level_0__") if isinstance(n, str) and n in names]
    checked("columns", names, bool(index) and "task_index" in names, f"{str(path)!r} needs task_index and task")
    table = read_columns(file, ["task_index", index[0]], path).to_pydict()
    words = dict(zip(table["task_index"], table[index[0]], strict=True))
    complete = sorted(words, key=str) == sorted(range(len(table["task_index"])), key=str)
    fits = complete and all(isinstance(w, str) for w in words.values())
    checked("task_index", table["task_index"][:20], fits, f"{str(path)!r} needs a text for each number from 0 on")
    return tuple(words[i] for i in range(len(words)))


def read_episodes(folder: Path, info: Info) -> tuple[Row, ...]:
    """The episodes in order. Raises ValueError where some are missing or double, and for lengths that do not add up."""
    paths = sorted(folder.glob("meta/episodes/*/*.parquet"))
    checked("meta/episodes", str(folder), bool(paths), "no parquet file there: copy the data set again")
    found: list[dict[str, Any]] = []
    for path in paths:
        file = open_parquet(path)
        wanted = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
        found += read_columns(file, list(dict.fromkeys([*_NEEDED, *wanted])), path).to_pylist()
    for each in found:
        whole = all(isinstance(each[name], int) for name in _NEEDED)
        checked("meta/episodes", {n: each[n] for n in _NEEDED}, whole, "whole numbers are expected in these columns")
    found.sort(key=lambda each: each["episode_index"])
    numbers = [each["episode_index"] for each in found]
    remedy = f"{INFO} says that there are {info.episodes}, numbered from 0"
    checked("episodes", _short(numbers), numbers == list(range(info.episodes)), remedy)
    rows, begin = [], 0
    for each in found:
        first, last = each["dataset_from_index"], each["dataset_to_index"]
        name = f"episode {each['episode_index']}: (length, dataset_from_index, dataset_to_index)"
        remedy = f"its frames begin at {begin}, where the episode before it ends, and are as many as its length"
        checked(name, (each["length"], first, last), first == begin and last - first == each["length"] > 0, remedy)
        rows.append(Row(first, last, each))
        begin = last
    checked("total_frames", info.frames, begin == info.frames, f"the episodes have {begin} frames together")
    return tuple(rows)


def _short(numbers: list[int]) -> str:
    return f"{len(numbers)} of them, {numbers[:8]}{'...' if len(numbers) > 8 else ''}"


def read_parts(folder: Path, info: Info, rows: tuple[Row, ...]) -> tuple[Part, ...]:
    """The files of frames in order, by their footers. Raises ValueError for missing and damaged files and wrong totals.

    Which frames a file holds follows from the order of the files, as in LeRobot: the file that an episode names need only
    be there (its converter up to 0.4.0 names the one before where a file begins).
    """
    for chunk, number in dict.fromkeys((r.columns["data/chunk_index"], r.columns["data/file_index"]) for r in rows):
        place = info.data_path.format(chunk_index=chunk, file_index=number)
        checked("file", place, (folder / place).is_file(), "it is missing, and episodes are in it: copy it again")
    paths = folder.glob(re.sub(r"\{.*?\}", "*", info.data_path))
    parts, begin = [], 0
    for path in sorted(paths, key=lambda p: [int(n) for n in re.findall(r"\d+", str(p.relative_to(folder)))]):
        file = open_parquet(path)
        starts = []
        for group in range(file.num_row_groups):
            starts.append(begin)
            begin += file.metadata.row_group(group).num_rows
        parts.append(Part(path, tuple(starts), begin, file.schema_arrow))
    names = [str(part.path.relative_to(folder)) for part in parts]
    checked("total_frames", info.frames, begin == info.frames, f"the files {names[:8]} have {begin} together")
    return tuple(parts)
