"""BVH files: a skeleton, and its motion as channels of each joint in any order."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tokenizers_vq.config import checked
from tokenizers_vq.motion.rotations import euler_from_matrix, matrix_from_euler
from tokenizers_vq.motion.skeleton import Pose, Skeleton

CHANNELS = tuple(f"{axis}{kind}" for kind in ("position", "rotation") for axis in "XYZ")
CENTIMETRE = 0.01
LIMIT = 1 << 30  # bytes


@dataclass(frozen=True, eq=False)
class Bvh:
    """A file's content: skeleton (in the file's unit), channels of each joint, frames (frames, channels) float64 in the
    file's unit and degrees, fps, and the offsets of end sites by joint.
    """

    skeleton: Skeleton
    channels: tuple[tuple[str, ...], ...]
    frames: Tensor
    fps: float
    ends: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    def pose(self) -> tuple[Pose, Tensor]:
        """Rotations of the joints, and offsets (frames, joints, 3), which position channels replace."""
        length, count = len(self.frames), len(self.skeleton)
        rotations = torch.eye(3, dtype=self.frames.dtype).repeat(length, count, 1, 1)
        offsets = self.skeleton.offset(self.frames).repeat(length, 1, 1)
        column = 0
        for joint, names in enumerate(self.channels):
            values = self.frames[:, column : column + len(names)]
            column += len(names)
            for n, name in enumerate(names):
                if name.endswith("position"):
                    offsets[:, joint, "XYZ".index(name[0])] = values[:, n]
            turns = [n for n, name in enumerate(names) if name.endswith("rotation")]
            order = "".join(names[n][0] for n in turns)
            rotations[:, joint] = matrix_from_euler(values[:, turns].deg2rad(), order)
        return Pose(offsets[:, 0], rotations), offsets

    def positions(self, scale: float = CENTIMETRE) -> Tensor:
        """Positions (frames, joints, 3) in metres, `scale` metres being the file's unit, which no file states."""
        pose, offsets = self.pose()
        return self.skeleton.forward(pose, offsets) * scale

    @classmethod
    def of(cls, skeleton: Skeleton, pose: Pose, fps: float, order: str = "ZXY", scale: float = CENTIMETRE) -> Bvh:
        """A motion (frames, ...) in metres, as root positions and three rotations of every joint in the given order."""
        angles = euler_from_matrix(pose.rotations.double(), order).rad2deg()
        offsets = tuple(tuple(x / scale for x in offset) for offset in skeleton.offsets)
        frames = torch.cat([pose.root.double() / scale, angles.flatten(1)], 1)
        turns = tuple(f"{axis}rotation" for axis in order)
        channels = ((*CHANNELS[:3], *turns), *[turns] * (len(skeleton) - 1))
        return cls(Skeleton(skeleton.joints, skeleton.parents, offsets), channels, frames, fps)  # type: ignore[arg-type]


class _Lines:
    """The words of a file, line by line, and errors that say where."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            size = path.stat().st_size
            checked("file size", size, size < LIMIT, f"{str(path)!r} is no BVH file of a motion")
            self.lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is no BVH file: {error}") from error

    def error(self, message: str) -> ValueError:
        return ValueError(f"{str(self.path)!r}, line {self.at}: {message}")

    def words(self, expected: str) -> list[str]:
        """The next line that is not blank."""
        while self.at < len(self.lines):
            self.at += 1
            if words := self.lines[self.at - 1].split():
                return words
        raise self.error(f"the file ends where {expected} is expected: it is cut off")

    def numbers(self, words: Sequence[str], count: int, what: str) -> list[float]:
        try:
            found = [float(word) for word in words]
        except ValueError as error:
            raise self.error(f"{what}: {error}") from None
        if len(found) != count or not all(map(math.isfinite, found)):
            raise self.error(f"{what} has {len(found)} numbers, {count} finite ones are expected")
        return found


def read_bvh(path: str | os.PathLike[str]) -> Bvh:
    """The motion in a BVH file. Raises ValueError naming file and line for anything that is not as the format says."""
    lines = _Lines(Path(path))
    joints: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[tuple[str, ...]] = []
    ends: dict[int, tuple[float, float, float]] = {}
    if lines.words("HIERARCHY")[0].upper() != "HIERARCHY":
        raise lines.error("a BVH file begins with HIERARCHY")
    open_: list[int] = []  # joints whose brace is open; -1 for an end site
    while True:
        words = lines.words("a joint or MOTION")
        key = words[0].upper()
        if key in ("ROOT", "JOINT") or [word.upper() for word in words[:2]] == ["END", "SITE"]:
            site = key == "END"
            if (key == "ROOT") != (not joints) or (open_ and open_[-1] < 0) or (key != "ROOT" and not open_):
                raise lines.error(f"{' '.join(words)} stands where the format has none: one ROOT, all else inside it")
            if not site and len(words) < 2:
                raise lines.error(f"{key} has no name")
            opened = words[-1] == "{" or lines.words("{") == ["{"]
            if not opened:
                raise lines.error("a { is expected")
            offset = lines.words("OFFSET")
            if offset[0].upper() != "OFFSET":
                raise lines.error(f"OFFSET is expected, not {offset[0]}")
            place = lines.numbers(offset[1:], 3, "OFFSET")
            if site:
                ends[open_[-1]] = (place[0], place[1], place[2])
                open_.append(-1)
                continue
            name = " ".join(words[1:]).removesuffix("{").strip()
            if name in joints:
                raise lines.error(f"joint {name!r} occurs twice")
            parents.append(open_[-1] if open_ else -1)
            open_.append(len(joints))
            joints.append(name)
            offsets.append(place)
            channels.append(_channels(lines))
        elif key == "}":
            if not open_:
                raise lines.error("a } closes nothing")
            open_.pop()
        elif key == "MOTION":
            break
        else:
            raise lines.error(f"{words[0]!r} is not known here: ROOT, JOINT, End Site, }} or MOTION")
    if open_ or len(joints) < 2:
        raise lines.error(f"MOTION with {len(open_)} open braces and {len(joints)} joints: at least 2, all closed")
    skeleton = Skeleton(tuple(joints), tuple(parents), tuple((x, y, z) for x, y, z in offsets))
    frames, fps = _motion(lines, sum(map(len, channels)))
    return Bvh(skeleton, tuple(channels), frames, fps, ends)


def _channels(lines: _Lines) -> tuple[str, ...]:
    words = lines.words("CHANNELS")
    if words[0].upper() != "CHANNELS" or len(words) < 2 or not words[1].isdigit():
        raise lines.error("CHANNELS and their number are expected")
    known = {name.lower(): name for name in CHANNELS}
    found = tuple(known.get(word.lower(), "") for word in words[2:])
    if len(found) != int(words[1]) or "" in found or len(set(found)) != len(found):
        raise lines.error(f"CHANNELS {' '.join(words[1:])}: give that many different ones of {', '.join(CHANNELS)}")
    return found


def _motion(lines: _Lines, width: int) -> tuple[Tensor, float]:
    words = lines.words("Frames:")
    if words[0].lower() != "frames:" or len(words) != 2 or not words[1].isdigit():
        raise lines.error("'Frames:' and a number are expected")
    count = int(words[1])
    words = lines.words("Frame Time:")
    if [word.lower() for word in words[:2]] != ["frame", "time:"]:
        raise lines.error("'Frame Time:' and seconds are expected")
    seconds = lines.numbers(words[2:], 1, "Frame Time")[0]
    if seconds <= 0 or count < 1:
        raise lines.error(f"{count} frames of {seconds} seconds: both must be above 0")
    frames = [lines.numbers(lines.words(f"frame {n + 1} of {count}"), width, f"frame {n + 1}") for n in range(count)]
    rest = [n for n in range(lines.at, len(lines.lines)) if lines.lines[n].strip()]
    if rest:
        lines.at = rest[0] + 1
        raise lines.error(f"{len(rest)} lines after the {count} frames that 'Frames:' promises")
    return torch.tensor(frames, dtype=torch.float64), 1 / seconds


def write_bvh(path: str | os.PathLike[str], bvh: Bvh) -> Path:
    """Write a BVH file, complete or not at all; returns its path. Raises ValueError where channels and frames disagree."""
    width = sum(map(len, bvh.channels))
    fits = bvh.frames.ndim == 2 and bvh.frames.shape[1] == width and len(bvh.channels) == len(bvh.skeleton)
    checked(
        "frames", tuple(bvh.frames.shape), fits, f"the channels of {len(bvh.skeleton)} joints need (frames, {width})"
    )
    checked("fps", bvh.fps, bvh.fps > 0, "frames per second, above 0")
    order = _depth_first(bvh.skeleton.parents)
    checked("order of joints", order, order == sorted(order), "depth first, as the hierarchy is written")
    text = ["HIERARCHY"]
    depth = 0
    for joint, (name, parent) in enumerate(zip(bvh.skeleton.joints, bvh.skeleton.parents)):
        below = 0 if joint == 0 else _depth(bvh.skeleton.parents, parent) + 1
        text += ["\t" * d + "}" for d in range(depth - 1, below - 1, -1)]
        tab, depth = "\t" * below, below + 1
        text += [f"{tab}{'JOINT' if joint else 'ROOT'} {name}", f"{tab}{{"]
        text += [f"{tab}\tOFFSET {_row(bvh.skeleton.offsets[joint])}"]
        text += [f"{tab}\tCHANNELS {len(bvh.channels[joint])} {' '.join(bvh.channels[joint])}"]
        if joint in bvh.ends or joint not in bvh.skeleton.parents:
            end = _row(bvh.ends.get(joint, (0.0, 0.0, 0.0)))
            text += [f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET {end}", f"{tab}\t}}"]
    text += ["\t" * d + "}" for d in range(depth - 1, -1, -1)]
    text += ["MOTION", f"Frames: {len(bvh.frames)}", f"Frame Time: {1 / bvh.fps:.9g}"]
    text += [_row(frame) for frame in bvh.frames.tolist()]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _row(values: Sequence[float]) -> str:
    return " ".join(f"{value:.7g}" for value in values)


def _depth(parents: Sequence[int], joint: int) -> int:
    return 0 if joint == 0 else 1 + _depth(parents, parents[joint])


def _depth_first(parents: Sequence[int]) -> list[int]:
    """Joints as a hierarchy lists them."""
    order, rest = [], [0]
    while rest:
        joint = rest.pop()
        order.append(joint)
        rest += [c for c in range(len(parents) - 1, joint, -1) if parents[c] == joint]
    return order
