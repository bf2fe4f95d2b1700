"""Rules: how many of the best-ranked masked positions are committed in one step.

A rule sees the positions of one pool of each row in the order of their scores and marks those it would commit; `Commit`
adds the best one where it marks none, so that every step gets on, and all whose time is up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import LOG_PROBS
from discdiff.schedules import Linear, Schedule
from discdiff.types import State, Step


class Ranked(NamedTuple):
    """One pool of positions, all (batch, length): pool bool, its positions; eligible bool, those that may be committed
    now; place int64, their rank, 0 the best, the others behind; tables: statistics by name, -inf where not asked.
    """

    state: State
    step: Step
    pool: Tensor
    eligible: Tensor
    place: Tensor
    tables: Mapping[str, Tensor]

    def in_order(self, values: Tensor) -> Tensor:
        """Values (batch, length) as column k = value of the position of rank k."""
        return torch.zeros_like(values).scatter(1, self.place, values)

    def first(self, count: Tensor) -> Tensor:
        """The best `count` (batch,) eligible positions of each row, bool (batch, length)."""
        return self.eligible & (self.place < count[:, None])


@dataclass(frozen=True)
class Rule:
    """`(ranked) -> bool (batch, length)`; statistics: what the network must report first (() = it need not be asked).

    `init(state)` adds per-row memory, `remember(state, index, statistics)` brings it up to date before each choice.
    """

    statistics: ClassVar[tuple[str, ...]] = ()

    def init(self, state: State) -> State:
        return state

    def remember(self, state: State, index: Tensor, statistics: Mapping[str, Tensor]) -> State:
        return state

    def __call__(self, ranked: Ranked) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no __call__")


@dataclass(frozen=True)
class Quota(Rule):
    """So many that floor(sum_i (1 - curve.alpha(s_i))) of a row's free positions stay masked after the step to times s.

    Linear() is LLaDA's curve (arXiv 2502.09992), CosineMD4() MaskGIT's (2202.04200), Arccos() Halton-MaskGIT's.
    """

    curve: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        checked("curve", self.curve, isinstance(self.curve, Schedule), "give a Schedule, such as CosineMD4()")

    def __call__(self, ranked: Ranked) -> Tensor:
        state, s = ranked.state, ranked.step.s
        left = torch.where(state.free & (s > 0), 1 - self.curve.alpha(s), 0.0)  # nothing is left at time 0
        stay = ((left * ranked.pool).sum(1) + 1e-6).floor().long()
        now = (state.free & ~state.committed & ranked.pool).sum(1)
        return ranked.first(now - stay)


@dataclass(frozen=True)
class Threshold(Rule):
    """All whose likeliest token has at least probability `tau` (Fast-dLLM, arXiv 2505.22618)."""

    tau: float = 0.9
    statistics: ClassVar[tuple[str, ...]] = ("confidence",)

    def __post_init__(self) -> None:
        checked("tau", self.tau, 0 < self.tau <= 1, "a probability in (0, 1]")

    def __call__(self, ranked: Ranked) -> Tensor:
        return ranked.eligible & (ranked.tables["confidence"] >= self.tau)


@dataclass(frozen=True)
class Factor(Rule):
    """The best n, n the largest with (n + 1) (1 - c_n) < factor, c_n the least confidence among them (Fast-dLLM, 2505.22618).

    Meant for `Sure("confidence")`; with factor 1, taking the likeliest tokens at once then equals taking them one by one.
    """

    factor: float = 1.0
    statistics: ClassVar[tuple[str, ...]] = ("confidence",)

    def __post_init__(self) -> None:
        checked("factor", self.factor, self.factor > 0, "above 0")

    def __call__(self, ranked: Ranked) -> Tensor:
        c = ranked.in_order(torch.where(ranked.eligible, ranked.tables["confidence"], -torch.inf)).cummin(1).values
        n = torch.arange(1, c.shape[1] + 1, device=c.device)
        return ranked.first(torch.where((n + 1) * (1 - c) < self.factor, n, 0).amax(1))


@dataclass(frozen=True)
class EntropyBound(Rule):
    """The best k, k the largest with H_1 + ... + H_(k-1) <= gamma nats (EB sampler, arXiv 2505.24857).

    Ranked by entropy the sum bounds the error of drawing the k tokens independently; gamma 0 takes extra tokens only
    where they are certain.
    """

    gamma: float = 0.1
    statistics: ClassVar[tuple[str, ...]] = ("entropy",)

    def __post_init__(self) -> None:
        checked("gamma", self.gamma, self.gamma >= 0, "0 or more nats")

    def __call__(self, ranked: Ranked) -> Tensor:
        entropy = ranked.in_order(torch.where(ranked.eligible, -ranked.tables["entropy"], torch.inf))
        before = torch.cat([torch.zeros_like(entropy[:, :1]), entropy[:, :-1].cumsum(1)], 1)
        return ranked.first((before <= self.gamma).sum(1))


@dataclass(frozen=True)
class Stable(Rule):
    """All with confidence at least `tau` whose prediction moved by less than `eps` nats (KL to the step before) during
    the last `history` steps (KLASS, arXiv 2511.05664). Keeps one prediction (batch, length, symbols) in float32.
    """

    tau: float = 0.9
    eps: float = 0.01
    history: int = 2
    statistics: ClassVar[tuple[str, ...]] = ("confidence", LOG_PROBS)

    def __post_init__(self) -> None:
        checked("tau", self.tau, 0 < self.tau <= 1, "a probability in (0, 1]")
        checked("eps", self.eps, self.eps > 0, "above 0 nats")
        checked("history", self.history, self.history >= 1, "at least 1 step")

    def init(self, state: State) -> State:
        width = max(count + len(extras) for _, count, extras in state.batch.layout.alphabets)
        shape, device = state.tokens.shape, state.tokens.device
        memory = {
            "stable_log_probs": torch.full((*shape, width), torch.nan, device=device),
            "stable_steps": torch.zeros(shape, dtype=torch.int64, device=device),
        }
        return state._replace(memory={**state.memory, **memory})

    def remember(self, state: State, index: Tensor, statistics: Mapping[str, Tensor]) -> State:
        now, table = statistics[LOG_PROBS], state.memory["stable_log_probs"]
        before = table.view(-1, table.shape[-1])[index]
        moved = torch.where(now > -torch.inf, now.exp() * (now - before), 0.0).sum(
            -1
        )  # nan at a first look: not stable
        steps = state.memory["stable_steps"].reshape(-1)
        steps = steps.scatter(0, index, torch.where(moved < self.eps, steps[index] + 1, 0)).view(state.tokens.shape)
        table = table.view(-1, table.shape[-1]).index_copy(0, index, now).view_as(table)
        return state._replace(memory={**state.memory, "stable_log_probs": table, "stable_steps": steps})

    def __call__(self, ranked: Ranked) -> Tensor:
        stable = ranked.state.memory["stable_steps"] >= self.history
        return ranked.eligible & stable & (ranked.tables["confidence"] >= self.tau)
