"""Scores around another score: coarse levels first, and noise that fades."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Drawn
from discdiff.noise import ORDER, Noise
from discdiff.scores.base import NEG_INF, Score, check_score, log_scale, spread
from discdiff.scores.predicted import Sure
from discdiff.types import State, Step, per_position

MODES = ("linear", "cumulative", "constant")
_PATH = 0x5C0E  # the child of the noise that perturbs, apart from all draws


@dataclass(frozen=True)
class Around(Score):
    """A score that asks for what another score asks for; on its own it changes nothing."""

    inner: Any = field(default_factory=lambda: Sure("confidence"))

    def __post_init__(self) -> None:
        check_score(self.inner)

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.inner.statistics

    @property
    def needs_draw(self) -> bool:
        return self.inner.needs_draw

    @property
    def peeks(self) -> bool:
        return self.inner.peeks


@dataclass(frozen=True)
class DepthPrefix(Around):
    """A score under which no level of a slot comes before its parents: the running minimum along depth (ResGen, 2412.10208).

    How deep the slots are is the layout's business; segments of different depth may share a row. As exact as `inner`.
    """

    @property
    def probability(self) -> bool:
        return self.inner.probability

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        inner = self.inner(state, step, index, drawn, noise)
        ranked = torch.zeros(state.tokens.numel(), dtype=torch.bool, device=index.device)
        ranked = ranked.scatter(0, index, True).view(state.tokens.shape)
        least = torch.where(ranked, inner, torch.where(state.committed, torch.inf, NEG_INF))
        layout = state.batch.layout
        depth = layout.tables(least.device).depth[state.batch.slot]
        for level in range(1, max(map(layout.depth, layout.segments))):
            before = torch.minimum(least, least.roll(1, 1))  # the parent sits one column before
            least = torch.where(depth == level, before, least)
        return torch.where(ranked, least, NEG_INF)


@dataclass(frozen=True)
class Annealed(Around):
    """A score plus fading Gumbel noise, score + temperature * s * G; of a probability its log (MaskGIT, arXiv 2202.04200).

    mode "linear" fades with the time s; "cumulative" with prod_j (1 - j / T) over the steps so far, T = 1 / (t - s), as Show-o,
    MMaDA and UD-VLA do by oversight (uniform grids only); "constant" does not fade. `Annealed(Sure("confidence"), 1.0,
    "constant")` draws positions by their purity without replacement (Improved VQ-Diffusion, 2205.16007). The noise knows no
    token: as exact as `inner` one position at a time. Raises ValueError for a negative temperature and an unknown mode.
    """

    temperature: float = 1.0
    mode: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked("temperature", self.temperature, 0 <= self.temperature < float("inf"), "at least 0 and finite")
        checked("mode", self.mode, self.mode in MODES, f"choose from {', '.join(MODES)}")
        if isinstance(self.inner, DepthPrefix):
            raise ValueError(
                "noise over DepthPrefix would put levels before their parents: use DepthPrefix(Annealed(...))"
            )

    def __call__(self, state: State, step: Step, index: Tensor, drawn: Drawn | None, noise: Noise) -> Tensor:
        values = log_scale(self.inner, self.inner(state, step, index, drawn, noise))
        gumbel = -(-noise.child(_PATH).uniform(ORDER, index).log()).log()
        t, s = (per_position(x, state.tokens).expand(state.tokens.shape).reshape(-1)[index] for x in (step.t, step.s))
        return values + spread(state, index, self.temperature * self._fade(t, s) * gumbel)

    def _fade(self, t: Tensor, s: Tensor) -> Tensor | float:
        if self.mode == "constant":
            return 1.0
        if self.mode == "linear":
            return s
        steps = (1 / (t - s)).round()
        done = ((1 - s) * steps).round()
        return torch.exp(torch.lgamma(steps) - torch.lgamma(steps - done) - done * steps.log())
