"""Budget: when a corrector runs and how many network calls it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.correctors.base import Corrector, started
from discdiff.noise import Noise
from discdiff.processes import Process
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Budget(Corrector):
    """`corrector` after every `every`-th step whose time is inside [stop, start], for at most `calls` network calls.

    A row's time is the largest that a started position of it has reached; 0 is after the last step. Calls are counted per
    row by the steps at which its window was open, whatever the tokens: as many whole corrections run as fit. So nothing
    depends on the batch, and under one shared clock the run makes no more than `calls` calls.
    Raises ValueError for an impossible setting, and for a second budget of the same `name` in a run.
    """

    corrector: Corrector
    calls: int | None = None
    every: int = 1
    start: float = 1.0
    stop: float = 0.0
    name: str = "corrector"

    def __post_init__(self) -> None:
        kind = type(self.corrector).__name__
        checked("corrector", kind, isinstance(self.corrector, Corrector), "give a Corrector, such as Gibbs()")
        checked("corrector", kind, not isinstance(self.corrector, Budget), "give one Budget all its settings")
        checked("calls", self.calls, self.calls is None or self.calls >= 0, "0 or more network calls, or None")
        checked("every", self.every, self.every >= 1, "every step (1) or fewer")
        window = (self.stop, self.start)
        checked("(stop, start)", window, 0 <= self.stop <= self.start <= 1, "times with 0 <= stop <= start <= 1")

    @property
    def process(self) -> Process:
        return self.corrector.process

    @property
    def unbiased(self) -> bool:
        return self.corrector.unbiased

    @property
    def decide_first(self) -> bool:
        return self.corrector.decide_first

    @property
    def reads(self) -> tuple[str, ...]:
        return self.corrector.reads

    @property
    def _key(self) -> str:
        return f"{self.name}_calls"

    def cost(self, denoiser: Any) -> int:
        return self.corrector.cost(denoiser)

    def check(self, grid: Any) -> None:
        self.corrector.check(grid)

    def ready(self, state: State) -> Tensor:
        return self.corrector.ready(state)

    def init(self, state: State) -> State:
        state = self.corrector.init(state)
        if self.calls is None:
            return state
        if self._key in state.memory:
            raise ValueError(f"two budgets named {self.name!r} in one run: give each a name of its own")
        return state._replace(memory={**state.memory, self._key: torch.zeros_like(state.row)})

    def correct(self, denoiser: Any, state: State, step: Step, noise: Noise, where: Tensor) -> tuple[State, Info]:
        if (step.index + 1) % self.every:
            return state, Info()
        running = started(state)
        now = torch.where(running, state.time, 0.0).amax(1)
        open_ = running.any(1) & (now >= self.stop) & (now <= self.start)
        if self.calls is not None:
            used, cost = state.memory[self._key], self.cost(denoiser)
            open_ = open_ & (used + cost <= self.calls)
            state = state._replace(memory={**state.memory, self._key: used + cost * open_})
        return self.corrector.correct(denoiser, state, step, noise, where & open_[:, None])
