"""Every measurement operator with its defaults, some with others, and rows for it."""

import torch
from motion_toy import BONES, VECTORS

from tasks.inverse import (
    OPERATORS,
    BandLimit,
    GaussianBlur,
    JointSubset,
    KeyFrames,
    MotionBlur,
    NonlinearBlur,
    SuperResolution,
)

SHAPES = {"channels, height, width": (2, 12, 16), "samples": (1600,), "frames, channels": (19, VECTORS.channels)}
JOINTS = JointSubset.named(BONES, ("hips", "hand_r"))
CASES = {
    **{name: kind() for name, kind in OPERATORS.items() if name not in ("nonlinear_blur", "joint_subset")},
    "nonlinear_blur": NonlinearBlur(torch.tanh),
    "joint_subset": JOINTS,
    "wide_blur": GaussianBlur(61, 3.0),
    "wide_motion": MotionBlur(61, 1.0, 3),
    "band_pass": BandLimit(300.0, 2000.0),
    "all_of_joints": JointSubset.named(BONES, ("hips", "head"), ("positions", "rotations", "velocities")),
    "key_frames_by_number": KeyFrames(0, (3, 18)),
    "shrink_2": SuperResolution(2),
}


def rows(operator, n=3, seed=0):
    """n rows for the operator, in [-1, 1], float64."""
    shape = SHAPES[", ".join(operator.axes[1:])]
    return 2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
