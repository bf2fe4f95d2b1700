"""Try a policy: many environments in lock-step, so that it is asked for all of them at once.

An episode depends on its task, its seed and the policy alone, not on the others beside it, as long as the policy's answer
for one row does not depend on the other rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from discdiff.config import checked
from tasks.vla.metaworld import ACTION, CAP, PROPRIO, Environment, make
from tasks.vla.sentences import Instruction, said


@dataclass(frozen=True, eq=False)
class Observations:
    """What a policy is shown of n episodes: state (n, 39) float32, what to do in words, the seed of each, how often it was
    asked before in each, so that it draws other noise every time; pictures (n, size, size, 3) uint8 where asked for.
    """

    state: np.ndarray
    instruction: list[str]
    seed: list[int]
    call: list[int]
    pictures: np.ndarray | None = None

    @property
    def proprio(self) -> np.ndarray:
        """The hand's place and how far the gripper is open (n, 4): what is known without seeing."""
        return self.state[:, :PROPRIO]


Policy = Callable[[Observations], np.ndarray]  # actions (n, chunk, 4)


@dataclass(frozen=True)
class Rollout:
    """One episode: steps executed, times the policy was asked, the hand's places (length + 1, 3) in metres, and frames
    (n, size, size, 3) uint8 where they were to be kept.
    """

    task: str
    seed: int
    success: bool
    length: int
    calls: int
    path: np.ndarray = field(compare=False, repr=False)
    frames: np.ndarray | None = field(default=None, compare=False, repr=False)


def evaluate(
    policy: Policy,
    tasks: Sequence[str],
    seeds: Iterable[int],
    *,
    execute: int = 0,
    cap: int = CAP,
    batch: int = 20,
    size: int = 0,
    instruction: Instruction = said,
    keep: Collection[tuple[str, int]] = (),
    keep_size: int = 128,
    every: int = 4,
    make: Callable[[str], Environment] = make,
) -> list[Rollout]:
    """Every task with every seed, in that order. An episode ends at its first success or after `cap` steps.

    execute: steps of a chunk that are executed before the policy is asked again; 0: all. batch: episodes at once. size: width
    of the pictures the policy is shown, 0 for none. keep: (task, seed) of episodes whose frames are kept, each `every`-th,
    `keep_size` pixels wide. Raises ValueError for actions of another shape or that are not finite.
    """
    checked("cap", cap, 1 <= cap <= CAP, f"steps, from 1 to {CAP}")
    for name, value in (("batch", batch), ("every", every)):
        checked(name, value, value >= 1, "at least 1")
    checked("execute", execute, execute >= 0, "steps, or 0 for the whole chunk")
    seeds = [int(seed) for seed in seeds]
    episodes = [(task, seed) for task in tasks for seed in seeds]
    checked(
        "tasks", list(tasks), 0 < len(episodes) == len(set(episodes)), "at least one and one seed, none of them twice"
    )
    strange = sorted(set(keep) - set(episodes))
    checked("keep", strange, not strange, "episodes that are not tried")
    waiting, pool = {task: list(seeds) for task in tasks}, _Pool(make)
    running: list[_Running] = []
    done: dict[tuple[str, int], Rollout] = {}
    try:
        while waiting or running:
            while waiting and len(running) < batch:
                task, environment = pool.take(waiting)
                seed = waiting[task].pop(0)
                if not waiting[task]:
                    del waiting[task]
                view = keep_size if (task, seed) in keep else 0
                running.append(_Running(task, seed, environment, instruction(task, seed), view, every))
            actions = _asked(policy, running, size, execute)
            for row, episode in enumerate(running):
                episode.execute(actions[row, : execute or None], cap)
            for episode in [e for e in running if e.over(cap)]:
                done[episode.task, episode.seed] = episode.result()
                pool.give(episode.task, episode.environment, episode.task in waiting)
            running = [e for e in running if not e.over(cap)]
    finally:
        for environment in (*pool.waiting(), *(e.environment for e in running)):
            environment.close()
    return [done[key] for key in episodes]


def successes(rollouts: Iterable[Rollout], run: int = 0) -> dict[tuple[int, str, int], float]:
    """Success by (run, task, seed), for `difference` of two methods; run: such as the seed of a training."""
    return {(run, r.task, r.seed): float(r.success) for r in rollouts}


def _asked(policy: Policy, running: list[_Running], size: int, execute: int) -> np.ndarray:
    pictures = np.stack([e.environment.picture(size) for e in running]) if size else None
    state, words = np.stack([e.state for e in running]), [e.instruction for e in running]
    shown = Observations(state, words, [e.seed for e in running], [e.calls for e in running], pictures)
    actions = np.asarray(policy(shown))
    fits = actions.ndim == 3 and actions.shape[::2] == (len(running), ACTION) and actions.shape[1] >= max(1, execute)
    least = f", a chunk being at least {execute}" if execute else ""
    checked("actions", actions.shape, fits, f"a policy gives ({len(running)}, chunk, {ACTION}){least}")
    bad = int((~np.isfinite(actions)).sum())
    checked("actions", bad, not bad, "of them are not finite")
    return actions


class _Running:
    """An episode on its way."""

    def __init__(self, task: str, seed: int, environment: Environment, instruction: str, view: int, every: int) -> None:
        self.task, self.seed, self.environment, self.instruction = task, seed, environment, instruction
        self.state, self.view, self.every = environment.reset(seed), view, every
        self.success: bool | None = None
        self.calls, self.path, self.frames = 0, [self.state[:3]], [environment.picture(view)] if view else []

    def execute(self, actions: np.ndarray, cap: int) -> None:
        self.calls += 1
        for action in actions:
            self.state, self.success = self.environment.step(np.clip(action, -1, 1))
            self.path.append(self.state[:3])
            if self.view and ((len(self.path) - 1) % self.every == 0 or self.over(cap)):
                self.frames.append(self.environment.picture(self.view))
            if self.over(cap):
                return

    def over(self, cap: int) -> bool:
        return self.success is not None or len(self.path) > cap

    def result(self) -> Rollout:
        frames = np.stack(self.frames) if self.frames else None
        path = np.stack(self.path)
        return Rollout(self.task, self.seed, bool(self.success), len(path) - 1, self.calls, path, frames)


class _Pool:
    """Environments that wait for their next episode; building one takes longer than a hundred of its steps."""

    def __init__(self, make: Callable[[str], Environment]) -> None:
        self.make, self.free = make, defaultdict[str, list[Environment]](list)

    def take(self, waiting: dict[str, list[int]]) -> tuple[str, Environment]:
        """A task that waits and an environment for it: a free one if there is any, else a new one of the task with most
        episodes before it.
        """
        task = next((t for t in waiting if self.free[t]), None)
        if task is not None:
            return task, self.free[task].pop()
        task = max(waiting, key=lambda t: len(waiting[t]))
        return task, self.make(task)

    def give(self, task: str, environment: Environment, wanted: bool) -> None:
        if wanted:
            self.free[task].append(environment)
        else:
            environment.close()

    def waiting(self) -> list[Environment]:
        """Those that are free."""
        return [environment for free in self.free.values() for environment in free]
