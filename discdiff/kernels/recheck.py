"""Recheck: committed tokens are judged again in every round, and those the network no longer believes are masked again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Drawn
from discdiff.kernels.base import Kernel, select
from discdiff.kernels.commit import Commit, places, pools
from discdiff.noise import Noise
from discdiff.processes import Process
from discdiff.rules import Quota
from discdiff.schedules import CosineMD4
from discdiff.scores import Annealed, DepthPrefix, log_scale, spread
from discdiff.scores.around import Around
from discdiff.types import Info, State, Step, per_position

RESCORE = ("visible", "loo")
REF, COUNT = "recheck_ref", "recheck_count"


def _cosine() -> Commit:
    return Commit(Annealed(), Quota(CosineMD4()))


@dataclass(frozen=True)
class Recheck(Kernel):
    """`commit`, and secondary re-masking (Discrete Diffusion VLA, arXiv 2508.20072): with p_i the probability of a
    committed token now and ref_i that of the step that committed it, it is masked again where
    p_i < low + (high - low) (1 - s) or ref_i - p_i > drop.

    Per row and modality at most ceil(share n) of n free positions, the largest excess first; none whose time is up, so that
    no mask is left; each at most `limit` times. A `Quota` counts masks, so the next step makes up for it.

    rescore "visible": the step's network call judges the tokens it sees, committed before, which says nothing where a network
    only copies them; "loo": one more call judges all committed tokens, each masked in a copy of its row. Memory (batch,
    length): "recheck_ref" probabilities, 0 where masked or not committed here, "recheck_count" re-masks.

    Biased, a mode seeker. drop >= 1 and high 0 switch a check off; with both off, share 0 or limit 0 it is `commit`, call
    for call. Raises ValueError for a `commit` that edits or keeps levels in order and for numbers out of range; approximate
    caches raise it for "loo", whose copies of a row cannot share one.
    """

    commit: Commit = field(default_factory=_cosine)
    low: float = 0.1
    high: float = 0.4
    drop: float = 0.3
    share: float = 0.1
    limit: int = 2
    rescore: str = "visible"

    def __post_init__(self) -> None:
        checked("commit", self.commit, isinstance(self.commit, Commit), "give a Commit, such as Commit(Sure())")
        checked("commit.edit", self.commit.edit, self.commit.edit is None, "editing and rechecking exclude each other")
        if isinstance(self.commit.score, DepthPrefix):
            raise ValueError(
                "commit ranks by DepthPrefix: a parent masked again would leave its levels, rank them alike"
            )
        checked("low", self.low, 0 <= self.low <= self.high, f"a probability of at most high, {self.high}")
        checked("high", self.high, self.high <= 1, "a probability of at least low")
        checked("drop", self.drop, self.drop >= 0, "0 or more, 1 for no such check")
        checked("share", self.share, 0 <= self.share <= 1, "a share in [0, 1]")
        checked("limit", self.limit, self.limit >= 0, "0 or more re-masks of a position")
        checked("rescore", self.rescore, self.rescore in RESCORE, f"choose from {', '.join(RESCORE)}")

    @property
    def process(self) -> Process:
        return self.commit.process

    @property
    def off(self) -> bool:
        """Whether no check can fire."""
        return (self.high == 0 and self.drop >= 1) or self.share == 0 or self.limit == 0

    @property
    def unbiased(self) -> bool:
        return self.off and self.commit.unbiased

    @property
    def decide_first(self) -> bool:
        return self.off and self.commit.decide_first

    @property
    def final(self) -> bool:
        return self.off

    def init(self, state: State) -> State:
        state = self.commit.init(state)
        memory = {REF: torch.zeros_like(state.time), COUNT: torch.zeros_like(state.tokens)}
        return state._replace(memory={**state.memory, **memory})

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        if self.off:
            return self.commit(denoiser, state, step, noise)
        judged = self._judged(state, step) if self.rescore == "visible" else None
        after, info, log_p = self.commit.fill(denoiser, state, step, noise, judged)
        ref = torch.where(after.committed & ~state.committed, log_p.exp(), state.memory[REF])
        if judged is None:
            judged = self._judged(after, step)
            log_p, cost = left_out(denoiser, after, step, judged)
            info = info.merge(cost)
        again = self._again(after, step, judged, log_p.exp(), ref)
        tokens = torch.where(again, after.batch.layout.vocab.mask, after.tokens)
        memory = {REF: torch.where(again, 0.0, ref), COUNT: after.memory[COUNT] + again}
        after = after._replace(tokens=tokens, committed=after.committed & ~again, memory={**after.memory, **memory})
        return after, info._replace(committed=(after.committed & ~state.committed).sum())

    def _judged(self, state: State, step: Step) -> Tensor:
        """Committed positions that may still be masked again, bool (batch, length)."""
        open_still = (step.s > 0) & (step.s < step.t) & (state.memory[COUNT] < self.limit)
        return state.free & state.committed & open_still

    def _again(self, state: State, step: Step, judged: Tensor, now: Tensor, ref: Tensor) -> Tensor:
        """The largest violations of each row and pool, bool (batch, length)."""
        least = self.low + (self.high - self.low) * (1 - step.s)
        excess = torch.maximum(least - now, ref - now - self.drop)
        again, failed = torch.zeros_like(judged), judged & (excess > 0)
        for pool in pools(state, self.commit.jointly):
            here = failed & pool
            most = ((state.free & pool).sum(1).double() * self.share - 1e-9).ceil()  # 0.1 * 70 is a little over 7
            again |= here & (places(here, excess) < most[:, None])
        return again


def left_out(denoiser: Any, state: State, step: Step, judged: Tensor) -> tuple[Tensor, Info]:
    """log p(x_i | the row without x_i) at the `judged` positions (bool), (batch, length), -inf elsewhere: one network call with
    a copy of the row per position.
    """
    index, length = select(judged), state.tokens.shape[1]
    if not len(index):
        return torch.full_like(state.time, -torch.inf), Info()
    copies, column = state.rows(torch.div(index, length, rounding_mode="floor")), index % length
    hidden = torch.arange(length, device=index.device) == column[:, None]
    tokens = torch.where(hidden, state.batch.layout.vocab.mask, copies.tokens)
    copies = copies._replace(tokens=tokens, committed=copies.committed & ~hidden)
    prediction = denoiser(copies, step._replace(t=copies.time, s=copies.time))
    sites = torch.arange(len(index), device=index.device) * length + column
    log_p = prediction.log_prob(sites, state.tokens.reshape(-1)[index])
    return spread(state, index, log_p), prediction.info._replace(head_rows=len(index))


@dataclass(frozen=True)
class Discounted(Around):
    """A score in which a committed token's probability counts s times, s the time after the step: the later, the likelier
    `Replan` masks it again, as the released code of Discrete Diffusion VLA does (not its paper, arXiv 2508.20072).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.inner, DepthPrefix):
            raise ValueError("a discount over DepthPrefix would put levels before their parents")

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        values = log_scale(self.inner, self.inner(state, step, index, drawn, noise))
        return torch.where(state.committed, values + per_position(step.s, state.tokens).log(), values)
