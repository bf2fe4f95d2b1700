"""Demonstrations of Meta-World's experts, with the noise of DART (arXiv 1703.09327) so that they show how to recover."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from discdiff.config import checked
from discdiff.report.pictures import write_atomically
from tasks.vla.episodes import Episode
from tasks.vla.metaworld import ACTION, CAMERA, CAP, Environment, expert, make
from tasks.vla.metaworld_ways import PLAIN, Controller, controller, drawn, ways_of
from tasks.vla.sentences import Instruction, said

PATIENCE = 20  # attempts after which half of them must have succeeded
_PICTURES = "pictures."  # and the name of the camera


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
    parts: Path | None = None,
    make: Callable[[str], Environment] = make,
    expert: Callable[[str], Controller] = expert,
    say: Callable[[str], object] = print,
) -> Iterator[Episode]:
    """So many successful episodes of a task, of the seeds from `seed` on; failures are left out, and `say` is told how many.
    What is stored is the expert's action in [-1, 1]; what is executed is that plus `noise` N(0, 1), in [-1, 1] again.

    pictures: also what the camera sees, `size` pixels wide. ways: what a coin per episode chooses from; None: every way of a
    task that has no plain one, otherwise the plain one. parts: a folder in which every attempt is kept when it ends; those
    that are there are taken from it, so that an interrupted recording goes on. Raises ValueError where more than half of the
    attempts fail, and for damaged parts.
    """
    known = ways_of(task)
    ways = tuple(ways) if ways is not None else (PLAIN,) if PLAIN in known else known
    checked("ways", ways, len(ways) > 0, "at least one")
    for way in ways:
        checked("way", way, way in known, f"{task} is done in {', '.join(repr(w) for w in known)}")
    checked("episodes", episodes, episodes >= 1, "at least 1")
    checked("noise", noise, noise >= 0, "a standard deviation, at least 0")
    checked("cap", cap, 1 <= cap <= CAP, f"steps, from 1 to {CAP}")
    world: tuple[Environment, Controller] | None = None
    kept = tried = 0
    try:
        while kept < episodes:
            k = seed + tried
            part = None if parts is None else parts / f"{k}.npz"
            if part is not None and part.is_file():
                made = _kept(part)
            else:
                world = world or (make(task), expert(task))
                made = _attempt(
                    task, *world, k, drawn(ways, k), noise, size if pictures else 0, instruction(task, k), cap
                )
                if part is not None:
                    _keep(part, made)
            tried += 1
            kept += made is not None
            patient = tried < PATIENCE or 2 * kept >= tried
            checked("task", task, patient, f"its expert failed in {tried - kept} of {tried} episodes: less noise?")
            if made is not None:
                yield made
    finally:
        if world is not None:
            world[0].close()
    say(f"{task}: {kept} of {tried} episodes succeeded, {kept / tried:.3f}")


def _attempt(
    task: str, environment: Environment, act: Controller, seed: int, way: str, noise: float, size: int, words: str, cap: int
) -> Episode | None:  # fmt: skip
    """One episode, None where it failed."""
    state = environment.reset(seed)
    acting, shaken = controller(task, way, environment.full, act), np.random.default_rng([seed, 0])
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    done = None
    while done is None and len(actions) < cap:
        states.append(state)
        if size:
            frames.append(environment.picture(size))
        actions.append(np.clip(acting(environment.full), -1, 1).astype(np.float32))
        moved = actions[-1] + noise * shaken.standard_normal(ACTION)
        state, done = environment.step(np.clip(moved, -1, 1))
    seen = {CAMERA: np.stack(frames)} if size else {}
    return Episode(np.stack(states), np.stack(actions), words, seen, way) if done else None


def _keep(part: Path, made: Episode | None) -> None:
    """Write an attempt; one that failed has nothing in it."""
    held: dict[str, Any] = {}
    out = io.BytesIO()
    if made is not None:
        held = {"state": made.state, "action": made.action, "task": np.array(made.task), "way": np.array(made.way)}
        held |= {_PICTURES + camera: seen for camera, seen in made.pictures.items()}
    np.savez_compressed(out, **held)
    write_atomically(part, out.getvalue())


def _kept(part: Path) -> Episode | None:
    """What `_keep` wrote. Raises ValueError naming the file for anything else."""
    try:
        with np.load(part) as held:
            seen = {name.removeprefix(_PICTURES): held[name] for name in held.files if name.startswith(_PICTURES)}
            if not held.files:
                return None
            return Episode(held["state"], held["action"], str(held["task"]), seen, str(held["way"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "remove it, and this attempt is made again"
        raise ValueError(f"{str(part)!r} is no attempt of a recording ({error}): {remedy}") from error
