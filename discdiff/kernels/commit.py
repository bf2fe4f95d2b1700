"""Commit: the best-ranked masked positions take their drawn tokens for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Drawn, Prediction
from discdiff.kernels.base import Kernel, arrive, ask, select
from discdiff.noise import TOKEN, Noise
from discdiff.processes import Absorbing
from discdiff.rules import Quota, Ranked, Rule
from discdiff.scores import Random, Score, check_score, spread
from discdiff.types import Info, State, Step

LOWEST = torch.finfo(torch.float64).min


@dataclass(frozen=True)
class Raw:
    """A denoiser whose predictions at visible tokens stay what the network says, not the token they show; at masks, where
    own and cavity predictions agree, nothing changes.
    """

    inner: Any
    kind: ClassVar[str] = "own"

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.inner(state, step)


def places(here: Tensor, score: Tensor) -> Tensor:
    """Rank of each position of a row, 0 the best of `here` (bool), the others behind, (batch, length); ties go by column."""
    return (
        torch.where(here, score.clamp(min=LOWEST), -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    )


def pools(state: State, jointly: bool) -> list[Tensor]:
    """Masks (batch, length) of the positions that are ranked together: one per modality, or one for all."""
    layout = state.batch.layout
    if jointly or len(layout.pools) == 1:
        return [torch.ones_like(state.committed)]
    pool = layout.tables(state.tokens.device).pool[state.batch.slot]
    return [pool == number for number in layout.pools]


@dataclass(frozen=True)
class Commit(Kernel):
    """The `score` ranks a row's masked positions, the `rule` says how many of the best are committed: at least one, and
    all whose time is up. Exact only for one position at a time with a candidate-free score; otherwise a mode seeker
    (MaskGIT arXiv 2202.04200, LLaDA 2502.09992).

    Modalities are ranked apart, so that a small segment is not starved by a big one, unless `jointly`. Blocks and
    segments that must wait are the clock's business. edit: committed tokens that are still on their way to time 0 are
    drawn anew, too, and replaced where the new token has at least this probability (LLaDA2-style editing); it needs a
    network that judges the tokens it sees. Raises ValueError for a process without masks and for parts that are none.
    """

    score: Score = field(default_factory=Random)
    rule: Rule = field(default_factory=Quota)
    process: Absorbing = field(default_factory=Absorbing)
    jointly: bool = False
    edit: float | None = None
    reads: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.process, Absorbing):
            raise ValueError(f"Commit fills masks: it needs Absorbing, not {type(self.process).__name__}")
        check_score(self.score)
        if not isinstance(self.rule, Rule):
            raise ValueError(f"rule is {self.rule!r}: give a Rule, such as Quota(CosineMD4()) or Threshold(0.9)")
        checked("edit", self.edit, self.edit is None or 0 < self.edit <= 1, "a probability in (0, 1], or None")

    @property
    def unbiased(self) -> bool:
        """In the limit of one position per step, and only if the score does not look at the drawn token."""
        return not self.score.peeks and type(self.rule) is Quota and self.final

    @property
    def final(self) -> bool:
        return self.edit is None

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the network must report beside the draw."""
        return tuple(dict.fromkeys((*self.score.statistics, *self.rule.statistics)))

    @property
    def decide_first(self) -> bool:
        """Random and fixed orders with a fixed quota need no network to choose."""
        return not (self.score.needs_draw or self.rule.statistics or self.edit is not None)

    def init(self, state: State) -> State:
        return self.rule.init(state)

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        after, info, _ = self.fill(denoiser, state, step, noise)
        return after, info

    def fill(
        self, denoiser: Any, state: State, step: Step, noise: Noise, judged: Tensor | None = None
    ) -> tuple[State, Info, Tensor]:
        """The step, and log p (batch, length) of the tokens it drew and of the committed ones `judged` (bool), as the
        network that sees these says, from one network call; -inf elsewhere.
        """
        moving = state.free & (step.s < step.t)
        eligible = moving & ~state.committed
        index = select(eligible if self.edit is None else moving)
        seen = index[:0] if judged is None else select(judged)
        if not len(index) + len(seen):
            return arrive(state, step), Info(), torch.full_like(state.time, -torch.inf)
        if self.decide_first:
            chosen = self._choose(state, step, eligible, self.score(state, step, index, None, noise), {})
            index = select(chosen)
        asks = denoiser if self.edit is None and judged is None else Raw(denoiser)
        asked = ask(asks, self.process, state, step, noise, torch.cat([index, seen]))
        drawn = asked.prediction.draw(asked.index[: len(index)], asked.noise, TOKEN, self.statistics)
        if not self.decide_first:
            state = self.rule.remember(state, index, drawn.statistics)
            score = self.score(state, step, index, drawn, noise)
            tables = {name: spread(state, index, x) for name, x in drawn.statistics.items() if x.ndim == 1}
            chosen = self._choose(state, step, eligible, score, tables)
        present = state.tokens.reshape(-1)
        opinion = asked.prediction.log_prob(asked.index[len(index) :], present[seen])
        log_p = spread(state, torch.cat([index, seen]), torch.cat([drawn.log_prob, opinion]))
        written = chosen | self._edited(state, index, drawn)
        tokens = torch.where(written.view(-1)[index], drawn.tokens, present[index])
        merged = present.scatter(0, index, tokens).view(state.tokens.shape)
        entropy = -drawn.log_prob.mean() if len(index) else None
        info = asked.info._replace(committed=chosen.sum(), entropy=entropy)
        return arrive(state, step)._replace(tokens=merged, committed=state.committed | chosen), info, log_p

    def _edited(self, state: State, index: Tensor, drawn: Drawn) -> Tensor:
        """Committed positions whose new token is likely enough, bool (batch, length)."""
        if self.edit is None:
            return torch.zeros_like(state.committed)
        return state.committed & (spread(state, index, drawn.log_prob).exp() >= self.edit)

    def _choose(self, state: State, step: Step, eligible: Tensor, score: Tensor, tables: dict[str, Tensor]) -> Tensor:
        """The best of each row and pool, bool (batch, length); a position whose time is up comes before any score."""
        chosen, due = torch.zeros_like(eligible), eligible & (step.s <= 0)
        score = torch.where(due, torch.inf, score)
        for pool in pools(state, self.jointly):
            here = eligible & pool
            place = places(here, score)
            ranked = Ranked(state, step, pool, here, place, tables)
            chosen |= here & (self.rule(ranked) | due | (place == 0))
        return chosen
