"""Plain guidance by a gradient: the table is tilted once, by a first-order look at the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from discdiff.anchoring.anchored import own
from discdiff.anchoring.canvas import Canvas
from discdiff.anchoring.chosen import tabled
from discdiff.anchoring.descent import slope
from discdiff.anchoring.failures import Failures
from discdiff.anchoring.soft import Measured, SoftDecode
from discdiff.config import checked
from discdiff.denoisers import Prediction
from discdiff.denoisers.wrappers import Wrapper
from discdiff.layout import TokenBatch
from discdiff.processes import Absorbing, Process
from discdiff.types import State, Step


@dataclass(frozen=True, eq=False)
class Steered(Wrapper):
    """log p(c) = log p_network(c) - scale * <dloss/de, e_c> at every open site, e = E_p[embedding], decoded as it is.

    Classifier guidance with the loss as -log p(y | x) and its first-order expansion in the embeddings (as digress, arXiv
    2209.14734, and TAG of 2406.01572); one decoder pass with a gradient per step. Raises ValueError before the first network
    call for what does not fit.
    """

    soft: SoftDecode
    measured: Measured
    scale: float = 1.0
    process: Process = Absorbing()

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "a finite number, 0 for no guidance")

    @property
    def kind(self) -> str:
        return "own"

    def start(self, batch: TokenBatch) -> Any:
        self.measured.check(self.soft, batch)
        return super().start(batch)

    @torch.no_grad()
    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = own(self.inner, self.process, state, step)
        canvas = Canvas.of(self.soft, state, step)
        if not self.scale or not bool(canvas.begun.any()):
            return prediction
        prior = canvas.prior(prediction)
        terms, g = slope(canvas, prior.exp(), self.measured, quantised=False)
        failures, terms["gradient"] = Failures(canvas.row), g.flatten(1).abs().sum(1)
        whole = failures.note(0, torch.stack(list(terms.values())), torch.ones_like(canvas.row, dtype=torch.bool))
        failures.warn(list(terms), f"step {step.index}: ")
        pull = canvas.pull(g, torch.empty_like(prior)).masked_fill_(~whole[canvas.owner, None], 0.0)
        made = tabled(canvas, prediction, prior - self.scale * (pull - pull.amin(-1, keepdim=True)))
        return replace(made, cost=made.info._replace(decoded=made.info.decoded + len(canvas.row)))
