"""Whether LeRobot itself opens a data set that is written here and finds the same in it, and the other way round.

    python -m benchmarks.lerobot_opens

Needs LeRobot beside our own packages. It asks for older ones than ours, so take an environment of its own, into which ours
are linked by a .pth file, and there: pip install --no-deps lerobot==0.4.4 av==15.1.0 termcolor torchvision==0.28.0
"""

# ruff: noqa: E402 (what transformers finds of torchvision must be mended before anything imports it)
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp()}  # LeRobot asks no server and keeps no cache
# What LeRobot imports describes two operators that its CUDA build lacks beside a torch for the CPU.
LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np
import pyarrow.parquet as pq

from benchmarks.results import record
from discdiff.cli import guarded, parse
from tasks.vla.episodes import Episode
from tasks.vla.lerobot import Dataset, open_dataset
from tasks.vla.lerobot.writing import write

FPS, CHUNK = 10, 8
SIZES = {"top": (64, 64), "side": (48, 80)}


@dataclass(frozen=True)
class Measured:
    """episodes: of 1 to 30 frames of noise; save: write docs/results/lerobot_opens.json."""

    episodes: int = 12
    seed: int = 0
    save: bool = True


def invented(count: int, seed: int) -> list[Episode]:
    """Noise with two cameras and two tasks, one episode shorter than a chunk."""
    rng = np.random.default_rng(seed)
    found = []
    for number, frames in enumerate([1, *rng.integers(2, 31, count - 1)]):
        state, action = (rng.normal(size=(frames, dim)).astype(np.float32) for dim in (39, 4))
        seen = {camera: rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for camera, size in SIZES.items()}
        found.append(Episode(state, action, ("push", "pull the lever")[number % 2], seen, "left"))
    return found


def theirs(kind: Any, folder: Path, episodes: Sequence[Episode]) -> None:
    """The same episodes, written by LeRobot."""
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": (dim,), "names": None}
        for key, dim in (("observation.state", 39), ("action", 4))
    }
    for camera, size in SIZES.items():
        names = ["height", "width", "channels"]
        features[f"observation.images.{camera}"] = {"dtype": "image", "shape": (*size, 3), "names": names}
    made = kind.create("local/theirs", fps=FPS, features=features, root=folder, use_videos=False)
    for each in episodes:
        for i in range(len(each)):
            seen = {f"observation.images.{camera}": x[i] for camera, x in each.pictures.items()}
            made.add_frame({"observation.state": each.state[i], "action": each.action[i], "task": each.task, **seen})
        made.save_episode()
    made.finalize()


def differing(ours: Dataset, found: Any) -> dict[str, int]:
    """Frames, and chunks of actions with their padding, that LeRobot gives otherwise than we do."""
    windows = ours.windows(CHUNK)
    frames = chunks = row = 0
    for number, each in enumerate(ours.episodes()):
        for i in range(len(each)):
            item = found[row]
            same = torch.equal(item["observation.state"], torch.from_numpy(each.state[i])) and item["task"] == each.task
            same &= (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (number, i, row)
            same &= float(item["timestamp"]) == float(np.float32(i / FPS))
            for camera, x in each.pictures.items():
                picture = (item[f"observation.images.{camera}"] * 255).round().byte().permute(1, 2, 0)
                same &= torch.equal(picture, torch.from_numpy(x[i]))
            frames += not same
            padded = torch.equal(item["action_is_pad"], windows.action_is_pad[row])
            chunks += not (padded and torch.equal(item["action"], windows.actions[row]))
            row += 1
    frames += abs(len(found) - row)
    return {"frames that differ": frames, "chunks and paddings that differ": chunks}


def columns(folder: Path, pattern: str) -> set[tuple[str, str]]:
    """Names and types of a data set's columns."""
    schemas = [pq.read_schema(path) for path in sorted(folder.glob(pattern))]
    return {(field.name, str(field.type)) for schema in schemas for field in schema}


def main(argv: Sequence[str]) -> None:
    """Both ways, and the columns of both."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset as kind

    settings: Measured = parse("python -m benchmarks.lerobot_opens", argv, {"measured": Measured})["measured"]
    episodes = invented(settings.episodes, settings.seed)
    ahead = {"action": [i / FPS for i in range(CHUNK)]}
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        ours, other = Path(folder) / "ours", Path(folder) / "theirs"
        write(ours, episodes, FPS, data_files_size_in_mb=1, chunks_size=2)
        theirs(kind, other, episodes)
        for name, root in (("written here", ours), ("written by LeRobot", other)):
            opened = kind("local/data", root=root, delta_timestamps=ahead)
            figures.append({"figure": f"{name}: frames", "value": len(opened)})
            found = differing(open_dataset(root), opened)
            figures += [{"figure": f"{name}: {n}", "value": v, "goal": "== 0"} for n, v in found.items()]
        files = len(list(ours.glob("data/*/*.parquet")))
        figures.append({"figure": "written here: files of frames", "value": files, "goal": "> 2"})
        for name in ("data", "meta/episodes"):
            lacking = columns(other, f"{name}/*/*.parquet") - columns(ours, f"{name}/*/*.parquet")
            figures.append(
                {"figure": f"columns of LeRobot's {name} that ours lacks", "value": len(lacking), "goal": "== 0"}
            )
            print(f"{name}: lacking {sorted(lacking)}")
    data = f"{len(episodes)} episodes of noise with two cameras, LeRobot {importlib.metadata.version('lerobot')}"
    if settings.save:
        record("lerobot_opens", figures, data=data, seeds=settings.seed)
    else:
        print("\n".join(f"{row['figure']}: {row['value']}" for row in figures))


if __name__ == "__main__":
    sys.exit(guarded(main))
