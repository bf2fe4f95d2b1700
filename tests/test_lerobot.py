"""LeRobot v3.0 data sets: what is written is read again and has the format's layout; those of others are read."""

import io
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_toy import DATA, FPS, LENGTHS, META, QUANTILES, change, feature, invented, prepared, put, same
from PIL import Image

from tasks.vla.episodes import Episode
from tasks.vla.lerobot import open_dataset, reading, windows, writing
from tasks.vla.lerobot.statistics import count_levels, picture_statistics
from tasks.vla.lerobot.writing import write


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests that change it take a copy."""
    return prepared(tmp_path_factory.mktemp("sets") / "ours")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_what_is_written_is_read_again(written: Path) -> None:
    opened = open_dataset(written)
    assert len(opened) == 4 and opened.info.frames == sum(LENGTHS) and opened.fps == FPS and opened.extra == ()
    for found, wanted in zip(opened.episodes(), invented(), strict=True):
        same(found, wanted)
    [last] = opened.episodes([3], pictures=False)
    assert np.array_equal(last.action, invented()[3].action) and last.pictures == {}
    assert np.array_equal(opened.column("action", [2, 0]), np.concatenate([invented()[i].action for i in (2, 0)]))
    [seen] = open_dataset(written, cameras="side").episodes([1])
    assert list(seen.pictures) == ["side"]


def test_info_says_what_the_format_asks_for(written: Path) -> None:
    info = json.loads((written / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0", "robot_type": "arm", "total_episodes": 4, "total_frames": 19, "total_tasks": 2,
        "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": 10,
        "splits": {"train": "0:4"}, "video_path": None,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    }  # fmt: skip
    picture = {"dtype": "image", "names": ["height", "width", "channels"]}
    index = {"dtype": "int64", "shape": [1], "names": None}
    assert features == {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": ["dx", "grip"]},
        "observation.images.top": {**picture, "shape": [6, 4, 3]},
        "observation.images.side": {**picture, "shape": [5, 7, 3]},
        "timestamp": {**index, "dtype": "float32"},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index),
    }


def test_frames_have_the_columns_that_datasets_reads(written: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = pq.ParquetFile(written / DATA)
    assert file.num_row_groups == 4 and file.metadata.row_group(1).num_rows == 9  # an episode each
    types = {field.name: field.type for field in file.schema_arrow}
    assert types["action"] == pa.list_(pa.float32(), 2) and types["timestamp"] == pa.float32()
    assert types["observation.images.top"] == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert all(types[name] == pa.int64() for name in ("frame_index", "episode_index", "index", "task_index"))
    features = datasets.Features.from_arrow_schema(file.schema_arrow)
    assert features["observation.images.side"] == datasets.Image()
    assert features["observation.state"] == datasets.Sequence(datasets.Value("float32"), length=3)
    table = file.read()
    assert table["index"].to_pylist() == list(range(19)) and table["frame_index"].to_pylist()[5:8] == [0, 1, 2]
    assert table["timestamp"].to_pylist()[5:8] == [0.0, np.float32(0.1), np.float32(0.2)]
    picture = table["observation.images.top"][5].as_py()
    assert picture["path"] == "frame-000000.png" and Image.open(io.BytesIO(picture["bytes"])).format == "PNG"


def test_episodes_and_tasks_are_told_as_the_format_asks_for(written: Path) -> None:
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(written / "meta/tasks.parquet")
    assert list(tasks.index) == ["push", "pull ä"] and list(tasks["task_index"]) == [0, 1]
    assert int(tasks.loc["pull ä"].task_index) == 1 and tasks.iloc[0].name == "push"
    table = pq.read_table(written / META)
    features = json.loads((written / "meta/info.json").read_text())["features"]
    told = {f"stats/{key}/{name}" for key in features for name in ("min", "max", "mean", "std", "count", *QUANTILES)}
    places = {f"{what}/{part}_index" for what in ("data", "meta/episodes") for part in ("chunk", "file")}
    rest = {"episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index", "way"}
    assert set(table.column_names) == told | places | rest
    assert table["dataset_from_index"].to_pylist() == [0, 5, 14, 15] and table["way"].to_pylist() == ["", "left"] * 2
    assert table["tasks"].to_pylist() == [["push"], ["pull ä"]] * 2
    nested = pa.list_(pa.list_(pa.list_(pa.float64())))
    assert table.schema.field("stats/observation.images.top/q50").type == nested
    assert table.schema.field("stats/action/min").type == pa.list_(pa.float64())
    assert (
        table.schema.field("stats/index/min").type
        == table.schema.field("stats/action/count").type
        == pa.list_(pa.int64())
    )


def test_statistics_are_those_of_all_frames(written: Path) -> None:
    stats = json.loads((written / "meta/stats.json").read_text())
    action = np.concatenate([each.action for each in invented()]).astype(np.float64)
    pixels = np.concatenate([each.pictures["side"] for each in invented()]).reshape(-1, 3) / 255
    for key, x, method in (("action", action, "linear"), ("observation.images.side", pixels, "inverted_cdf")):
        wanted = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
        wanted |= {name: np.quantile(x, q, axis=0, method=method) for name, q in QUANTILES.items()}
        for name, value in wanted.items():
            found = np.array(stats[key][name])
            assert found.shape == ((3, 1, 1) if "images" in key else (2,))
            np.testing.assert_allclose(found.reshape(-1), value, atol=1e-12)
        assert stats[key]["count"] == [19]
    opened = open_dataset(written)
    assert opened.stats.q01 == tuple(stats["action"]["q01"]) and opened.stats.mask == (True, True)
    np.testing.assert_allclose(opened.statistics("action", recompute=True).q99, opened.stats.q99, atol=1e-12)


def test_a_constant_picture_has_no_deviation() -> None:
    found = picture_statistics(count_levels(np.full((2, 3, 3, 3), 51, dtype=np.uint8)), 2)
    assert all(np.allclose(found[name], 0.2) for name in ("min", "max", "mean", *QUANTILES)) and not np.any(
        found["std"]
    )


def test_a_stream_is_cut_into_files_and_folders_of_whole_episodes(tmp_path: Path) -> None:
    made = invented((9, 9, 9, 9, 9), size=(150, 150))
    alive: list[weakref.ref[Episode]] = []

    def stream() -> Iterator[Episode]:
        for each in invented((9, 9, 9, 9, 9), size=(150, 150)):
            fresh = Episode(
                each.state, each.action, each.task, {n: x.copy() for n, x in each.pictures.items()}, each.way
            )
            assert sum(known() is not None for known in alive) <= 1  # the one before is still named in the loop
            alive.append(weakref.ref(fresh))
            yield fresh
            del fresh

    folder = write(tmp_path / "a" / "set", stream(), 12.5, data_files_size_in_mb=1, chunks_size=2)
    files = sorted(str(p.relative_to(folder / "data")) for p in folder.glob("data/*/*"))
    assert files == [f"chunk-{n // 2:03d}/file-{n % 2:03d}.parquet" for n in range(5)]
    places = pq.read_table(folder / META, columns=["data/chunk_index", "data/file_index"]).to_pydict()
    assert places == {"data/chunk_index": [0, 0, 1, 1, 2], "data/file_index": [0, 1, 0, 1, 0]}
    opened = open_dataset(folder)
    assert opened.fps == 12.5 and len(opened.parts) == 5
    for found, wanted in zip(opened.episodes([4, 1]), (made[4], made[1]), strict=True):
        same(found, wanted)


def test_many_episodes_are_described_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH", 3)
    folder = write(tmp_path / "set", invented(), FPS)
    assert pq.ParquetFile(folder / META).num_row_groups == 2
    assert [len(each) for each in open_dataset(folder).episodes()] == list(LENGTHS)


@pytest.mark.parametrize(("chunk", "stride"), [(1, 1), (4, 1), (4, 3), (20, 2)])
def test_windows_repeat_the_last_action(written: Path, chunk: int, stride: int) -> None:
    found, row = open_dataset(written).windows(chunk, stride), 0
    for number, episode in enumerate(invented()):
        for frame in range(0, len(episode), stride):
            steps = np.arange(frame, frame + chunk)
            wanted = episode.action[np.minimum(steps, len(episode) - 1)]
            assert np.array_equal(found.actions[row].numpy(), wanted)
            assert np.array_equal(found.action_is_pad[row].numpy(), steps >= len(episode))
            assert np.array_equal(found.state[row].numpy(), episode.state[frame]) and found.task[row] == episode.task
            assert (int(found.episode[row]), int(found.frame[row])) == (number, frame)
            row += 1
    assert row == len(found.actions)


def test_windows_of_some_episodes_keep_their_numbers(written: Path) -> None:
    found = open_dataset(written).windows(3, which=[3, 1])
    assert found.episode.tolist() == [3] * 4 + [1] * 9
    again = windows([invented()[3], invented()[1]], 3)
    assert torch.equal(again.actions, found.actions) and again.episode.tolist() == [0] * 4 + [1] * 9


def foreign(folder: Path) -> None:
    """Makes of our layout what other writers make of it: one row group for all, lists of any length, other features."""
    steps = list(range(sum(LENGTHS)))

    def frames(table: pa.Table) -> pa.Table:
        state = pa.array(table["observation.state"].to_pylist(), pa.list_(pa.float64()))
        table = put(table, "observation.state", state)
        table = table.append_column("action.full", pa.array([[i, i, i] for i in steps], pa.list_(pa.int64())))
        table = table.append_column("observation.environment_state", pa.array([[i / 2] for i in steps]))
        table = table.append_column("next.reward", pa.array([float(i) for i in steps]))
        table = table.append_column(
            "cloud", pa.array([[[i, 1], [2, 3], [4, 5]] for i in steps], pa.list_(pa.list_(pa.int32())))
        )
        table = table.append_column("note", pa.array([f"n{i}" for i in steps]))
        table = table.append_column("unnamed", pa.array(steps))
        table = put(table, "task_index", pa.array([0] * 3 + [1] * 2 + [0] * 14))  # the first episode changes its task
        return table.replace_schema_metadata({})

    def info(content: dict[str, Any]) -> None:
        features = content["features"]
        features["observation.images.top"] |= {
            "shape": [3, 6, 4],
            "names": ["channels", "height", "width"],
            "fps": 10.0,
        }
        features["observation.images.depth"] = {"dtype": "video", "shape": [6, 4, 1], "names": None}
        features["observation.images.depth"]["info"] = {"video.is_depth_map": True}
        new = {
            "action.full": ("int64", [3]),
            "observation.environment_state": ("float32", [1]),
            "next.reward": ("float32", [1]),
        }
        new |= {"cloud": ("int32", [3, 2]), "note": ("string", [1])}
        features |= {key: {"dtype": dtype, "shape": shape, "names": None} for key, (dtype, shape) in new.items()}
        content |= {"codebase_version": "v3.0.1", "dataset_name": "theirs", "fps": 10.0}
        del content["data_files_size_in_mb"]

    def told(table: pa.Table) -> pa.Table:
        return table.select([name for name in table.column_names if name != "way" and not name.startswith("stats/")])

    def stats(content: dict[str, Any]) -> None:
        for name in QUANTILES:
            del content["action"][name]

    change(folder / DATA, frames)
    table = pq.read_table(folder / DATA)  # ... in two files, and no episode names the second one, as LeRobot 0.4.0 does
    pq.write_table(table.slice(0, 14), folder / DATA)
    (folder / "data/chunk-001").mkdir()
    pq.write_table(table.slice(14), folder / "data/chunk-001/file-000.parquet")
    change(folder / "meta/info.json", info)
    change(folder / META, told)
    change(folder / "meta/stats.json", stats)
    tasks = pa.table({"task_index": [1, 0], "__index_level_0__": ["pull ä", "push"]})
    index = {"index_columns": ["__index_level_0__"], "columns": [], "column_indexes": []}
    pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(index)}), folder / "meta/tasks.parquet")


def test_data_sets_of_others_are_read(copy: Path) -> None:
    foreign(copy)
    opened = open_dataset(copy, state=["observation.environment_state", "observation.state"])
    assert opened.cameras == {"top": "observation.images.top", "side": "observation.images.side"}
    assert set(opened.extra) == {"action.full", "next.reward", "cloud", "note", "unnamed", "observation.images.depth"}
    for number, (found, wanted) in enumerate(zip(opened.episodes(), invented(), strict=True)):
        index = np.arange(LENGTHS[number]) + sum(LENGTHS[:number])
        assert np.array_equal(found.state[:, 0], (index / 2).astype(np.float32))
        assert np.array_equal(found.state[:, 1:], wanted.state) and np.array_equal(found.action, wanted.action)
        assert np.array_equal(found.pictures["top"], wanted.pictures["top"]) and found.way == ""
        assert found.task == ("push; pull ä" if number == 0 else "push")
    assert opened.column("cloud", [1])[2].tolist() == [[7, 1], [2, 3], [4, 5]]
    assert opened.column("note", [3])[:, 0].tolist() == ["n15", "n16", "n17", "n18"]
    assert open_dataset(copy, state=(), action="action.full").windows(2).actions[0].tolist() == [[0] * 3, [1] * 3]
    with pytest.raises(ValueError, match="recompute=True"):
        opened.statistics("action")
    action = np.concatenate([each.action for each in invented()])
    assert opened.statistics("action", recompute=True).max == tuple(action.max(0).tolist())
    for wrong in ("observation.images.top", "unnamed"):
        with pytest.raises(ValueError, match="next.reward"):  # what can be asked for
            opened.column(wrong)
    with pytest.raises(ValueError, match="note in .*data/chunk-000.*float32"):
        feature("note", dtype="float32")(copy)
        open_dataset(copy).column("note")


def test_a_row_group_that_episodes_share_is_read_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(copy)
    calls: list[Any] = []
    read = reading.layout.read_columns
    monkeypatch.setattr(reading.layout, "read_columns", lambda *given: calls.append(given) or read(*given))
    opened = open_dataset(copy)
    calls.clear()
    assert len(list(opened.episodes())) == 4 and len(calls) == 2  # two files of one group each
