"""LeRobot v3.0 data sets that are damaged or do not fit: what is wrong is named. And those with videos."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lerobot_toy import DATA, FPS, LENGTHS, META, change, column, feature, info_of, invented, prepared

from tasks.vla.episodes import Episode
from tasks.vla.lerobot import open_dataset, reading
from tasks.vla.lerobot.writing import write


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests that change it take a copy."""
    return prepared(tmp_path_factory.mktemp("sets") / "ours")


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def cut_short(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100]) and None


def flipped(folder: Path) -> None:
    """One bit of an action that nothing but a checksum can tell from another number."""
    content = bytearray((folder / DATA).read_bytes())
    at = content.find(invented()[1].action[:4].tobytes())
    assert at > 0
    content[at] ^= 1
    (folder / DATA).write_bytes(content)


def no_file(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def torn(pictures: list[dict[str, Any]]) -> pa.Array:
    return pa.array([{**each, "bytes": each["bytes"][:60]} if i == 6 else each for i, each in enumerate(pictures)])


def emptied(pictures: list[dict[str, Any]]) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{**each, "bytes": None} for each in pictures], kind)


def vectors(rows: list[list[Any]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


def scaled(seconds: list[float]) -> pa.Array:
    return pa.array([t * (0.5 if i >= 5 else 1) for i, t in enumerate(seconds)], pa.float32())


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no info": (no_file("meta/info.json"), "no LeRobot data set"),
    "info is no JSON": (cut_short("meta/info.json"), "cannot be read as JSON"),
    "another version": (info_of(codebase_version="v2.1"), r"v2\.1.*converter"),
    "another storage": (info_of(storage_format="lance"), "lance"),
    "no rate": (info_of(fps=0), "fps"),
    "no features": (info_of(features={}), "features"),
    "a path outside": (info_of(data_path="../{chunk_index}/{file_index}.parquet"), "inside the data set"),
    "a path of other fields": (info_of(data_path="data/{episode_chunk}.parquet"), "chunk_index"),
    "too few episodes": (info_of(total_episodes=5), "there are 5"),
    "too few frames": (info_of(total_frames=20), "19 frames"),
    "no tasks": (no_file("meta/tasks.parquet"), r"tasks\.parquet.*missing"),
    "no episodes": (no_file(META), "meta/episodes"),
    "episodes cut short": (cut_short(META), r"meta/episodes.*finalize"),
    "no frames": (no_file(DATA), r"file-000\.parquet.*missing"),
    "frames cut short": (cut_short(DATA), r"data/chunk-000.*finalize"),
    "a bit": (flipped, r"data/chunk-000.*is damaged"),
    "a length": (column("length", lambda _: pa.array([5, 8, 1, 5]), META), r"episode 1.*\(8, 5, 14\)"),
    "an episode twice": (column("episode_index", lambda _: pa.array([0, 1, 1, 3]), META), "numbered from 0"),
    "no number": (column("length", lambda _: pa.array([5, None, 1, 4]), META), "whole numbers"),
    "a column": (lambda folder: change(folder / DATA, lambda t: t.drop_columns("task_index")), "'task_index'.*missing"),
    "another shape": (feature("action", shape=[3]), r"action.*shape \(3,\)"),
    "no numbers": (column("action", lambda x: pa.array(["left"] * len(x))), "action.*string.*float32"),
    "no pictures": (feature("action", dtype="image", shape=[2, 2, 3]), "action"),
    "a shape of nothing": (feature("action", shape=None), "'action'.*shape"),
    "a feature's rate": (feature("action", fps=30), r"fps of 'action' is 30"),
    "a video's rate": (feature("observation.images.top", info={"video.fps": 25}), "is 25"),
    "timestamps": (column("timestamp", scaled), "timestamp of episode 1.*10 frames per second"),
    "other frames": (column("episode_index", lambda x: pa.array([0, *x[:-1]])), "episode_index of episode 1"),
    "other places": (column("frame_index", lambda x: pa.array(x[::-1])), "frame_index of episode 0"),
    "an unknown task": (column("task_index", lambda x: pa.array([7 * i for i in x])), r"task_index of episode 1.*\[7\]"),
    "ragged": (column("action", lambda x: pa.array([x[0] * 2, [], *x[2:]])), "action of episode 0.*lists of"),
    "a missing number": (column("action", lambda x: vectors([[None, 1.0], *x[1:]])), "1 missing"),
    "no number at all": (column("action", lambda x: vectors([[np.nan, 1.0], *x[1:]])), "episode 0.*finite"),
    "a torn picture": (column("observation.images.side", torn), r"frame 1, .*images\.side of episode 1.*damaged"),
    "no bytes": (column("observation.images.top", emptied), "embed"),
    "another size": (feature("observation.images.side", shape=[7, 5, 3]), r"\(5, 7\).*\(7, 5\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(copy: Path, what: str) -> None:
    damage, said = DAMAGE[what]
    damage(copy)
    with pytest.raises(ValueError, match=f"(?s){said}"):
        list(open_dataset(copy).episodes())


def test_features_that_are_not_there_are_named_with_those_that_are(written: Path) -> None:
    for wrong in (
        {"state": "state"},
        {"action": "actions"},
        {"action": "observation.images.top"},
        {"cameras": ["front"]},
    ):
        with pytest.raises(ValueError, match="top" if "cameras" in wrong else r"'observation\.state', 'action'"):
            open_dataset(written, **wrong)  # type: ignore[arg-type]
    opened = open_dataset(written)
    for call in (lambda: list(opened.episodes([4])), lambda: opened.windows(0), lambda: opened.windows(2, which=[])):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(ValueError, match="no LeRobot data set"):
        open_dataset(written / "nowhere")


def test_what_does_not_fit_is_not_written(tmp_path: Path, written: Path) -> None:
    one, two = invented()[:2]
    other = Episode(one.state[:, :2], one.action, "push", one.pictures)
    blind = Episode(one.state, one.action, "push", {"top": one.pictures["top"]})
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "at least one episode"),
        ([two, other], {}, "episode 1"),
        ([one, blind], {}, "episode 1"),
        ([one], {"fps": 0}, "fps"),
        ([one], {"names": {"action": ["x"]}}, "2 dimensions"),
        ([one], {"names": {"state": ["x"]}}, "observation.state"),
        ([Episode(one.state, one.action, "push", {"a/b": one.pictures["top"]})], {}, "a/b"),
    ]
    for episodes, settings, said in wrong:
        with pytest.raises(ValueError, match=said):
            write(tmp_path / "set", episodes, **{"fps": FPS, **settings})
    with pytest.raises(ValueError, match="not empty"):
        write(written, [one], FPS)
    assert list(tmp_path.iterdir()) == [] and len(open_dataset(written)) == 4


def test_a_broken_stream_leaves_nothing_behind_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    def stream() -> Iterator[Episode]:
        yield invented()[0]
        raise RuntimeError("the simulator stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write(tmp_path / "set", stream(), FPS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()
    assert len(open_dataset(write(tmp_path / "set", invented()[:1], FPS))) == 1


def with_video(folder: Path) -> None:
    """Says that the pictures of "top" are in a video, all episodes in one."""

    def info(content: dict[str, Any]) -> None:
        content["features"]["observation.images.top"] |= {"dtype": "video", "shape": [32, 48, 3]}
        content["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    def told(table: pa.Table) -> pa.Table:
        begins = [first / FPS for first in table["dataset_from_index"].to_pylist()]
        for name, values in (("chunk_index", [0] * 4), ("file_index", [0] * 4), ("from_timestamp", begins)):
            table = table.append_column(f"videos/observation.images.top/{name}", pa.array(values))
        return table

    change(folder / "meta/info.json", info)
    change(folder / META, told)
    change(folder / DATA, lambda table: table.drop_columns("observation.images.top"))


def test_videos_need_their_extra(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_video(copy)
    monkeypatch.setattr(reading, "can_decode", lambda: False)
    with pytest.raises(ValueError, match=r"camera 'top'.*discdiff\[video\].*cameras=\(\)"):
        open_dataset(copy)
    opened = open_dataset(copy, cameras=["side"])
    assert opened.extra == ("observation.images.top",) and len(list(opened.episodes())) == 4


def test_videos_are_decoded_where_an_episode_begins(copy: Path) -> None:
    av = pytest.importorskip("av")
    with_video(copy)
    path = copy / "videos/observation.images.top/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(sum(LENGTHS)):
            picture = np.full((32, 48, 3), 12 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    level = 0
    for number, episode in enumerate(open_dataset(copy).episodes()):
        assert episode.pictures["top"].shape == (LENGTHS[number], 32, 48, 3)
        for picture in episode.pictures["top"]:
            assert abs(float(picture.mean()) - 12 * level) < 6
            level += 1
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"file-000\.mp4"):
        list(open_dataset(copy).episodes([1]))
    path.unlink()
    with pytest.raises(ValueError, match=r"file-000\.mp4.*missing"):
        list(open_dataset(copy).episodes([1]))
