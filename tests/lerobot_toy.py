"""A small LeRobot data set, and ways of changing one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.vla.episodes import Episode
from tasks.vla.lerobot.writing import write

LENGTHS, FPS = (5, 9, 1, 4), 10
DATA, META = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def invented(lengths: tuple[int, ...] = LENGTHS, size: tuple[int, int] = (6, 4), seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    made = []
    for number, frames in enumerate(lengths):
        state, action = (rng.normal(size=(frames, dim)).astype(np.float32) for dim in (3, 2))
        shapes = {"top": (frames, *size, 3), "side": (frames, 5, 7, 3)}
        seen = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}
        made.append(Episode(state, action, ("push", "pull ä")[number % 2], seen, ("", "left")[number % 2]))
    return made


def prepared(folder: Path) -> Path:
    """Four episodes in one file."""
    return write(folder, iter(invented()), FPS, robot_type="arm", names={"action": ["dx", "grip"]})


def same(found: Episode, wanted: Episode) -> None:
    assert np.array_equal(found.state, wanted.state) and np.array_equal(found.action, wanted.action)
    assert (found.task, found.way, list(found.pictures)) == (wanted.task, wanted.way, list(wanted.pictures))
    for name, pictures in wanted.pictures.items():
        assert np.array_equal(found.pictures[name], pictures)


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrites a JSON file, or a parquet file as one row group, by what `edit` makes of its content."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        path.write_text(json.dumps(edit(content) or content))
    else:
        pq.write_table(edit(pq.read_table(path)), path)


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def info_of(**entries: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "meta/info.json", lambda content: {**content, **entries})


def feature(key: str, **entries: Any) -> Callable[[Path], None]:
    def edit(content: dict[str, Any]) -> None:
        content["features"][key] |= entries

    return lambda folder: change(folder / "meta/info.json", edit)


def column(name: str, values: Any, file: str = DATA) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, lambda table: put(table, name, values(table[name].to_pylist())))
