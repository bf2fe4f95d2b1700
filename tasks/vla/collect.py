"""Demonstrations of Meta-World's experts, with the noise of DART (arXiv 1703.09327) so that they show how to recover."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from discdiff.config import checked
from tasks.vla.episodes import Episode
from tasks.vla.metaworld import ACTION, CAMERA, CAP, Environment, expert, make
from tasks.vla.metaworld_ways import PLAIN, Controller, controller, drawn, ways_of
from tasks.vla.sentences import Instruction, said

PATIENCE = 20  # attempts after which half of them must have succeeded


def record(
    task: str,
    episodes: int,
    *,
    seed: int = 1000,
    noise: float = 0.1,
    pictures: bool = False,
    size: int = 64,
    ways: Sequence[str] | None = None,
    instruction: Instruction = said,
    cap: int = CAP,
    make: Callable[[str], Environment] = make,
    expert: Callable[[str], Controller] = expert,
    say: Callable[[str], object] = print,
) -> Iterator[Episode]:
    """So many successful episodes of a task, of the seeds from `seed` on; failures are left out, and `say` is told how many.
    What is stored is the expert's action in [-1, 1]; what is executed is that plus `noise` N(0, 1), in [-1, 1] again.

    pictures: also what the camera sees, `size` pixels wide. ways: what a coin per episode chooses from; None: every way of a
    task that has no plain one, otherwise the plain one. Raises ValueError where more than half of the attempts fail.
    """
    known = ways_of(task)
    ways = tuple(ways) if ways is not None else (PLAIN,) if PLAIN in known else known
    checked("ways", ways, len(ways) > 0, "at least one")
    for way in ways:
        checked("way", way, way in known, f"{task} is done in {', '.join(repr(w) for w in known)}")
    checked("episodes", episodes, episodes >= 1, "at least 1")
    checked("noise", noise, noise >= 0, "a standard deviation, at least 0")
    checked("cap", cap, 1 <= cap <= CAP, f"steps, from 1 to {CAP}")
    environment, act, kept, tried = make(task), expert(task), 0, 0
    try:
        while kept < episodes:
            k = seed + tried
            state, way = environment.reset(k), drawn(ways, k)
            acting, shaken = controller(task, way, environment.full, act), np.random.default_rng([k, 0])
            states: list[np.ndarray] = []
            actions: list[np.ndarray] = []
            frames: list[np.ndarray] = []
            done = None
            while done is None and len(actions) < cap:
                states.append(state)
                if pictures:
                    frames.append(environment.picture(size))
                actions.append(np.clip(acting(environment.full), -1, 1).astype(np.float32))
                moved = actions[-1] + noise * shaken.standard_normal(ACTION)
                state, done = environment.step(np.clip(moved, -1, 1))
            tried += 1
            kept += done is True
            patient = tried < PATIENCE or 2 * kept >= tried
            checked("task", task, patient, f"its expert failed in {tried - kept} of {tried} episodes: less noise?")
            if done:
                seen = {CAMERA: np.stack(frames)} if pictures else {}
                yield Episode(np.stack(states), np.stack(actions), instruction(task, k), seen, way)
    finally:
        environment.close()
    say(f"{task}: {kept} of {tried} episodes succeeded, {kept / tried:.3f}")
