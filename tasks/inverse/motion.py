"""Measurements of motion (batch, frames, channels), any finite values, in the units of its vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from discdiff.config import checked
from tasks.inverse.base import Masked, constant
from tokenizers_vq.motion import Skeleton

MEASURED = ("positions", "rotations", "velocities")


class _Motion(Masked):
    axes: ClassVar[tuple[str, ...]] = ("batch", "frames", "channels")
    limit: ClassVar[float] = math.inf


@dataclass(frozen=True)
class JointSubset(_Motion):
    """Of frame vectors (`tokenizers_vq.motion.FrameVectors`) of `count` joints, the channels of some joints; others become 0.

    groups: what is measured of a joint, of MEASURED; the root's position is its turn, step and height, and it has no
    rotation. Contacts are not measured. The defaults are root, head and both hands of HumanML3D's 22 joints, their places:
    a headset and two controllers. Raises ValueError for vectors of another length.
    """

    joints: tuple[int, ...] = (0, 15, 20, 21)
    count: int = 22
    groups: tuple[str, ...] = ("positions",)

    def __post_init__(self) -> None:
        for name in ("joints", "groups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        checked("count", self.count, self.count >= 2, "joints of the skeleton, at least 2")
        fits = bool(self.joints) and set(self.joints) <= set(range(self.count))
        checked("joints", self.joints, fits, f"some of 0..{self.count - 1}")
        known = bool(self.groups) and set(self.groups) <= set(MEASURED)
        checked("groups", self.groups, known, f"some of {', '.join(MEASURED)}")
        checked("groups", self.groups, bool(self.channels), "positions or velocities too: the root has no rotation")

    @classmethod
    def named(cls, skeleton: Skeleton, names: Sequence[str], groups: Sequence[str] = ("positions",)) -> Self:
        """Of a skeleton's joints by name. Raises ValueError for names it does not have."""
        return cls(tuple(skeleton.index(name) for name in names), len(skeleton), tuple(groups))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that are measured."""
        found: list[int] = []
        others = self.count - 1
        for joint in self.joints:
            if "positions" in self.groups:
                found += range(4) if joint == 0 else range(1 + 3 * joint, 4 + 3 * joint)
            if "rotations" in self.groups and joint:
                found += range(3 * others - 2 + 6 * joint, 3 * others + 4 + 6 * joint)
            if "velocities" in self.groups:
                found += range(4 + 9 * others + 3 * joint, 7 + 9 * others + 3 * joint)
        return tuple(sorted(set(found)))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        least = 12 * self.count - 5
        fits = least <= shape[2] <= least + self.count
        checked("channels", shape[2], fits, f"{least} and one per foot, of frame vectors of {self.count} joints")

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Channels (channels,)."""
        return _among(shape[2], self.channels, device)


@dataclass(frozen=True)
class KeyFrames(_Motion):
    """Frames 0, every, 2 every, ... and `frames`; the others become 0. every: 0 for `frames` alone, counted from 0.

    Raises ValueError for motions that end before the last of `frames`.
    """

    every: int = 8
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", tuple(self.frames))
        checked("every", self.every, self.every >= 0, "frames from one to the next, or 0")
        checked("frames", self.frames, all(n >= 0 for n in self.frames), "numbers of frames, counted from 0")
        checked("frames", self.frames, bool(self.frames or self.every), "at least one where every is 0")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        checked("frames", self.frames, max(self.frames, default=0) < shape[1], f"a motion has {shape[1]}")

    def kept(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Frames (frames, 1)."""
        chosen = self.frames + (tuple(range(0, shape[1], self.every)) if self.every else ())
        return _among(shape[1], chosen, device)[:, None]


@constant
def _among(n: int, chosen: tuple[int, ...], device: torch.device) -> Tensor:
    """(n,)."""
    kept = torch.zeros(n, dtype=torch.bool)
    kept[list(chosen)] = True
    return kept.to(device)
