"""Observations and actions of LIBERO, CALVIN and SimplerEnv, to those of a policy and back; no simulator is imported.

Each class says in `observation` what a policy is shown of an environment's dictionary, in `action` what an environment is
given for one action of a policy, and in `stored` what a policy learns of an action that the environment was given. They are
checked for shapes and conventions only: no score on these benchmarks is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from discdiff.config import checked
from tasks.vla.adapters.pictures import shown

ROBOTS = {"widowx": "3rd_view_camera", "google": "overhead_camera"}
REPEAT = 15  # steps for which the Google robot's gripper goes on opening or closing


class Seen(NamedTuple):
    """state (dim,) float32, and pictures uint8 (height, width, 3) by the name of their camera."""

    state: np.ndarray
    pictures: dict[str, np.ndarray]


@dataclass(frozen=True)
class Libero:
    """LIBERO, as openpi (examples/libero/main.py) evaluates on it.

    State (8,): `robot0_eef_pos`, `robot0_eef_quat` (x, y, z, w) as an axis times an angle, `robot0_gripper_qpos`. Cameras:
    `agentview_image` as "agent" and `robot0_eye_in_hand_image` as "wrist", turned by 180 degrees. Actions (7,): three of
    translation, three of rotation, the gripper, -1 open and 1 closed. gripper "signed": the policy's is the same; "opened":
    it is 0 closed and 1 open, as in OpenVLA's data sets, thresholded at a half. size: width of the pictures, 0 as they are.
    """

    gripper: str = "signed"
    size: int = 0

    def __post_init__(self) -> None:
        checked("gripper", self.gripper, self.gripper in ("signed", "opened"), "choose from signed, opened")

    def observation(self, obs: Mapping[str, Any]) -> Seen:
        """Raises ValueError for keys that are missing and parts of another shape."""
        parts = [
            _vector(obs, "robot0_eef_pos", 3),
            axis_angle(_vector(obs, "robot0_eef_quat", 4)),
            _vector(obs, "robot0_gripper_qpos", 2),
        ]
        cameras = {"agent": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
        pictures = {name: shown(key, _picture(obs, key)[::-1, ::-1], self.size) for name, key in cameras.items()}
        return Seen(np.concatenate(parts).astype(np.float32), pictures)

    def action(self, action: np.ndarray) -> np.ndarray:
        """(7,) float64 for `env.step`, in [-1, 1]."""
        out = np.clip(_seven(action), -1, 1)
        if self.gripper == "opened":
            out[6] = -1.0 if float(action[6]) > 0.5 else 1.0
        return out

    def stored(self, action: np.ndarray) -> np.ndarray:
        """(7,) float32 of what `env.step` was given."""
        out = _seven(action)
        if self.gripper == "opened":
            out[6] = 1.0 if out[6] < 0 else 0.0
        return out.astype(np.float32)

    def waiting(self) -> np.ndarray:
        """(7,): nothing moves, the gripper is open; ten steps of it let the scene settle before an episode."""
        return np.array([0.0] * 6 + [-1.0])


@dataclass(frozen=True)
class Calvin:
    """CALVIN, by its own description (mees/calvin, dataset/README.md).

    State (15,), `robot_obs`: the hand's place and Euler angles, the gripper's width, seven joints, the gripper's last action.
    Cameras: `rgb_static` as "static" and `rgb_gripper` as "wrist", from `rgb_obs` or as frames of the data set have them.
    Actions (7,): relative place, times 50, and Euler angles, times 20, in [-1, 1]; absolute: place in metres and angles in
    radians. Gripper: -1 closed, 1 open, nothing between. size: width of the pictures, 0 as they are.
    """

    absolute: bool = False
    size: int = 0

    def observation(self, obs: Mapping[str, Any]) -> Seen:
        """Raises ValueError for keys that are missing and parts of another shape."""
        views = obs.get("rgb_obs", obs)
        cameras = {"static": "rgb_static", "wrist": "rgb_gripper"}
        pictures = {name: shown(key, _picture(views, key), self.size) for name, key in cameras.items()}
        return Seen(_vector(obs, "robot_obs", 15).astype(np.float32), pictures)

    def action(self, action: np.ndarray) -> Any:
        """(7,) float64 for `env.step`, relative; absolute: (place (3,), angles (3,), gripper (1,))."""
        out = _seven(action)
        out[6] = 1.0 if out[6] >= 0 else -1.0
        if self.absolute:
            return out[:3], out[3:6], out[6:]
        out[:6] = np.clip(out[:6], -1, 1)
        return out

    def stored(self, action: Any) -> np.ndarray:
        """(7,) float32 of what `env.step` was given."""
        parts = [np.asarray(part, dtype=np.float64).reshape(-1) for part in action]
        return _seven(np.concatenate(parts)).astype(np.float32)


@dataclass(frozen=True)
class Simpler:
    """SimplerEnv, as its evaluator and its Octo policy do it (simpler-env/SimplerEnv, simpler_env/evaluation/
    maniskill2_evaluator.py, simpler_env/policies/octo/octo_model.py, simpler_env/utils/env/observation_utils.py).

    robot "widowx": state (6,), the hand's place and Euler angles as seen from the base; "google": the base's pose (7,). One
    camera, the robot's own, as "third". A policy's actions (7,): translation, roll, pitch and yaw, gripper 0 closed and 1
    open; the environment's: translation, axis times angle, gripper. widowx: 1 open, -1 closed; google: what it was less what
    it is, 1 closes and -1 opens, kept for 15 steps, see `Sticky`. size: width of the picture, 0 as it is.
    """

    robot: str = "widowx"
    size: int = 0

    def __post_init__(self) -> None:
        checked("robot", self.robot, self.robot in ROBOTS, f"choose from {', '.join(ROBOTS)}")

    def observation(self, obs: Mapping[str, Any]) -> Seen:
        """Raises ValueError for keys that are missing and parts of another shape."""
        agent, camera = _inner(obs, "agent"), ROBOTS[self.robot]
        base = _vector(agent, "base_pose", 7)
        picture = _picture(_inner(_inner(obs, "image"), camera), "rgb")[..., :3]
        if self.robot == "widowx":
            hand = _vector(_inner(obs, "extra"), "tcp_pose", 7)
            away = conjugate(base[3:])
            place = rotated(away, hand[:3] - base[:3])
            base = np.concatenate([place, euler(product(away, hand[3:]))])
        return Seen(base.astype(np.float32), {"third": shown(camera, picture, self.size)})

    def action(self, action: np.ndarray, sticky: Sticky | None = None) -> np.ndarray:
        """(7,) float64 for `env.step`. Raises ValueError for the Google robot without a `Sticky`, and for another with one."""
        checked("sticky", sticky, (sticky is None) == (self.robot == "widowx"), "the Google robot's, one per episode")
        x = _seven(action)
        turn = turned(x[3:6])
        gripper = (1.0 if x[6] > 0.5 else -1.0) if sticky is None else sticky(float(x[6]))
        return np.concatenate([x[:3], axis_angle(np.roll(turn, -1)), [gripper]])

    def stored(self, action: np.ndarray) -> np.ndarray:
        """(7,) float32 of what WidowX's `env.step` was given. Raises ValueError for the Google robot, whose gripper's actions
        do not say where it is.
        """
        checked(
            "robot", self.robot, self.robot == "widowx", "its gripper's actions are differences: store the policy's own"
        )
        x = _seven(action)
        return np.concatenate([x[:3], euler(quaternion(x[3:6])), [float(x[6] > 0)]]).astype(np.float32)


class Sticky:
    """The Google robot's gripper in one episode: a change of more than a half is kept up for 15 steps."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.kept, self.left = 0.0, 0

    def __call__(self, opened: float) -> float:
        """What the environment is given for a gripper that should be so far open."""
        change = 0.0 if self.last is None else self.last - opened
        self.last = opened
        if abs(change) > 0.5 and not self.left:
            self.kept, self.left = change, REPEAT
        if self.left:
            self.left -= 1
            return self.kept
        return change


def axis_angle(q: np.ndarray) -> np.ndarray:
    """A quaternion (x, y, z, w) to axis times angle (3,), the angle 2 arccos w in [0, 2 pi], as robosuite has it: q and -q
    differ by a turn of 2 pi.
    """
    w = float(np.clip(q[3], -1, 1))
    sine = math.sqrt(1 - w * w)
    return np.zeros(3) if math.isclose(sine, 0.0) else np.asarray(q[:3], dtype=np.float64) * (2 * math.acos(w) / sine)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) to (w, x, y, z)."""
    angle = float(np.linalg.norm(rotation))
    axis = np.asarray(rotation) / angle if angle else np.zeros(3)
    return np.concatenate([[math.cos(angle / 2)], math.sin(angle / 2) * axis])


def turned(angles: np.ndarray) -> np.ndarray:
    """Roll, pitch and yaw, about the fixed axes x, y, z in this order, to (w, x, y, z)."""
    about = [quaternion(angle * axis) for angle, axis in zip(angles, np.eye(3), strict=True)]
    return product(about[2], product(about[1], about[0]))


def euler(q: np.ndarray) -> np.ndarray:
    """(w, x, y, z) to roll, pitch and yaw (3,), the way back."""
    w, x, y, z = (float(each) for each in q)
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(min(1.0, max(-1.0, 2 * (w * y - z * x))))
    return np.array([roll, pitch, math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))])


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of two quaternions (w, x, y, z): q first, then p."""
    vector = p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:])
    return np.concatenate([[p[0] * q[0] - p[1:] @ q[1:]], vector])


def conjugate(q: np.ndarray) -> np.ndarray:
    """The turn back."""
    return np.concatenate([q[:1], -q[1:]])


def rotated(q: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A vector (3,), turned."""
    return product(product(q, np.concatenate([[0.0], x])), conjugate(q))[1:]


def _inner(obs: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = obs.get(key)
    checked("observation", sorted(obs), isinstance(found, Mapping), f"it needs {key!r}, a dictionary")
    return found  # type: ignore[return-value]


def _vector(obs: Mapping[str, Any], key: str, size: int) -> np.ndarray:
    checked("observation", sorted(obs), key in obs, f"it needs {key!r}")
    x = np.asarray(obs[key], dtype=np.float64).reshape(-1)
    checked(key, x.shape, x.shape == (size,) and bool(np.isfinite(x).all()), f"give {size} finite numbers")
    return x


def _picture(obs: Mapping[str, Any], key: str) -> np.ndarray:
    checked("observation", sorted(obs), key in obs, f"it needs {key!r}")
    return np.asarray(obs[key])


def _seven(action: Any) -> np.ndarray:
    x = np.array(action, dtype=np.float64)
    checked("action", x.shape, x.shape == (7,) and bool(np.isfinite(x).all()), "give 7 finite numbers")
    return x
