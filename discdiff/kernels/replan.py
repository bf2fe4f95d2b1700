"""Replan: the best-ranked positions stay, committed ones compete with the masked and may be masked again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Drawn
from discdiff.kernels.base import Asked, Kernel, arrive, ask, select
from discdiff.kernels.commit import Raw, places, pools
from discdiff.noise import TOKEN, Noise
from discdiff.processes import Absorbing
from discdiff.schedules import Linear, Schedule
from discdiff.scores import Candidate, DepthPrefix, Score, check_score, log_scale
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class Replan(Kernel):
    """Of n moving positions the n - floor(sum_i (1 - curve.alpha(s_i))) best keep a token, all others hold the mask: a masked
    position would keep the token drawn for it, a committed one keeps its own (P2, arXiv 2502.03540).

    `score` judges both: `Candidate()` is P2's own network, `Critic(f)` an external planner, Token-Critic or a self-critic
    (2209.04439), with fading noise as `Annealed(Critic(f))`. A masked position's probability counts `eta` times (scores that
    are none gain log eta): a small eta never takes a token back, a large one fills up first. A position whose time is up
    keeps its token. Modalities are ranked apart unless `jointly`.

    Needs a network that judges the tokens it sees: one that copies them never masks again. Biased, a mode seeker.
    Raises ValueError for a process without masks, an eta that is not positive, and for parts that are none.
    """

    score: Score = field(default_factory=Candidate)
    curve: Schedule = field(default_factory=Linear)
    eta: float = 1.0
    process: Absorbing = field(default_factory=Absorbing)
    jointly: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.process, Absorbing):
            raise ValueError(f"Replan fills masks: it needs Absorbing, not {type(self.process).__name__}")
        check_score(self.score)
        checked("curve", self.curve, isinstance(self.curve, Schedule), "give a Schedule, such as CosineMD4()")
        checked("eta", self.eta, 0 < self.eta < math.inf, "above 0 and finite")
        if isinstance(self.score, DepthPrefix) and self.eta > 1:
            raise ValueError(f"eta is {self.eta}: above 1 a level would come before its parents, use at most 1")

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        moving = state.free & (step.s < step.t)
        masked, settled = select(moving & ~state.committed), select(moving & state.committed)
        index = torch.cat([masked, settled])
        if not len(index):
            return arrive(state, step), Info()
        asked = ask(Raw(denoiser), self.process, state, step, noise, index)
        drawn = self._candidates(asked, len(masked))
        score = log_scale(self.score, self.score(state, step, index, drawn, noise))
        kept = self._keep(state, step, moving, torch.where(state.committed, score, score + math.log(self.eta)))
        tokens = state.tokens.reshape(-1).scatter(0, index, drawn.tokens).view(state.tokens.shape)
        tokens = torch.where(moving & ~kept, state.batch.layout.vocab.mask, tokens)
        entropy = -drawn.log_prob[: len(masked)].sum() / max(len(masked), 1)
        info = asked.info._replace(committed=(kept & ~state.committed).sum(), entropy=entropy)
        return arrive(state, step)._replace(tokens=tokens, committed=torch.where(moving, kept, state.committed)), info

    def _candidates(self, asked: Asked, masked: int) -> Drawn:
        """Fresh tokens at the first `masked` sites, the present ones at the others; the head runs once per site."""
        prediction, new, old = asked.prediction, asked.index[:masked], asked.index[masked:]
        tokens = asked.state.tokens.reshape(-1)[old]
        drawn = prediction.draw(new, asked.noise, TOKEN, self.score.statistics)
        present = torch.zeros(len(old), dtype=torch.float64, device=old.device)
        if len(old) and self.score.peeks:
            present = prediction.log_prob(old, tokens)
        found = dict(drawn.statistics)
        if len(old) and found:
            seen = prediction.draw(old, asked.noise, TOKEN, self.score.statistics).statistics
            found = {name: torch.cat([x, seen[name]]) for name, x in found.items()}
        return Drawn(torch.cat([drawn.tokens, tokens]), torch.cat([drawn.log_prob, present]), found)

    def _keep(self, state: State, step: Step, moving: Tensor, score: Tensor) -> Tensor:
        """Who holds a token after the step, bool (batch, length): per row and pool as many as the curve says."""
        due = moving & (step.s <= 0)
        left = torch.where(moving & ~due, 1 - self.curve.alpha(step.s), 0.0)
        score, kept = torch.where(due, torch.inf, score), torch.zeros_like(moving)
        for pool in pools(state, self.jointly):
            here = moving & pool
            count = here.sum(1) - ((left * pool).sum(1) + 1e-6).floor().long()
            kept |= here & (places(here, score) < count[:, None])
        return kept
