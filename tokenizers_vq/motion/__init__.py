"""Motion: skeletons, BVH files, frame vectors, and their tokenizer. Lengths are metres, y is up, unless said otherwise."""

from tokenizers_vq.motion.bvh import Bvh, read_bvh, write_bvh
from tokenizers_vq.motion.skeleton import Skeleton, bone_variation, mpjpe
from tokenizers_vq.motion.tokenizer import MotionTokenizer, MotionTokenizerConfig
from tokenizers_vq.motion.vectors import FrameVectors, statistics

__all__ = [
    "Bvh",
    "FrameVectors",
    "MotionTokenizer",
    "MotionTokenizerConfig",
    "Skeleton",
    "bone_variation",
    "mpjpe",
    "read_bvh",
    "statistics",
    "write_bvh",
]
