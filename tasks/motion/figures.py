"""A stick figure of 21 joints that walks, runs, waves and turns: motions with captions that need no download."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.motion import FrameVectors, Skeleton
from tokenizers_vq.motion.rotations import axis_rotation, matrix_from_expmap
from tokenizers_vq.motion.skeleton import Pose

FPS = 20.0
_SIDE = {"l": 1.0, "r": -1.0}
_BODY = (("hips", -1, (0, 0, 0)), ("spine", 0, (0, 0.1, 0)), ("chest", 1, (0, 0.15, 0)), ("neck", 2, (0, 0.25, 0)),
         ("head", 3, (0, 0.15, 0)))  # fmt: skip
_ARM = (("shoulder", 2, (0.06, 0.18, 0)), ("upper_arm", 0, (0.12, 0, 0)), ("lower_arm", 0, (0, -0.28, 0)),
        ("hand", 0, (0, -0.25, 0)))  # fmt: skip
_LEG = (("upper_leg", 0, (0.1, -0.05, 0)), ("lower_leg", 0, (0, -0.42, 0)), ("foot", 0, (0, -0.42, 0)),
        ("toes", 0, (0, -0.05, 0.14)))  # fmt: skip


def _skeleton() -> Skeleton:
    rows = [(name, parent, offset) for name, parent, offset in _BODY]
    for limb in (_ARM, _LEG):
        for side, sign in _SIDE.items():
            for n, (name, parent, (x, y, z)) in enumerate(limb):
                rows.append((f"{name}_{side}", len(rows) - 1 if n else parent, (sign * x, y, z)))  # type: ignore[arg-type]
    names, parents, offsets = zip(*rows)
    return Skeleton(names, parents, offsets)


SKELETON = _skeleton()
VECTORS = FrameVectors(
    SKELETON,
    tuple((SKELETON.index(f"{name}_r"), SKELETON.index(f"{name}_l")) for name in ("upper_leg", "shoulder")),
    tuple(SKELETON.index(f"{name}_{side}") for side in "lr" for name in ("foot", "toes")),
)
ACTIONS = ("walk", "run", "wave", "turn")
_HOW = {"slowly": 0.75, "": 1.0, "quickly": 1.3}


class Figure(NamedTuple):
    """A motion (frames, 21, 3) in metres at 20 frames per second, with what it shows."""

    positions: Tensor
    caption: str
    action: str


def figure(number: int, seed: int = 0) -> Figure:
    """The figure of that number: actions take turns, everything else is drawn from seed and number."""
    draw = torch.Generator().manual_seed(1_000_003 * seed + number)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    action = ACTIONS[number % len(ACTIONS)]
    how = list(_HOW)[int(torch.randint(3, (), generator=draw))]
    side = "lr"[int(torch.randint(2, (), generator=draw))]
    pace = _HOW[how] * between(0.93, 1.07)
    time = torch.arange(int(between(48, 81)), dtype=torch.float64) / FPS
    make = {"walk": _go, "run": _go, "wave": _wave, "turn": _turn}[action]
    turns, root = make(time, pace, side, action, between)
    turns += 0.02 * torch.sin(time[:, None, None] + 6 * torch.rand(len(SKELETON), 3, generator=draw, dtype=time.dtype))
    yaw = axis_rotation(turns[:, 0, 1], "Y")
    turns[:, 0, 1] = 0
    rotations = matrix_from_expmap(turns)
    rotations[:, 0] = yaw @ rotations[:, 0]
    positions = SKELETON.forward(Pose(root, rotations))
    named = {"l": "left", "r": "right"}[side]
    verb = {"walk": "walks", "run": "runs", "wave": f"waves the {named} hand", "turn": f"turns {named}"}[action]
    return Figure(positions.float(), f"a person {verb} {how}".strip(), action)


def _stand(time: Tensor) -> tuple[Tensor, Tensor]:
    turns = torch.zeros(len(time), len(SKELETON), 3, dtype=time.dtype)
    for side, sign in _SIDE.items():
        turns[:, SKELETON.index(f"upper_arm_{side}"), 2] = 0.1 * sign
    root = torch.zeros(len(time), 3, dtype=time.dtype)
    root[:, 1] = 0.94
    return turns, root


def _step(turns: Tensor, phase: Tensor, swing: float, knee: float) -> None:
    for side, sign in _SIDE.items():
        wave = sign * phase.sin()
        turns[:, SKELETON.index(f"upper_leg_{side}"), 0] = -swing * wave
        turns[:, SKELETON.index(f"lower_leg_{side}"), 0] = knee * (0.15 + (sign * phase.cos()).clamp(min=0))
        turns[:, SKELETON.index(f"upper_arm_{side}"), 0] = 0.8 * swing * wave
        turns[:, SKELETON.index(f"lower_arm_{side}"), 0] = -0.5 * knee


def _go(time: Tensor, pace: float, side: str, action: str, between: object) -> tuple[Tensor, Tensor]:
    turns, root = _stand(time)
    steps, swing, knee = (0.95, 0.45, 0.6) if action == "walk" else (1.4, 0.7, 1.4)
    phase = 2 * torch.pi * steps * pace * time + between(0, 6.28)  # type: ignore[operator]
    _step(turns, phase, swing, knee)
    turns[:, SKELETON.index("spine"), 0] = 0.05 if action == "walk" else 0.25
    root[:, 2] = 4 * 0.84 * swing * steps * pace * time  # two steps a cycle, each as long as the legs' swing
    root[:, 1] += (0.02 if action == "walk" else 0.05) * (2 * phase).cos()
    return turns, root


def _wave(time: Tensor, pace: float, side: str, action: str, between: object) -> tuple[Tensor, Tensor]:
    turns, root = _stand(time)
    sign = _SIDE[side]
    raised = (time / 0.6).clamp(max=1)
    turns[:, SKELETON.index(f"upper_arm_{side}"), 2] = sign * 1.7 * raised
    beat = torch.sin(2 * torch.pi * 1.6 * pace * time + between(0, 6.28))  # type: ignore[operator]
    turns[:, SKELETON.index(f"lower_arm_{side}"), 2] = sign * raised * (0.8 + 0.5 * beat)
    return turns, root


def _turn(time: Tensor, pace: float, side: str, action: str, between: object) -> tuple[Tensor, Tensor]:
    turns, root = _stand(time)
    phase = 2 * torch.pi * 1.1 * pace * time + between(0, 6.28)  # type: ignore[operator]
    _step(turns, phase, 0.2, 0.4)
    turns[:, 0, 1] = _SIDE[side] * 0.9 * pace * time
    return turns, root
