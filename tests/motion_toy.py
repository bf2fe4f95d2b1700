"""A small skeleton, random motions of it, and where the public data lies."""

import os
from pathlib import Path

import pytest
import torch

from tokenizers_vq.motion.rotations import matrix_from_expmap
from tokenizers_vq.motion.skeleton import Pose, Skeleton
from tokenizers_vq.motion.vectors import FrameVectors

DATA = Path(os.environ.get("DISCDIFF_DATA", "shared/data"))
BONES = Skeleton(
    ("hips", "chest", "head", "arm_l", "hand_l", "arm_r", "hand_r", "leg_l", "foot_l", "leg_r", "foot_r"),
    (-1, 0, 1, 1, 3, 1, 5, 0, 7, 0, 9),
    ((0, 0, 0), (0, 0.4, 0), (0, 0.3, 0.05), (0.2, 0.1, 0), (0.1, -0.3, 0), (-0.2, 0.1, 0), (-0.1, -0.3, 0),
     (0.1, -0.1, 0), (0, -0.8, 0), (-0.1, -0.1, 0), (0, -0.8, 0)),
)  # fmt: skip
VECTORS = FrameVectors(BONES, ((9, 7), (5, 3)), (8, 10))


def folder(name: str) -> Path:
    """A folder of the public data, or the test is skipped."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name}: set DISCDIFF_DATA to the folder of the public data sets")
    return DATA / name


def random_pose(frames: int, seed: int = 0, size: float = 0.4, skeleton: Skeleton = BONES) -> Pose:
    """Smooth random turns of every joint, in float64."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(frames, dtype=torch.float64)[:, None, None] / 20
    phase = 6 * torch.rand(3, len(skeleton), 3, generator=generator, dtype=torch.float64)
    turns = size * torch.sin(phase[0] + (1 + phase[1]) * time)
    root = torch.stack([0.3 * time.sin(), 0.9 + 0.05 * time.cos(), 0.8 * time], -1).view(frames, 3)
    return Pose(root, matrix_from_expmap(turns))
