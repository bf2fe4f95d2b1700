"""Joint: several kernels on one network call, for states that live in more than one space (CCDD arXiv 2510.03206)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from discdiff.denoisers import Prediction
from discdiff.kernels import Kernel
from discdiff.kernels.base import Several
from discdiff.noise import Noise
from discdiff.types import Info, State, Step


@dataclass(frozen=True)
class _Once:
    """A denoiser that gives the prediction already made, for all rows or some of them."""

    prediction: Prediction
    kind: str
    needs_time: bool
    reads: tuple[str, ...]

    def __call__(self, state: State, step: Step) -> Prediction:
        whole = len(state.row) == len(self.prediction.batch.tokens)
        return self.prediction if whole else self.prediction.rows(state.row)

    def start(self, batch: Any) -> _Once:
        return self


def _changed(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """What a kernel replaced: entries that are no longer the same object."""
    return {name: value for name, value in new.items() if value is not old.get(name)}


@dataclass(frozen=True)
class Joint(Several):
    """`Joint((kernel, ...))`: the network is asked once, every kernel steps from the same state, and their changes are
    put together: tokens from the kernel that moves tokens, each latent and memory from the kernel that moves it.

    A kernel for latents returns the state with `latents` replaced; what the network says of them is in the prediction's
    own `latents`. Raises ValueError for an empty tuple.
    """

    kernels: tuple[Kernel, ...]

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        rows = torch.arange(len(state.row), device=state.row.device)
        here = state._replace(row=rows)
        prediction = denoiser(here, step)
        once = _Once(prediction, denoiser.kind, denoiser.needs_time, denoiser.reads)
        merged, total = state, prediction.info
        for i, kernel in enumerate(self.kernels):
            moved, info = kernel(once, here, step, noise.child(i))
            stores = {
                name: {**getattr(merged, name), **_changed(getattr(moved, name), getattr(here, name))}
                for name in ("latents", "memory")
            }
            merged = merged._replace(**{**_changed(moved._asdict(), here._asdict()), **stores})
            total = total.merge(info._replace(nfe=0, network_rows=0, fed=0))
        return merged, total
