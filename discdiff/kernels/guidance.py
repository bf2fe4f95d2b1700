"""Guidance of the composed one-site law, for `Ancestral(site=...)`: posterior-level classifier-free and classifier guidance.

A step's own guidance wins over a site's `scale`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import Guided, mix, some_left
from discdiff.kernels.ancestral import sites
from discdiff.kernels.base import Asked
from discdiff.processes import Absorbing, Process
from discdiff.types import State

NEG_INF = float("-inf")


@dataclass(frozen=True)
class PosteriorGuidance:
    """log p(x_s | x_t) ∝ g log p_c(x_s | x_t) + (1 - g) log p_u(x_s | x_t) at each site (D-CFG, arXiv 2412.10193).

    Goes with `ClassifierFree(..., level="posterior")`, which holds the scale and asks both predictions in one call. Not
    guidance of x0: an absorbing process reveals with chance u G / (u G + 1 - u), G = sum_v c_v^g u_v^(1-g), instead
    of u. Raises ValueError without such a denoiser, and for a grid that sets rate or score_power.
    """

    process: Process = field(default_factory=Absorbing)

    def __call__(self, log_p: Tensor, asked: Asked) -> Tensor:
        prediction, step = asked.prediction, asked.step
        if not isinstance(prediction, Guided):
            raise ValueError(
                'PosteriorGuidance mixes what ClassifierFree(..., level="posterior") predicts: wrap with it'
            )
        if prediction.free is None:
            return log_p
        if step.rate is not None or step.score_power is not None:
            raise ValueError("PosteriorGuidance and a grid's rate or score_power exclude each other: drop one")
        x, t, s, alphabet = sites(asked.state, step, asked.index)
        log_x0 = prediction.free.log_probs(asked.index).double()
        free = self.process.at(alphabet).log_posterior(log_x0, x, t, s)
        mixed = mix(log_p, free, prediction.scale)
        return some_left(mixed, asked.index, asked.state.batch, "PosteriorGuidance")


@dataclass(frozen=True)
class ClassifierGuidance:
    """log p(x_s,i = v | x_t, y) ∝ log p(x_s,i = v | x_t) + g log p(y | x_t with x_i := v) (D-CBG, arXiv 2412.10193).

    classifier: a state to log p(y | x) (batch,), masks included. It is asked once per row for staying (which for an
    absorbing process is the mask) and once for every other possible symbol of every site, `rows` states at a time. With
    g = 1 and the exact classifier each site's law is the conditional one. Where it calls everything impossible (two
    sites revealed at once may contradict each other) it has no say. Its calls are not counted in `Info`.
    """

    classifier: Callable[[State], Tensor]
    scale: float = 1.0
    rows: int = 1024
    reads: ClassVar[tuple[str, ...]] = ("guidance",)

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "a finite number, 0 for no guidance")
        checked("rows", self.rows, self.rows >= 1, "at least 1")

    def __call__(self, log_p: Tensor, asked: Asked) -> Tensor:
        scale = self.scale if asked.step.guidance is None else asked.step.guidance
        if scale == 0:
            return log_p
        state, batch, index = asked.state, asked.state.batch, asked.index
        x, row, column = _here(asked)
        stay = self.classifier(state).to(log_p)[row]
        evidence = torch.zeros_like(log_p).scatter(-1, x[:, None], stay[:, None])
        possible = (log_p > NEG_INF).scatter(-1, x[:, None], False).nonzero()
        for site, symbol in (pair.unbind(1) for pair in possible.split(self.rows)):
            moved = state.rows(row[site])
            token = batch.ids(symbol, index[site])
            tokens = moved.tokens.scatter(1, column[site][:, None], token[:, None])
            evidence[site, symbol] = self.classifier(moved._replace(tokens=tokens)).to(log_p)
        silent = evidence.masked_fill(log_p == NEG_INF, NEG_INF).amax(-1, keepdim=True) == NEG_INF
        return torch.where((log_p > NEG_INF) & ~silent, log_p + scale * evidence, log_p)


@dataclass(frozen=True)
class FirstOrderGuidance:
    """`ClassifierGuidance` with log p(y | x_t with x_i := v) ~ log p(y | x_t) + grad_i · (e_v - e_x): one backward pass.

    classifier: (inputs (batch, length, width), state) to log p(y | x) (batch,), differentiable; inputs are the rows of
    `embedding` (vocab.total, width) at the state's tokens, an identity matrix for one-hots. Staying gets 0. Exact for a
    classifier that is linear in its inputs.
    """

    classifier: Callable[[Tensor, State], Tensor]
    embedding: Tensor
    scale: float = 1.0
    reads: ClassVar[tuple[str, ...]] = ("guidance",)

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "a finite number, 0 for no guidance")

    def __call__(self, log_p: Tensor, asked: Asked) -> Tensor:
        scale = self.scale if asked.step.guidance is None else asked.step.guidance
        if scale == 0:
            return log_p
        batch, index = asked.state.batch, asked.index
        checked(
            "embedding",
            tuple(self.embedding.shape),
            len(self.embedding) >= batch.layout.vocab.total,
            "vocab.total rows",
        )
        with torch.inference_mode(False), torch.enable_grad():
            inputs = self.embedding.detach()[asked.state.tokens.clone()].requires_grad_()
            (slope,) = torch.autograd.grad(self.classifier(inputs, asked.state).sum(), inputs)
        symbols = torch.arange(log_p.shape[-1], device=index.device)
        ids = batch.ids(symbols, index[:1].expand_as(symbols))  # the sites of a call have one alphabet
        gain = slope.flatten(0, 1)[index] @ self.embedding.detach()[ids].T
        gain = (gain - gain.gather(-1, _here(asked)[0][:, None])).to(log_p)
        return torch.where(log_p > NEG_INF, log_p + scale * gain, NEG_INF)


def _here(asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    """Present symbol, row and column of each site."""
    index, length = asked.index, asked.state.tokens.shape[1]
    x = asked.state.batch.symbols(asked.state.tokens.reshape(-1)[index], index)
    return x, torch.div(index, length, rounding_mode="floor"), index % length
