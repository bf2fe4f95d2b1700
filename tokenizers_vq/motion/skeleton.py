"""A skeleton: bones as offsets of joints from their parents, and motions of it as rotations or positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.config import checked
from tokenizers_vq.motion.rotations import between


class Pose(NamedTuple):
    """A motion of a skeleton: root (..., 3) positions, rotations (..., joints, 3, 3) of each joint in its parent's frame."""

    root: Tensor
    rotations: Tensor


@dataclass(frozen=True)
class Skeleton:
    """Joints by name, the parent of each (an earlier one; -1: the root, the first), and its offset in the parent's frame.

    A joint's rotation turns what hangs on it: R_j = R_parent r_j, p_j = p_parent + R_parent offset_j. Raises ValueError
    for other parents, repeated names and lengths that differ.
    """

    joints: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        for name in ("joints", "parents"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "offsets", tuple(tuple(float(x) for x in offset) for offset in self.offsets))
        lengths = len(self.joints), len(self.parents), len(self.offsets)
        checked(
            "lengths of joints, parents, offsets", lengths, len(set(lengths)) == 1 and lengths[0] > 1, "equal, above 1"
        )
        tree = self.parents[0] == -1 and all(0 <= p < j for j, p in enumerate(self.parents) if j)
        checked("parents", self.parents, tree, "-1 for the first joint, an earlier joint for every other")
        checked("joints", self.joints, len(set(self.joints)) == lengths[0], "every name once")
        checked("offsets", self.offsets, all(len(o) == 3 for o in self.offsets), "three numbers each")

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, name: str) -> int:
        """Number of a joint. Raises ValueError for a name it does not have."""
        checked("joint", name, name in self.joints, f"this skeleton has {', '.join(self.joints)}")
        return self.joints.index(name)

    def offset(self, like: Tensor) -> Tensor:
        """Offsets (joints, 3) on the device and in the precision of a tensor."""
        return torch.tensor(self.offsets, dtype=like.dtype, device=like.device)

    @property
    def lengths(self) -> Tensor:
        """Lengths of the bones (joints - 1,)."""
        return torch.tensor(self.offsets[1:]).norm(dim=-1)

    def check(self, positions: Tensor) -> None:
        """Raise ValueError unless positions are (..., joints, 3) of this skeleton's number of joints, all finite."""
        if positions.ndim < 2 or tuple(positions.shape[-2:]) != (len(self), 3):
            raise ValueError(
                f"positions are {tuple(positions.shape)}: this skeleton has {len(self)} joints "
                f"({self.joints[0]}, {self.joints[1]}, ...), give (..., {len(self)}, 3)"
            )
        if not bool(torch.isfinite(positions).all()):
            raise ValueError(f"positions hold {int((~torch.isfinite(positions)).sum())} numbers that are not finite")

    def forward(self, pose: Pose, offsets: Tensor | None = None) -> Tensor:
        """Positions (..., joints, 3) of a pose; offsets (..., joints, 3) where bones change from frame to frame."""
        offsets = self.offset(pose.rotations) if offsets is None else offsets
        turned, places = [pose.rotations[..., 0, :, :]], [pose.root]
        for j, p in enumerate(self.parents):
            if j:
                places.append(places[p] + (turned[p] @ offsets[..., j, :, None])[..., 0])
                turned.append(turned[p] @ pose.rotations[..., j, :, :])
        return torch.stack(places, -2)

    def fit(self, positions: Tensor) -> Pose:
        """The pose whose bones point as those of positions (..., joints, 3) do: exact where the bone lengths are kept.

        A joint with several bones takes the rotation of least squares (Kabsch 1976); one bone turns by the smallest
        angle, since positions say nothing of its twist; leaves keep their parent's frame.
        """
        self.check(positions)
        offsets, eye = self.offset(positions), torch.eye(3, dtype=positions.dtype, device=positions.device)
        turned: list[Tensor] = []
        local: list[Tensor] = []
        for j, p in enumerate(self.parents):
            above = turned[p] if j else eye.expand(*positions.shape[:-2], 3, 3)
            bones = [c for c, parent in enumerate(self.parents) if parent == j and bool(offsets[c].norm() > 1e-6)]
            if not bones:
                own = eye.expand_as(above)
            else:
                seen = (positions[..., bones, :] - positions[..., j, None, :]) @ above
                own = between(offsets[bones[0]], seen[..., 0, :]) if len(bones) == 1 else kabsch(offsets[bones], seen)
            local.append(own)
            turned.append(above @ own)
        return Pose(positions[..., 0, :], torch.stack(local, -3))

    def project(self, positions: Tensor) -> Tensor:
        """The nearest motion with this skeleton's constant bone lengths, by `fit` and forward kinematics."""
        return self.forward(self.fit(positions))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"joints": list(self.joints), "parents": list(self.parents), "offsets": [list(o) for o in self.offsets]}

    @classmethod
    def of(cls, joints: Sequence[str], parents: Sequence[int], positions: Tensor) -> Skeleton:
        """The skeleton of positions (frames, joints, 3): mean lengths, and mean directions as seen from each joint.

        Its frames are those of the first frame. Raises ValueError as `Skeleton` does.
        """
        first = positions[0].double()
        up = [max(p, 0) for p in parents]
        rest = cls(tuple(joints), tuple(parents), tuple(map(tuple, (first - first[up]).tolist())))
        pose = rest.fit(positions.double())
        turned = [pose.rotations[..., 0, :, :]]
        for j in range(1, len(rest)):
            turned.append(turned[up[j]] @ pose.rotations[..., j, :, :])
        frames = torch.stack(turned, -3)[..., up, :, :]
        bones = positions.double() - positions.double()[..., up, :]
        seen = (bones[..., None, :] @ frames)[..., 0, :].mean(0)
        offsets = seen * (bones.norm(dim=-1).mean(0) / seen.norm(dim=-1).clamp(min=1e-9))[:, None]
        offsets[0] = 0
        return cls(tuple(joints), tuple(parents), tuple(map(tuple, offsets.tolist())))


def kabsch(offsets: Tensor, seen: Tensor) -> Tensor:
    """The rotation R (..., 3, 3) of least sum_c |R offset_c - seen_c|^2, of offsets (n, 3) and seen (..., n, 3)."""
    u, _, vt = torch.linalg.svd(seen.mT @ offsets.expand_as(seen))
    signs = torch.ones_like(u[..., 0])
    signs[..., 2] = torch.det(u @ vt)
    return u @ (signs[..., None] * vt)


def bone_lengths(positions: Tensor, parents: Sequence[int]) -> Tensor:
    """Lengths (..., joints - 1) of the bones of positions (..., joints, 3)."""
    return (positions[..., 1:, :] - positions[..., list(parents[1:]), :]).norm(dim=-1)


def bone_variation(positions: Tensor, parents: Sequence[int]) -> float:
    """Standard deviation over the frames of a motion (frames, joints, 3) of each bone's length, as a share of its mean;
    the mean over bones.
    """
    lengths = bone_lengths(positions.double(), parents)
    mean = lengths.mean(0)
    return float((lengths.std(0, unbiased=False) / mean.clamp(min=1e-9))[mean > 1e-6].mean())


def mpjpe(positions: Tensor, truth: Tensor, rooted: bool = False) -> Tensor:
    """Mean distance of the joints in millimetres per frame, (..., joints, 3) metres -> (...); rooted: roots laid together."""
    if positions.shape != truth.shape:
        raise ValueError(
            f"motions {tuple(positions.shape)} and {tuple(truth.shape)}: give equally many frames and joints"
        )
    gap = positions - truth
    return 1000 * (gap - gap[..., :1, :] if rooted else gap).norm(dim=-1).mean(-1)
