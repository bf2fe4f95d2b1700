"""A small world to act in: a hand above a table reaches a goal, or pushes a block to it; and an expert for both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from discdiff.config import checked

TASKS = ("reach the goal", "push the block to the goal")
STATE = ("x", "y", "height", "yaw", "block x", "block y", "goal x", "goal y")
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
SPEED, TURN = 0.08, 0.5  # of a full action, in tables per step and radians per step
RADIUS, LOW = 0.08, 0.2  # of the block; below this height the hand touches it
CLOSE = 0.06  # to the goal: done


@dataclass(frozen=True)
class State:
    """Many worlds at once: hand (n, 2), height (n,), yaw (n,), block (n, 2), goal (n, 2), task (n,) of `TASKS`."""

    hand: Tensor
    height: Tensor
    yaw: Tensor
    block: Tensor
    goal: Tensor
    task: Tensor

    def observation(self) -> Tensor:
        """The numbers that `STATE` names (n, 8)."""
        return torch.cat([self.hand, self.height[:, None], self.yaw[:, None], self.block, self.goal], 1)

    def done(self) -> Tensor:
        """Whether hand or block is at the goal (n,)."""
        what = torch.where(self.task[:, None] == 0, self.hand, self.block)
        return (what - self.goal).norm(dim=1) < CLOSE


def start(worlds: int, generator: torch.Generator) -> State:
    """Worlds with hand, block and goal at random places of a table from -1 to 1, both tasks in turn."""
    places = 1.4 * torch.rand(worlds, 3, 2, generator=generator) - 0.7
    zero, task = torch.zeros(worlds), torch.arange(worlds) % len(TASKS)
    return State(places[:, 0], zero + 1, zero, places[:, 1], places[:, 2], task)


def step(state: State, action: Tensor) -> State:
    """The worlds after actions (n, 7) in [-1, 1]: the hand moves, and a low hand pushes the block out of its way."""
    action = action.clamp(-1, 1)
    hand = (state.hand + SPEED * action[:, :2]).clamp(-1, 1)
    height = (state.height + 0.3 * action[:, 2]).clamp(0, 1)
    away = state.block - hand
    distance = away.norm(dim=1, keepdim=True)
    pushed = (distance < RADIUS) & (height[:, None] < LOW)
    block = torch.where(pushed, hand + away / distance.clamp(min=1e-6) * RADIUS, state.block).clamp(-1, 1)
    return replace(state, hand=hand, height=height, yaw=state.yaw + TURN * action[:, 5], block=block)


def expert(state: State) -> Tensor:
    """What a scripted hand does (n, 7): straight to the goal; or behind the block while high, down, and through it."""
    push = state.task == 1
    way = torch.nn.functional.normalize(state.goal - state.block, dim=1)
    behind = state.block - 1.6 * RADIUS * way
    across = state.hand - state.block
    along = (across * way).sum(1, keepdim=True)
    aside = (across - along * way).norm(dim=1)
    ready = ((state.hand - behind).norm(dim=1) < 0.04) | ((along[:, 0] < 0) & (along[:, 0] > -0.16) & (aside < 0.05))
    low = ready & push
    through = state.block - RADIUS * way + 0.5 * SPEED * way  # back to the line on which it pushes, and on
    place = torch.where((low & (state.height < LOW))[:, None], through, behind)
    move = (torch.where(push[:, None], place, state.goal) - state.hand) / SPEED
    move = move / move.norm(dim=1, keepdim=True).clamp(min=1)
    down = torch.where(low, 0.0, 1.0) - state.height
    heading = torch.atan2(move[:, 1], move[:, 0])
    turn = torch.remainder(heading - state.yaw + torch.pi, 2 * torch.pi) - torch.pi
    grip = torch.where(low, 1.0, -1.0)
    zero = torch.zeros_like(grip)
    parts = [move, (down / 0.3)[:, None], zero[:, None], zero[:, None], (turn / TURN)[:, None], grip[:, None]]
    return torch.cat(parts, 1).clamp(-1, 1)


@dataclass(frozen=True)
class Demonstrations:
    """Frames of all episodes end to end: state (frames, 8), action (frames, 7), episode (frames,), task (frames,); success:
    share of the episodes that reached their goal, the others are left out.
    """

    state: Tensor
    action: Tensor
    episode: Tensor
    task: Tensor
    success: float


def demonstrate(episodes: int, seed: int = 0, steps: int = 80, noise: float = 0.1) -> Demonstrations:
    """The expert's episodes, each up to its goal. What is stored is its action; what is executed is that action plus
    `noise`, so that the data show how it recovers (DART, arXiv 1703.09327). Raises ValueError for no episodes.
    """
    checked("episodes", episodes, episodes >= 1, "at least 1")
    generator = torch.Generator().manual_seed(seed)
    state = start(episodes, generator)
    task, running = state.task, torch.ones(episodes, dtype=torch.bool)
    states, actions, alive = [], [], []
    for _ in range(steps):
        action = expert(state)
        states.append(state.observation())
        actions.append(action)
        alive.append(running)
        state = step(state, action + noise * torch.randn(action.shape, generator=generator))
        running = running & ~state.done()
    kept = torch.stack(alive, 1) & ~running[:, None]  # (episodes, steps)
    episode = torch.arange(episodes)[:, None].expand_as(kept)[kept]
    state_rows, action_rows = torch.stack(states, 1)[kept], torch.stack(actions, 1)[kept]
    return Demonstrations(state_rows, action_rows, episode, task[episode], 1 - float(running.double().mean()))
