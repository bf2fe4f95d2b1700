"""Measurement operators y = A(x) of pictures, sound and motion, noise, and what checks them: inverse problems to solve.

Names and usual parameters of pictures after DPS (arXiv 2209.14687) and G2D2 (2410.14710).
"""

from tasks.inverse.base import NOISES, Gaussian, Masked, Operator, Poisson, check, measure
from tasks.inverse.learned import BlurNet, NonlinearBlur, load_blur, save_blur, train_blur
from tasks.inverse.motion import JointSubset, KeyFrames
from tasks.inverse.pictures import (
    BoxInpainting,
    GaussianBlur,
    HighDynamicRange,
    MotionBlur,
    RandomInpainting,
    SuperResolution,
)
from tasks.inverse.sound import BandLimit, Clipping, Gap

PICTURES: dict[str, type[Operator]] = {
    "super_resolution": SuperResolution,
    "gaussian_blur": GaussianBlur,
    "motion_blur": MotionBlur,
    "random_inpainting": RandomInpainting,
    "box_inpainting": BoxInpainting,
    "high_dynamic_range": HighDynamicRange,
    "nonlinear_blur": NonlinearBlur,
}
SOUNDS: dict[str, type[Operator]] = {"band_limit": BandLimit, "clipping": Clipping, "gap": Gap}
MOTIONS: dict[str, type[Operator]] = {"joint_subset": JointSubset, "key_frames": KeyFrames}
OPERATORS: dict[str, type[Operator]] = {**PICTURES, **SOUNDS, **MOTIONS}

__all__ = [
    "MOTIONS",
    "NOISES",
    "OPERATORS",
    "PICTURES",
    "SOUNDS",
    "BandLimit",
    "BlurNet",
    "BoxInpainting",
    "Clipping",
    "Gap",
    "Gaussian",
    "GaussianBlur",
    "HighDynamicRange",
    "JointSubset",
    "KeyFrames",
    "Masked",
    "MotionBlur",
    "NonlinearBlur",
    "Operator",
    "Poisson",
    "RandomInpainting",
    "SuperResolution",
    "check",
    "load_blur",
    "measure",
    "save_blur",
    "train_blur",
]
