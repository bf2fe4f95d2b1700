"""Scenes in which several tasks of Meta-World begin alike, so that the sentence alone says what to do.

In Meta-World a drawer to open begins closed, and one to close begins open: the state tells the task. Here it begins half
open, both are possible, and what the policy is shown has the same meaning whichever is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.vla.rendering import load_mujoco


@dataclass(frozen=True)
class Scene:
    """The tasks of one scene; low, high: where its things are put (x, y, z, and those of a goal), in metres; joint: how far
    the thing is open at the start; handle: the body or site whose place is shown as its own, None for a puck that lies loose.
    """

    tasks: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    joint: float = 0.0
    handle: tuple[str, str] | None = None

    def hide(self, env: Any) -> None:
        """Draw no marks of goals, which look different in each task."""
        for i in range(env.model.nsite):
            if env.model.site(i).name.startswith("goal"):
                env.model.site_rgba[i, 3] = 0

    def arrange(self, env: Any) -> None:
        """After a reset, put the hand and the thing alike for all tasks: their resets leave them apart by millimetres."""
        load_mujoco().mj_resetData(env.model, env.data)
        env._reset_hand()
        position, velocity = env.data.qpos.copy(), env.data.qvel.copy()
        velocity[9:] = 0  # the joints of arm and gripper are the first 9
        position[9 : 10 if self.handle else 12] = self.joint if self.handle else (*env.obj_init_pos[:2], 0.02)
        env.set_state(position, velocity)

    def shown(self, full: np.ndarray, env: Any) -> np.ndarray:
        """What is seen now (18,): hand, gripper, the thing's place and turn, where the second is the same in all tasks."""
        if self.handle is None:
            return full[:18].copy()
        kind, name = self.handle
        return np.concatenate([full[:4], getattr(env.data, kind)(name).xpos, np.zeros(11)])

    def goal(self, full: np.ndarray) -> np.ndarray:
        """The goal's place on the table without its height (3,), or nothing where the thing itself shows the goal."""
        return np.array([full[36], full[37], 0.0]) if self.handle is None else np.zeros(3)


SCENES: dict[str, Scene] = {
    "drawer": Scene(("drawer-open", "drawer-close"), (-0.1, 0.9, 0), (0.1, 0.9, 0), -0.09, ("body", "drawer_link")),
    "faucet": Scene(
        ("faucet-open", "faucet-close"), (-0.05, 0.8, 0), (0.05, 0.85, 0), 0.0, ("site", "handleStartOpen")
    ),
    "window": Scene(("window-open", "window-close"), (0, 0.75, 0.2), (0.0, 0.9, 0.2), 0.1, ("site", "handleOpenStart")),
    "lock": Scene(("door-lock", "door-unlock"), (-0.1, 0.8, 0.15), (0.1, 0.85, 0.15), 0.785, ("site", "lockStartLock")),
    "puck": Scene(
        ("reach", "push", "pick-place"), (-0.1, 0.6, 0.02, -0.1, 0.8, 0.15), (0.1, 0.7, 0.02, 0.1, 0.9, 0.15)
    ),
}


def spread(env: Any, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    """Say between which places an environment puts its things at a reset, in metres."""
    env._random_reset_space = type(env._random_reset_space)(np.array(low), np.array(high), dtype=np.float64)


def scene_of(task: str) -> Scene | None:
    """The scene that a task `shared-...` is set in."""
    return next((s for s in SCENES.values() if task.removeprefix("shared-") in s.tasks), None)
