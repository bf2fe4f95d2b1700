"""Policies in the small world: demonstrations of its expert as episodes, many worlds tried at once, and pictures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked
from tasks.vla.episodes import Episode
from tasks.vla.rollout import Observations, Policy, Rollout
from tasks.vla.world import ACTION, CLOSE, LOW, RADIUS, TASKS, State, demonstrate, start, step

CAP = 80  # steps after which an episode has failed
CAMERA = "above"
_TABLE, _GOAL, _BLOCK, _HIGH, _DOWN = ((236, 230, 218), (70, 160, 90), (170, 110, 60), (150, 170, 230), (40, 60, 170))


def demonstrated(episodes: int, seed: int = 0, picture: int = 0) -> list[Episode]:
    """The expert's successful episodes, as `demonstrate` makes them; picture: width of what is seen from above, 0 for none."""
    shown = demonstrate(episodes, seed)
    made = []
    for number in shown.episode.unique().tolist():
        rows = shown.episode == number
        state, task = shown.state[rows].numpy(), TASKS[int(shown.task[rows][0])]
        seen = {CAMERA: draw(state, picture)} if picture else {}
        made.append(Episode(state, shown.action[rows].numpy(), task, seen))
    return made


def begun(tasks: Sequence[str], seeds: Sequence[int]) -> State:
    """The worlds of every task with every seed, in that order; each depends on its own seed and task alone."""
    pairs = [start(len(TASKS), torch.Generator().manual_seed(seed)) for seed in seeds]
    rows = [TASKS.index(task) for task in tasks]
    columns = {f.name: torch.stack([getattr(pair, f.name) for pair in pairs]) for f in dataclasses.fields(State)}
    return State(**{name: x[:, rows].transpose(0, 1).flatten(0, 1) for name, x in columns.items()})


def tried(
    policy: Policy,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = TASKS,
    execute: int = 0,
    cap: int = CAP,
    size: int = 0,
    keep: Collection[tuple[str, int]] = (),
    keep_size: int = 96,
) -> list[Rollout]:
    """Every task with every seed, in that order. An episode ends when its goal is reached, or after `cap` steps.

    execute, size, keep and keep_size are those of `rollout.evaluate`. Raises ValueError for unknown tasks, actions of another
    shape, and actions that are not finite.
    """
    unknown = [task for task in tasks if task not in TASKS]
    checked("tasks", unknown, not unknown and len(tasks) > 0, f"the small world has {', '.join(map(repr, TASKS))}")
    episodes = [(task, int(seed)) for task in tasks for seed in seeds]
    checked("seeds", list(seeds), 0 < len(episodes) == len(set(episodes)), "at least one, none of them twice")
    checked("cap", cap, cap >= 1, "at least one step")
    checked("execute", execute, execute >= 0, "steps, or 0 for the whole chunk")
    state = begun(tasks, [int(seed) for seed in seeds])
    seen, calls = [state.observation()], torch.zeros(len(episodes), dtype=torch.int64)
    length, success = torch.full_like(calls, cap), torch.zeros(len(episodes), dtype=torch.bool)
    while len(seen) <= cap and not success.all():
        rows = (~success).nonzero()[:, 0]
        chunk = _asked(
            policy, seen[-1][rows], [episodes[i] for i in rows.tolist()], calls[rows].tolist(), size, execute
        )
        calls[rows] += 1
        for action in chunk.unbind(1)[: min(execute or chunk.shape[1], cap + 1 - len(seen))]:
            whole = torch.zeros(len(episodes), len(ACTION)).index_copy(0, rows, action)
            state = _where(success, state, step(state, whole))
            seen.append(state.observation())
            reached = state.done() & ~success
            length, success = torch.where(reached, len(seen) - 1, length), success | reached
    paths = torch.stack(seen, 1).numpy()
    made = []
    for row, (task, seed) in enumerate(episodes):
        path = paths[row, : int(length[row]) + 1]
        frames = draw(path, keep_size) if (task, seed) in keep else None
        made.append(Rollout(task, seed, bool(success[row]), len(path) - 1, int(calls[row]), path[:, :3], frames))
    return made


def _asked(
    policy: Policy, state: Tensor, episodes: list[tuple[str, int]], calls: list[int], size: int, execute: int
) -> Tensor:
    """Chunks of actions (n, chunk, 7)."""
    seen, (said, seeds) = state.numpy(), zip(*episodes, strict=True)
    shown = Observations(seen, list(said), list(seeds), calls, draw(seen, size) if size else None)
    actions = np.asarray(policy(shown), dtype=np.float32)
    fits = actions.ndim == 3 and actions.shape[::2] == (len(seen), len(ACTION)) and actions.shape[1] >= max(1, execute)
    least = f", a chunk being at least {execute}" if execute else ""
    checked("actions", actions.shape, fits, f"a policy gives ({len(seen)}, chunk, {len(ACTION)}){least}")
    checked("actions", int((~np.isfinite(actions)).sum()), bool(np.isfinite(actions).all()), "of them are not finite")
    return torch.from_numpy(actions)


def _where(kept: Tensor, old: State, new: State) -> State:
    """The worlds `old` where kept (n,), the others `new`."""
    pairs = {f.name: (getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(State)}
    return State(**{n: torch.where(kept.view(-1, *[1] * (a.ndim - 1)), a, b) for n, (a, b) in pairs.items()})


def draw(state: np.ndarray, size: int) -> np.ndarray:
    """What is seen from above (n, size, size, 3) uint8 of states (n, 8) as `world.STATE` names them: the goal, the block, and
    the hand, which is darker when it is low. Raises ValueError for a size below 8.
    """
    checked("size", size, size >= 8, "pixels, at least 8")
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = axis[None, None, :], -axis[None, :, None]  # up is the table's far side

    def inside(columns: slice, radius: float) -> np.ndarray:
        place = state[:, columns, None, None]
        return (x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2 < max(radius, 1.5 / size) ** 2

    picture = np.broadcast_to(np.array(_TABLE, np.float32), (len(state), size, size, 3)).copy()
    low = np.clip(1 - (state[:, 2] - LOW) / (1 - LOW), 0, 1)[:, None]
    hand = (1 - low) * np.array(_HIGH, np.float32) + low * np.array(_DOWN, np.float32)  # (n, 3)
    for mask, colour in (
        (inside(slice(6, 8), CLOSE + 0.03), np.array([_GOAL], np.float32)),
        (inside(slice(4, 6), RADIUS), np.array([_BLOCK], np.float32)),
        (inside(slice(0, 2), 0.06), hand),
    ):
        picture = np.where(mask[..., None], colour[:, None, None], picture)
    return picture.round().astype(np.uint8)
