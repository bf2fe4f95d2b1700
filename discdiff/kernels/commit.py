"""Commit: the best-ranked masked positions take their drawn tokens for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.denoisers import Drawn
from discdiff.kernels.base import ask, select
from discdiff.noise import TOKEN, Noise
from discdiff.processes import Absorbing
from discdiff.schedules import Linear, Schedule
from discdiff.scores import Random, Score
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Commit:
    """After a step to times s, floor(sum_i (1 - quota.alpha(s_i))) of a row's free positions stay masked, and at least
    one more is committed than before; the `score` says which. Exact only for one position at a time with a
    candidate-free score; otherwise a mode seeker (MaskGIT arXiv 2202.04200, LLaDA 2502.09992).

    quota: Linear() is LLaDA's, CosineMD4() MaskGIT's. Modalities are ranked apart, so that a small segment is not
    starved by a big one, unless `jointly`. Blocks and segments that must wait are the clock's business.
    """

    score: Score = field(default_factory=Random)
    quota: Schedule = field(default_factory=Linear)
    process: Absorbing = field(default_factory=Absorbing)
    jointly: bool = False
    final: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.process, Absorbing):
            raise ValueError(f"Commit fills masks: it needs Absorbing, not {type(self.process).__name__}")

    @property
    def unbiased(self) -> bool:
        """In the limit of one position per step, and only if the score does not look at the drawn token."""
        return not self.score.peeks

    @property
    def decide_first(self) -> bool:
        """Random and fixed orders need no network to choose."""
        return self.score.statistic is None

    def init(self, state: State) -> State:
        return state

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        eligible = state.free & ~state.committed & (step.s < step.t)
        index = select(eligible)
        if not len(index):
            return self._arrive(state, step), Info()
        if self.decide_first:
            chosen = self._choose(state, step, eligible, self.score(state, index, None, noise))
            index = select(chosen)
            asked = ask(denoiser, self.process, state, step, noise, index)
            drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN)
            tokens = drawn.tokens
        else:
            asked = ask(denoiser, self.process, state, step, noise, index)
            drawn = asked.prediction.draw(asked.index, asked.noise, TOKEN, self.score.statistic)
            chosen = self._choose(state, step, eligible, self.score(state, index, drawn, noise))
            tokens = torch.where(chosen.view(-1)[index], drawn.tokens, state.tokens.reshape(-1)[index])
        info = asked.info._replace(committed=chosen.sum(), entropy=-_mean_log_prob(drawn))
        merged = state.tokens.reshape(-1).scatter(0, index, tokens).view(state.tokens.shape)
        return self._arrive(state, step)._replace(tokens=merged, committed=state.committed | chosen), info

    def _arrive(self, state: State, step: Step) -> State:
        """Committed positions keep the clock's time too: the quota counts every free position."""
        return state._replace(time=torch.where(state.free, torch.minimum(state.time, step.s), state.time))

    def _choose(self, state: State, step: Step, eligible: Tensor, score: Tensor) -> Tensor:
        """The best of each row and pool, bool (batch, length); a position whose time is up comes before any score."""
        chosen, due = torch.zeros_like(eligible), eligible & (step.s <= 0)
        left = torch.where(state.free & (step.s > 0), 1 - self.quota.alpha(step.s), 0.0)  # nothing is left at time 0
        score = torch.where(due, torch.inf, score)
        for pool in self._pools(state):
            here = eligible & pool
            now = (state.free & ~state.committed & pool).sum(1)
            stay = ((left * pool).sum(1) + 1e-6).floor().long()
            count = torch.where(here.any(1), torch.maximum(now - stay, (due & pool).sum(1).clamp(min=1)), 0)
            place = torch.where(here, score, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
            chosen |= here & (place < count[:, None])
        return chosen

    def _pools(self, state: State) -> list[Tensor]:
        """Masks of the positions that are ranked together."""
        layout = state.batch.layout
        pool = layout.tables(state.tokens.device).pool[state.batch.slot]
        numbers = layout.pools
        if self.jointly or len(numbers) == 1:
            return [torch.ones_like(state.committed)]
        return [pool == number for number in numbers]


def _mean_log_prob(drawn: Drawn) -> Tensor:
    return drawn.log_prob.mean()
