"""Denoisers: anything that gives, for a state and a step, a prediction of the clean tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from discdiff.denoisers.prediction import Prediction, table
from discdiff.layout import TokenBatch
from discdiff.types import State, Step

KINDS = ("own", "cavity")


class Denoiser(Protocol):
    """`(state, step) -> Prediction`; kind says what is predicted, own p(x0_i | x_t) or cavity p(x0_i | x_t without i).

    needs_time: the step's time matters to it. reads: names of `Step` fields it obeys. `start(batch)` gives the denoiser
    of one run, which owns that run's cache; one that keeps nothing between calls returns itself.
    """

    @property
    def kind(self) -> str: ...

    @property
    def needs_time(self) -> bool: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    def __call__(self, state: State, step: Step) -> Prediction: ...

    def start(self, batch: TokenBatch) -> Denoiser: ...


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: a denoiser predicts {' or '.join(KINDS)}")


@dataclass(frozen=True)
class ModelDenoiser:
    """The library's transformer as a denoiser: one pass of the trunk, the head only where somebody asks.

    shift: the hidden state of slot i - 1 predicts slot i (models adapted from autoregressive ones); always so where the
    model's configuration says it. Raises ValueError for an unknown kind.
    """

    model: Any
    kind: str = "own"
    shift: bool = False
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if not self.shift and getattr(self.model.config, "shift", False):
            object.__setattr__(self, "shift", True)  # caches feed the slots that are read

    @property
    def needs_time(self) -> bool:
        """Whether the network is conditioned on time."""
        return bool(self.model.config.time_conditioning)

    def start(self, batch: TokenBatch) -> ModelDenoiser:
        return self

    @torch.no_grad()
    def __call__(self, state: State, step: Step) -> Prediction:
        batch = state.batch._replace(tokens=state.tokens, valid=state.valid)
        hidden = self.model(batch=batch, time=step.t if self.needs_time else None).hidden

        def logits(index: Tensor, number: int) -> Tensor:
            chosen = self.model.select(hidden, batch, index, shift=self.shift)
            head = self.model.head_weight(*batch.layout.alphabets[number])
            return chosen.to(head.dtype) @ head.T  # a trainer's mixed precision hands out float32 hidden states

        return Prediction(batch, torch.no_grad()(logits))


@dataclass(frozen=True)
class FunctionDenoiser:
    """A function `(state, step) -> logits (batch, length, K)` as a denoiser: for tables, toys and models of your own.

    The function may also return a `Prediction`.
    """

    function: Callable[[State, Step], Tensor | Prediction]
    kind: str = "own"
    needs_time: bool = False
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def start(self, batch: TokenBatch) -> FunctionDenoiser:
        return self

    def __call__(self, state: State, step: Step) -> Prediction:
        out = self.function(state, step)
        if not isinstance(out, Tensor):
            return out
        return table(state.batch._replace(tokens=state.tokens, valid=state.valid), out)
