"""Meta-World (arXiv 1910.10897): a robot arm with 50 tasks, one state, one action, and an expert for each.

Plain tasks (`reach`, ...), tasks of one scene that the sentence tells apart (`shared-drawer-open`, ...), and tasks around a
pillar that have several ways (`around-reach`, ...).
"""

from __future__ import annotations

import difflib
import warnings
from functools import cache
from typing import Any, Protocol

import numpy as np

from discdiff.config import checked
from tasks.vla.metaworld_scenes import SCENES, scene_of, spread
from tasks.vla.metaworld_ways import DETOURS, Controller, Pillar
from tasks.vla.rendering import CAMERA, NEEDS, Camera, load_mujoco
from tasks.vla.sentences import base

STATE = 39  # numbers: what is seen now 18, what was seen before 18, the goal 3
ACTION = PROPRIO = 4  # the hand's move 3 and the gripper 1; the hand's place 3 and how far the gripper is open 1
CAP = 500  # steps after which an episode has failed
RATE = 80  # steps per second

EASY10 = (
    "button-press", "drawer-close", "drawer-open", "faucet-close", "faucet-open",
    "door-open", "push", "pick-place", "reach", "window-close",
)  # fmt: skip
HARD10 = (
    "assembly", "disassemble", "peg-insert-side", "stick-pull", "pick-place-wall",
    "shelf-place", "push-back", "hand-insert", "box-close", "bin-picking",
)  # fmt: skip
LANG = {name: tuple(f"shared-{task}" for task in scene.tasks) for name, scene in SCENES.items()}
MULTIMODAL = tuple(DETOURS)

__all__ = ["CAMERA", "EASY10", "HARD10", "LANG", "MULTIMODAL", "Environment", "MetaWorld", "expert", "make"]

_CAMERAS: dict[tuple[str, int], Camera] = {}  # by file of the scene: all environments built from it share one


class Environment(Protocol):
    """What episodes are recorded in and policies are tried in. What follows a reset depends on its seed alone."""

    full: np.ndarray  # what an expert is shown, which may be more than the state

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; its state (39,) float32."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool | None]:
        """The state (39,) after an action (4,), and whether the task is done: True, False where it cannot be any more."""

    def picture(self, size: int) -> np.ndarray:
        """What the camera sees (size, size, 3) uint8."""

    def close(self) -> None:
        """Free what it holds."""


class MetaWorld:
    """An `Environment` of one task. Raises ValueError for an unknown task, and where Meta-World is not installed."""

    def __init__(self, task: str) -> None:
        checked("task", task, task in known(), _remedy(task))
        self.task, self._detour = task, DETOURS.get(task)
        self._scene = scene_of(task) if task.startswith("shared-") else None
        benchmark, name = _benchmark(base(task)), f"{base(task)}-v3"
        self._env = benchmark.train_classes[name]()
        self._env.set_task(benchmark.train_tasks[0])
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        if self._scene is not None:
            spread(self._env, self._scene.low, self._scene.high)
            self._scene.hide(self._env)
        if self._detour is not None and self._detour.low:
            spread(self._env, self._detour.low, self._detour.high)
        self.full = self._seen = np.zeros(STATE)
        self.pillar: Pillar | None = None
        self._lost = False

    def reset(self, seed: int) -> np.ndarray:
        env = self._env
        env.seed(int(seed))  # reset(seed=...) of Meta-World ignores its argument
        env.reset()
        if self._scene is not None:
            self._scene.arrange(env)
        # Things were moved after the simulation looked: without this, the first state shows them where they were before.
        load_mujoco().mj_forward(env.model, env.data)
        full = env._get_obs()
        full[18:36] = full[:18]
        self.full, self._lost = full, False
        self.pillar = self._detour.pillar(full) if self._detour else None
        return self._state(first=True)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool | None]:
        checked("action", np.shape(action), np.shape(action) == (ACTION,), f"give ({ACTION},)")
        self.full, _, _, _, info = self._env.step(np.clip(action, -1, 1).astype(np.float32))
        if self._detour and self.pillar:
            carried = self._detour.carried and self.pillar.holds(self.full[4:7])
            self._lost |= carried or self.pillar.holds(self.full[:3])
        done = False if self._lost else (True if info["success"] > 0 else None)
        return self._state(), done

    def picture(self, size: int) -> np.ndarray:
        scene = (self._env.model_name, size)
        if scene not in _CAMERAS:
            _CAMERAS[scene] = Camera(self._env.model, size)
        return _CAMERAS[scene].picture(self._env.model, self._env.data, self.pillar)

    def close(self) -> None:
        self._env.close()

    def _state(self, first: bool = False) -> np.ndarray:
        if self._scene is None:
            return self.full.astype(np.float32)
        now = self._scene.shown(self.full, self._env)
        before = now if first else self._seen[:18]
        self._seen = np.concatenate([now, before, self._scene.goal(self.full)])
        return self._seen.astype(np.float32)


def make(task: str) -> MetaWorld:
    """The environment of a task: `MT1(task, seed=42)` with things put at places that the seed of a reset draws."""
    return MetaWorld(task)


def expert(task: str) -> Controller:
    """Meta-World's script for a task: what is seen in full (39,) to an action (4,) float32 in [-1, 1]."""
    checked("task", task, task in known(), _remedy(task))
    from metaworld.policies import ENV_POLICY_MAP

    made: Any = ENV_POLICY_MAP[f"{base(task)}-v3"]
    script = made()

    def act(full: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its actions are up to 17 long, and are clipped here
            action = script.get_action(np.array(full, dtype=np.float64))  # some write into what they are shown
        return np.clip(action[:ACTION], -1, 1).astype(np.float32)

    return act


@cache
def known() -> tuple[str, ...]:
    """The tasks there are."""
    plain = tuple(name.removesuffix("-v3") for name in _library().MT1.ENV_NAMES)
    return (*plain, *(task for tasks in LANG.values() for task in tasks), *MULTIMODAL)


@cache
def _benchmark(name: str) -> Any:
    return _library().MT1(f"{name}-v3", seed=42)


def _library() -> Any:
    load_mujoco()  # first, as its own failures say more
    try:
        import metaworld
    except ImportError as error:
        raise ValueError(f"the robot tasks need Meta-World ({error}): {NEEDS}") from error
    return metaworld


def _remedy(task: str) -> str:
    near = difflib.get_close_matches(str(task), known(), n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known())}"
