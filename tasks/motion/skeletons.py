"""Which joints of a skeleton face where and touch the ground: by name, and for the public sets whose files do not say."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from discdiff.config import checked
from tokenizers_vq.motion import FrameVectors, Skeleton

SIDES = (("left", "right"), ("l", "r"))

# channels of a frame: (parents, pairs right and left, feet) of HumanML3D (SMPL, 22 joints) and KIT-ML (21 joints)
PUBLIC = {
    263: (
        (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19),
        ((2, 1), (17, 16)),
        (7, 10, 8, 11),
    ),
    251: (
        (-1, 0, 1, 2, 3, 3, 5, 6, 3, 8, 9, 0, 11, 12, 13, 14, 0, 16, 17, 18, 19),
        ((11, 16), (5, 8)),
        (19, 20, 14, 15),
    ),
}


def public(channels: int) -> FrameVectors:
    """Frame vectors of a public set by their length, bones of length 1. Raises ValueError for any other."""
    known = " or ".join(map(str, PUBLIC))
    checked("channels", channels, channels in PUBLIC, f"{known}, as HumanML3D and KIT-ML have")
    parents, across, feet = PUBLIC[channels]
    names = tuple(f"joint_{j}" for j in range(len(parents)))
    return FrameVectors(Skeleton(names, parents, ((0.0, 1.0, 0.0),) * len(parents)), across, feet)


def with_bones(vectors: FrameVectors, positions: Tensor) -> FrameVectors:
    """The same with the bones of positions (frames, joints, 3)."""
    old = vectors.skeleton
    return FrameVectors(Skeleton.of(old.joints, old.parents, positions), vectors.across, vectors.feet, vectors.contact)


def mirrored(joints: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (right, left) of joints whose names differ in the side alone: LeftArm, arm_l, L_Arm, l.arm, LArm.

    Names are read as words, split at case, digits and punctuation.
    """
    words = [re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name) for name in joints]
    table = {tuple(word.lower() for word in each): j for j, each in enumerate(words)}
    found = []
    for name, j in table.items():
        for left, right in SIDES:
            for at, word in enumerate(name):
                other = table.get((*name[:at], right, *name[at + 1 :]))
                if word == left and other is not None:
                    found.append((other, j))
    return sorted(set(found))


def guess(skeleton: Skeleton, positions: Tensor) -> FrameVectors:
    """Frame vectors of a skeleton by its joints' names: the body faces across the joints where paired limbs begin; feet are
    the last two joints of the limbs that reach lowest. Raises ValueError where no names tell left from right.
    """
    pairs = mirrored(skeleton.joints)
    paired = {j for pair in pairs for j in pair}
    starts = [pair for pair in pairs if not {skeleton.parents[j] for j in pair} & paired]
    told = (
        f"no pair of left and right in {', '.join(skeleton.joints)}: name them so, or give --right, --left and --feet"
    )
    if not starts:
        raise ValueError(told)
    leaves = [j for j in range(len(skeleton)) if j not in skeleton.parents and j in paired]
    height = positions[..., 1].reshape(-1, len(skeleton)).mean(0)
    low = [j for j in leaves if height[j] < height[leaves].min() + 0.25 * (height.max() - height.min())]
    feet = sorted({j for leaf in low for j in (leaf, skeleton.parents[leaf])})
    return FrameVectors(skeleton, tuple(starts), tuple(feet))


def named(skeleton: Skeleton, right: Sequence[str], left: Sequence[str], feet: Sequence[str]) -> FrameVectors:
    """Frame vectors of a skeleton whose joints are named by the caller. Raises ValueError for unknown names."""
    checked("left", tuple(left), len(left) == len(right), f"as many names as right has, {len(right)}")
    across = tuple((skeleton.index(r), skeleton.index(l)) for r, l in zip(right, left))
    return FrameVectors(skeleton, across, tuple(skeleton.index(name) for name in feet))


def moving(positions: Tensor) -> list[int]:
    """Joints from the first one that moves on: a file may have a root that stays where the world begins."""
    still = (positions - positions[:1]).abs().amax((0, 2)) < 1e-9
    first = int(torch.nonzero(~still)[0]) if bool((~still).any()) else 0
    return list(range(first, positions.shape[1]))


def below(skeleton: Skeleton, kept: Sequence[int]) -> Skeleton:
    """The skeleton without its first joints. Raises ValueError where that leaves several roots."""
    first = kept[0]
    parents = tuple(-1 if j == first else skeleton.parents[j] - first for j in kept)
    return Skeleton(tuple(skeleton.joints[j] for j in kept), parents, tuple(skeleton.offsets[j] for j in kept))
