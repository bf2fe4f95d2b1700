"""Wrappers: temperature and truncation as transforms of a denoiser's logits, applied only to the sites asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.layout import TokenBatch
from discdiff.types import State, Step

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Wrapper:
    """A denoiser around another; a subclass gives `transform(logits, step)`. Everything else is passed through."""

    inner: Any
    obeys: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def needs_time(self) -> bool:
        return self.inner.needs_time

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.inner.reads, *self.obeys)

    def start(self, batch: TokenBatch) -> Denoiser:
        return replace(self, inner=self.inner.start(batch))

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.inner(state, step).then(lambda logits, index: self.transform(logits, step))

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        """Logits (n, K) to logits (n, K)."""
        raise TypeError(f"{type(self).__name__} defines no transform")


@dataclass(frozen=True)
class Temperature(Wrapper):
    """Logits divided by a temperature; 0 is the arg-max (lowest id among ties). A step's own temperature wins."""

    value: float = 1.0
    obeys: ClassVar[tuple[str, ...]] = ("temperature",)

    def __post_init__(self) -> None:
        if not self.value >= 0:
            raise ValueError(f"temperature {self.value} must be at least 0 (0 is the arg-max)")

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        value = self.value if step.temperature is None else step.temperature
        if value == 1:
            return logits
        if value > 0:
            return logits / value
        return torch.full_like(logits, NEG_INF).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)


@dataclass(frozen=True)
class TopK(Wrapper):
    """Only the k largest logits survive."""

    k: int = 50

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"top-k of {self.k}: keep at least one token")

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        best = logits.topk(self.k, -1)
        return torch.full_like(logits, NEG_INF).scatter(-1, best.indices, best.values)


@dataclass(frozen=True)
class Nucleus(Wrapper):
    """The smallest set of most likely tokens whose probability reaches p, the crossing token kept (arXiv 1904.09751)."""

    p: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"nucleus p of {self.p} must lie in (0, 1]")

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        if self.p == 1:
            return logits
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.p)
        return logits.masked_fill(drop, NEG_INF)
