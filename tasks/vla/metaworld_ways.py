"""Several ways of doing one task, so that the mean of what demonstrators do is what none of them does.

A pillar stands on the straight line to the goal, and the hand passes it left (3 of 10 episodes), right (3) or over it (4).
Nothing shows which before the hand has turned, and the pillar is so near that the first few steps decide. The mean of left
and right is straight into it, which ends the episode; and so are, of all three, the mean and the median (L1) of each
coordinate alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from discdiff.config import checked

Controller = Callable[[np.ndarray], np.ndarray]  # what is seen in full (39,) to an action (4,)
PLAIN = ""  # the way of the expert alone
SIDES = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "over": (0.0, 1.0)}  # of the line, above it
SHARE = {"left": 3, "right": 3, "over": 4}  # of the episodes
ORDERS = ("grip-first", "move-first")
CLOSING = 12  # steps that a gripper needs


class Pillar(NamedTuple):
    """A round pillar on the table, in metres."""

    x: float
    y: float
    radius: float = 0.045
    height: float = 0.23

    def holds(self, point: np.ndarray) -> bool:
        """Whether a point (3,) is inside."""
        return bool(point[2] < self.height and np.hypot(point[0] - self.x, point[1] - self.y) < self.radius)


@dataclass(frozen=True)
class Detour:
    """How a task is done around a pillar, in metres: carried: the object goes around it, not the hand alone; end: where the
    straight line ends, from the object, or the goal itself where None; ahead: of the line's start stands the pillar;
    aside: how far from its middle a side way passes; low, high: where object and goal are put, where not as Meta-World does.
    """

    carried: bool = False
    end: tuple[float, float, float] | None = None
    ahead: float = 0.075
    aside: float = 0.125
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def line(self, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From where to where (3,) it would go if there were no pillar."""
        first = full[4:7] if self.carried else full[:3]
        return first.copy(), full[36:39].copy() if self.end is None else full[4:7] + np.array(self.end)

    def pillar(self, full: np.ndarray) -> Pillar:
        """The pillar that the start's state (39,) asks for."""
        x, y, _ = self._middle(full)
        return Pillar(float(x), float(y))

    def points(self, full: np.ndarray, way: str) -> list[np.ndarray]:
        """The places (3,) to pass on a way."""
        first, last = self.line(full)
        along = (last - first) / np.linalg.norm((last - first)[:2])
        side, above = SIDES[way]
        point, past = self._middle(full), self.pillar(full).radius + 0.025
        points = [point + side * self.aside * np.array([along[1], -along[0], 0])]
        if above:
            point[2] = self.pillar(full).height + 0.12
            lift = [np.array([*first[:2], point[2]])] if self.carried else []  # a load rises too slowly on the way
            points = [*lift, point, point + past * np.array([*along[:2], 0])]
        return points if self.end is None else [*points, last]

    def _middle(self, full: np.ndarray) -> np.ndarray:
        """Where the line meets the pillar's middle (3,); a hand alone rises only behind it."""
        first, last = self.line(full)
        point = first + self.ahead / np.linalg.norm((last - first)[:2]) * (last - first)
        if not self.carried:
            point[2] = min(point[2], first[2])
        return point


NEAR, FAR = (-0.1, 0.6, 0.02), (0.1, 0.62, 0.02)  # where a puck lies that has a way before it
DETOURS: dict[str, Detour] = {
    "around-reach": Detour(),
    "around-pick-place": Detour(True, None, 0.1, 0.13, low=(*NEAR, -0.1, 0.88, 0.05), high=(*FAR, 0.1, 0.9, 0.3)),
    "around-button-press": Detour(end=(0.0, -0.08, -0.07)),
    "around-faucet-open": Detour(end=(-0.04, 0.0, 0.13)),
    "around-faucet-close": Detour(end=(0.04, 0.0, 0.13)),
    "around-window-open": Detour(end=(-0.03, -0.03, 0.17)),
    "around-window-close": Detour(end=(0.03, -0.03, 0.17), low=(-0.25, 0.75, 0.2), high=(-0.15, 0.9, 0.2)),
}
ORDERED = ("door-open", "faucet-open", "faucet-close", "window-open", "window-close")


def ways_of(task: str) -> tuple[str, ...]:
    """The ways in which a task can be done."""
    return tuple(SIDES) if task in DETOURS else (PLAIN, *(ORDERS if task in ORDERED else ()))


def drawn(ways: tuple[str, ...], seed: int) -> str:
    """The way of an episode, which its start does not depend on: dealt from a deck shuffled anew every time it is through,
    so that any run of seeds holds the ways in their proportions.
    """
    deck = [way for way in ways for _ in range(SHARE.get(way, 1))]
    which, card = divmod(seed, len(deck))
    return deck[np.random.default_rng([which, 1]).permutation(len(deck))[card]]


def controller(task: str, way: str, full: np.ndarray, expert: Controller) -> Controller:
    """What does a task in one way, from what is seen in full at the start (39,); of one episode, as it remembers how far
    it is. Raises ValueError for a way that the task is not done in.
    """
    known = ways_of(task)
    checked("way", way, way in known, f"{task} is done in {', '.join(repr(w) for w in known)}")
    if task in DETOURS:
        detour = DETOURS[task]
        return _Around(expert, detour.points(full, way), detour.carried)
    return _Order(expert, way) if way else expert


@dataclass
class _Around:
    expert: Controller
    points: list[np.ndarray]
    carried: bool

    def __call__(self, full: np.ndarray) -> np.ndarray:
        place, close = (full[4:7], 0.04) if self.carried else (full[:3], 0.025)
        if self.points and np.linalg.norm(self.points[0] - place) < close:
            self.points.pop(0)
        if not self.points:
            return self.expert(full)
        if self.carried:
            return self.expert(np.concatenate([full[:36], self.points[0]]))
        move = 25 * (self.points[0] - full[:3])
        move /= max(1.0, np.abs(move).max())  # the direction stays
        return np.append(move, self.expert(full)[3]).astype(np.float32)


@dataclass
class _Order:
    expert: Controller
    way: str
    closing: int = 0

    def __call__(self, full: np.ndarray) -> np.ndarray:
        action = self.expert(full).copy()
        near = np.linalg.norm((full[:3] - full[4:7])[:2]) < 0.15
        if self.closing < CLOSING and (self.way == "grip-first" or near or self.closing):
            self.closing += 1
            return np.array([0, 0, 0, 1], np.float32)
        action[3] = 1 if self.closing else -1
        return action
