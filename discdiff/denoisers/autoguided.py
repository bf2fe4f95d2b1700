"""Guidance of a network by a weaker one that is told the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers.guidance import mix
from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.denoisers.wrappers import Wrapper, some_left
from discdiff.layout import TokenBatch
from discdiff.types import State, Step


@dataclass(frozen=True)
class Autoguided(Wrapper):
    """log p = g log c + (1 - g) log w, normalised, with w of a weaker denoiser in the same state (arXiv 2406.02507).

    weaker: the same network after few steps of training, or a smaller one; what both get wrong, and it more so, becomes
    less likely, without the loss of variety that guidance by a missing prompt costs. g = 1 is the denoiser alone; a step costs
    a network call of each. A step's own guidance is not its: `ClassifierFree` goes outside, and both can be had together.

    Temperature and truncation go outside. Raises ValueError for a scale that is not finite and denoisers of different kinds.
    """

    weaker: Any
    scale: float = 2.0

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "a finite number, 1 for the denoiser alone")
        same = self.weaker.kind == self.inner.kind
        checked("weaker", self.weaker.kind, same, f"the denoiser predicts {self.inner.kind}, so must the weaker one")

    @property
    def needs_time(self) -> bool:
        return self.inner.needs_time or self.weaker.needs_time

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, *self.weaker.reads)

    def start(self, batch: TokenBatch) -> Denoiser:
        inner, weaker = self.inner.start(batch), self.weaker.start(batch)
        same = inner is self.inner and weaker is self.weaker
        return self if same else replace(self, inner=inner, weaker=weaker)

    def __call__(self, state: State, step: Step) -> Prediction:
        good = self.inner(state, step)
        if self.scale == 1:
            return good
        bad, here = self.weaker(state, step), state.batch._replace(tokens=state.tokens, valid=state.valid)

        def logits(index: Tensor, number: int) -> Tensor:
            mixed = mix(good._compute(index, number), bad._compute(index, number), self.scale)
            return some_left(mixed, index, here, "Autoguided")

        latents = {name: x + self.scale * (good.latents[name] - x) for name, x in bad.latents.items()}
        return Prediction(here, logits, latents=latents, cost=good.info.merge(bad.info), temperature=good.temperature)
