"""Energies learned by noise-contrastive estimation: real rows against what the frozen denoiser draws in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers import ModelDenoiser
from discdiff.energy.base import Candidates, Energy
from discdiff.kernels.base import ask, select
from discdiff.layout import TokenBatch
from discdiff.noise import Noise
from discdiff.objectives import Elbo
from discdiff.types import State, Step

_POSITIONS = 1 << 15  # fed to the network at a time


def contrastive_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """-log sigmoid(-E+) - mean_j log sigmoid(E-_j) in nats, energies (n,) and (n, k) -> (n,); 2 log 2 where E = 0.

    Least at E(x0, x_t) = log p_theta(x0 | x_t) - log p_data(x0 | x_t), where Z = 1 (EDLM arXiv 2410.21357 section 3.2).
    """
    return -F.logsigmoid(-positive) - F.logsigmoid(negative).mean(1)


@dataclass(frozen=True)
class NoiseContrastive:
    """The objective of an `EnergyModel`: tell data from p_theta(x0 | x_t), for the same x_t.

    denoiser: the frozen proposal, a network or any denoiser, on the device of the batches. elbo: how rows are corrupted,
    its process, masker, clock and time_min (weights do not matter: the best energy is the same for every x_t). negatives:
    draws per row, averaged. What x_t alone leaves open is drawn: the masks of an absorbing process, every free position
    of one with noise on tokens; the rest is carried over. Metrics: `row_loss` (batch,) and `accuracy`, how often
    E+ < E-, ties half.
    Raises ValueError for a denoiser in training mode and negatives < 1.
    """

    denoiser: Any
    elbo: Elbo = field(default_factory=Elbo)
    negatives: int = 1

    def __post_init__(self) -> None:
        whole = isinstance(self.negatives, int) and not isinstance(self.negatives, bool) and self.negatives >= 1
        checked("negatives", self.negatives, whole, "a whole number of draws per row, at least 1")
        if not hasattr(self.denoiser, "start"):  # a network
            kind = str(getattr(getattr(self.denoiser, "config", None), "prediction", ""))
            checked("denoiser", type(self.denoiser).__name__, bool(kind), "give a DiscDiffModel or a denoiser")
            object.__setattr__(self, "denoiser", ModelDenoiser(self.denoiser, kind, self.elbo.shift))

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, clean, when = self.pairs(batch, noise, time)
        count = clean.shape[1]

        def head(network: Any, energy: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            positive, negative = energy.view(-1, count).split([1, count - 1], 1)
            nats = contrastive_loss(positive[:, 0], negative)
            wins = (positive < negative).double() + 0.5 * (positive == negative)
            return nats.mean(), (nats.detach().double(), wins.mean())

        repeated = noisy.repeat(count)
        out = model(batch=repeated, clean=clean.flatten(0, 1), time=when.repeat_interleave(count, 0), objective=head)
        return out.loss, {"row_loss": out.extras[0], "accuracy": out.extras[1]}

    @torch.no_grad()
    def pairs(self, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[TokenBatch, Tensor, Tensor]:
        """Noisy rows, the clean row and then `negatives` drawn ones (batch, 1 + negatives, length), and the time (batch, 1)
        or (batch, length).
        """
        if getattr(getattr(self.denoiser, "model", None), "training", False):
            raise ValueError("the denoiser is in training mode, its dropout would change the proposal: call eval()")
        time = self.elbo.time_min + (1 - self.elbo.time_min) * time.double()
        tokens, when, _ = self.elbo.corrupt(batch, noise, time)
        noisy, process = batch._replace(tokens=tokens), self.elbo.process
        unknown = batch.free & process.own_shift(batch.symbols(tokens), when, batch.alphabet).isfinite()
        clean, index = batch.tokens[:, None].repeat(1, 1 + self.negatives, 1), select(unknown)
        if len(index):
            rows, length = tokens.shape
            number, now = torch.arange(rows, device=tokens.device), torch.where(batch.free, when, 0.0)
            state = State(tokens, batch.given, batch.valid, ~unknown, now, number, noisy, {}, {})
            step = Step(0, when, torch.zeros_like(when))
            asked = ask(self.denoiser.start(noisy), process, state, step, noise, index)
            drawn, _ = asked.prediction.candidates(asked.index, asked.noise, self.negatives)
            clean[torch.div(index, length, rounding_mode="floor"), 1:, index % length] = drawn
        return noisy, clean, when[:, :1] if when.stride(1) == 0 else when


@dataclass(frozen=True)
class LearnedEnergy(Energy):
    """A trained `EnergyModel` as an energy: (candidates, state, t) -> (batch, k), a bounded number of rows at a time.

    It knows whole clean rows: candidates that hold masks still (blocks to come) are unlike what it was trained on. Raises
    ValueError for a model in training mode, and for rows of another vocabulary.
    """

    model: Any

    @torch.no_grad()
    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        if self.model.training:
            raise ValueError("the energy is in training mode, its dropout would be noise: call model.eval()")
        tokens, k = candidates.tokens.flatten(0, 1), candidates.k
        batch = state.batch._replace(tokens=state.tokens, valid=state.valid)
        every = torch.arange(len(tokens), device=tokens.device)
        found = []
        for piece in every.split(max(1, _POSITIONS // tokens.shape[1])):
            row = torch.div(piece, k, rounding_mode="floor")
            found.append(self.model(batch=batch.rows(row), clean=tokens[piece], time=t[row]).energy)
        return torch.cat(found).view(-1, k)
