"""A motion as one vector per frame, free of where it starts and which way it faces (HumanML3D, Guo et al. CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.config import checked
from tokenizers_vq.motion.rotations import axis_rotation, between, matrix_from_6d, sixd_from_matrix
from tokenizers_vq.motion.skeleton import Skeleton

GROUPS = ("turn", "step", "height", "positions", "rotations", "velocities", "contacts")


@dataclass(frozen=True)
class FrameVectors:
    """Frame vectors of a skeleton of J joints, metres, y up; feet: joints whose contact with the ground is told.

    In this order: turn (1) minus half the angle the heading turns by until the next frame; step (2) the root's x and z
    displacement until the next frame, in the heading of that next frame; height (1) of the root; positions 3(J-1) of the
    other joints, x and z from the root, y from the floor, in the frame's heading; rotations 6(J-1) of the bones in their
    parent bone's frame, the root's being the heading; velocities 3J per frame in the frame's heading; contacts (feet),
    1 where a foot moved by less than `contact` squared metres: 4 + 12 (J-1) + 3 + feet channels, 263 for 22 joints and 4 feet.
    A motion of F frames has F - 1 vectors. across: pairs of joints (right, left) whose line the body faces at right angles.
    """

    skeleton: Skeleton
    across: tuple[tuple[int, int], ...]
    feet: tuple[int, ...] = ()
    contact: float = 0.002

    def __post_init__(self) -> None:
        object.__setattr__(self, "across", tuple(tuple(pair) for pair in self.across))
        object.__setattr__(self, "feet", tuple(self.feet))
        joints = range(len(self.skeleton))
        pairs = bool(self.across) and all(len(p) == 2 and p[0] != p[1] and set(p) <= set(joints) for p in self.across)
        checked("across", self.across, pairs, "pairs of two joints (right, left), by number")
        checked("feet", self.feet, set(self.feet) <= set(joints), f"joints 0..{len(joints) - 1}")
        checked("contact", self.contact, self.contact > 0, "squared metres per frame, above 0")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of each of GROUPS."""
        n = len(self.skeleton)
        return 1, 2, 1, 3 * (n - 1), 6 * (n - 1), 3 * n, len(self.feet)

    @property
    def channels(self) -> int:
        """Length of a frame's vector."""
        return sum(self.sizes)

    def span(self, group: str) -> tuple[int, int]:
        """First channel of a group and the one behind its last."""
        at = GROUPS.index(group)
        return sum(self.sizes[:at]), sum(self.sizes[: at + 1])

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Groups by name. Raises ValueError for vectors of another length."""
        fits = vectors.shape[-1] == self.channels
        told = f"{self.channels} for the {len(self.skeleton)} joints of this skeleton"
        checked("channels", vectors.shape[-1], fits, told)
        return dict(zip(GROUPS, vectors.split(self.sizes, -1)))

    def heading(self, positions: Tensor) -> Tensor:
        """Angle (..., frames) about y from the z axis to where the body faces."""
        right, left = (list(side) for side in zip(*self.across))
        line = (positions[..., right, :] - positions[..., left, :]).sum(-2)
        return torch.atan2(line[..., 2], -line[..., 0])

    def canonical(self, positions: Tensor) -> Tensor:
        """A motion (frames, joints, 3) moved so that it begins at x = z = 0 facing +z, its lowest joint at y = 0."""
        self.skeleton.check(positions)
        start = positions[0, 0].clone()
        start[1] = positions[..., 1].min()
        return (positions - start) @ axis_rotation(self.heading(positions)[0], "Y")  # rows: the inverse rotation

    def process(self, positions: Tensor) -> Tensor:
        """A motion (frames, joints, 3) to vectors (frames - 1, channels). Raises ValueError for fewer than 2 frames, another
        number of joints, and numbers that are not finite.
        """
        self.skeleton.check(positions)
        checked(
            "frames", len(positions), positions.ndim == 3 and len(positions) >= 2, "at least 2 frames of one motion"
        )
        here = self.canonical(positions.double())
        angle = self.heading(here)
        away = axis_rotation(angle, "Y")  # v @ away is v in the frame's heading
        delta = here[1:] - here[:-1]
        turn = torch.remainder(angle[1:] - angle[:-1] + torch.pi, 2 * torch.pi) - torch.pi
        step = (delta[:, :1] @ away[1:])[:, 0, ::2]
        local = here - here[:, :1] * here.new_tensor([1.0, 0.0, 1.0])
        local = (local @ away)[:-1]
        contacts = (delta[:, list(self.feet)].square().sum(-1) < self.contact).double()
        parts = [
            -turn[:, None] / 2, step, local[:, 0, 1:2], local[:, 1:].flatten(1),
            sixd_from_matrix(self.bones(local)).flatten(1), (delta @ away[:-1]).flatten(1), contacts,
        ]  # fmt: skip
        return torch.cat(parts, -1).to(positions.dtype)

    def bones(self, local: Tensor) -> Tensor:
        """Smallest rotation (..., joints - 1, 3, 3) of every bone in its parent bone's frame, of positions in the heading."""
        offsets = self.skeleton.offset(local)
        turned: list[Tensor] = [torch.eye(3, dtype=local.dtype, device=local.device).expand(*local.shape[:-2], 3, 3)]
        own: list[Tensor] = []
        for j, p in enumerate(self.skeleton.parents):
            if j:
                seen = ((local[..., j, :] - local[..., p, :])[..., None, :] @ turned[p])[..., 0, :]
                own.append(between(offsets[j], seen))
                turned.append(turned[p] @ own[-1])
        return torch.stack(own, -3)

    def root(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Heading angle (..., frames) and root positions (..., frames, 3), integrated from turn, step and height."""
        part = self.split(vectors)
        angle = F.pad(-2 * part["turn"][..., :-1, 0], (1, 0)).cumsum(-1)
        x, z = F.pad(part["step"][..., :-1, :], (0, 0, 1, 0)).unbind(-1)
        flat = torch.stack([x, torch.zeros_like(x), z], -1)[..., None, :] @ axis_rotation(angle, "Y").mT
        place = flat[..., 0, :].cumsum(-2)
        return angle, torch.stack([place[..., 0], part["height"][..., 0], place[..., 2]], -1)

    def recover(self, vectors: Tensor, rigid: bool = False) -> Tensor:
        """Vectors (..., frames, channels) to positions (..., frames, joints, 3) from the positions' channels, or, rigid, with
        the skeleton's constant bone lengths from the rotations' channels. Differentiable.
        """
        vectors = vectors.double() if not vectors.requires_grad else vectors
        angle, root = self.root(vectors)
        part = self.split(vectors)
        away = axis_rotation(angle, "Y").mT  # v @ away is v of the heading in the world
        if not rigid:
            local = part["positions"].unflatten(-1, (-1, 3)) @ away
            others = local + root[..., None, :] * root.new_tensor([1.0, 0.0, 1.0])
            return torch.cat([root[..., None, :], others], -2)
        own = matrix_from_6d(part["rotations"].unflatten(-1, (-1, 6)))
        offsets = self.skeleton.offset(own)
        turned, places = [axis_rotation(angle, "Y")], [root]
        for j, p in enumerate(self.skeleton.parents):
            if j:
                turned.append(turned[p] @ own[..., j - 1, :, :])
                places.append(places[p] + (turned[j] @ offsets[j, :, None])[..., 0])
        return torch.stack(places, -2)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "skeleton": self.skeleton.to_dict(),
            "across": [list(pair) for pair in self.across],
            "feet": list(self.feet),
            "contact": self.contact,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FrameVectors:
        """Inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            bones = data["skeleton"]
            skeleton = Skeleton(tuple(bones["joints"]), tuple(bones["parents"]), tuple(map(tuple, bones["offsets"])))
            return cls(skeleton, tuple(map(tuple, data["across"])), tuple(data["feet"]), float(data["contact"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(data)[:80]} describes no frame vectors: {error!r} is missing or wrong") from error


def statistics(
    clips: Sequence[Tensor], vectors: FrameVectors | None = None, least: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels,) of all frames of clips (frames, channels).

    With `vectors` the deviation is averaged within each of GROUPS, as HumanML3D does, so that a joint which hardly moves
    is not blown up; it is at least `least`. Raises ValueError for no clips, or clips of different channels.
    """
    widths = {clip.shape[-1] for clip in clips}
    checked("channels", sorted(widths), len(widths) == 1, "clips, all of the same channels")
    frames = torch.cat([clip.double() for clip in clips])
    mean, std = frames.mean(0), frames.std(0, unbiased=False)
    if vectors is not None:
        vectors.split(frames[:1])
        std = torch.cat(
            [part.mean().expand(size) for part, size in zip(std.split(vectors.sizes), vectors.sizes) if size]
        )
    return mean.float(), std.clamp(min=least).float()
