"""Training objectives: `(model, batch, noise, time) -> (loss, metrics)`, the loss in nats per position of the row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discdiff.clocks import Clock, Importance, Shared
from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.maskers import FullyMasked, Masker
from discdiff.noise import CORRUPT, Noise
from discdiff.objectives.heads import cross_entropy, density, gather, reconstruction
from discdiff.objectives.jitter import Jitter
from discdiff.objectives.ordinal import Ordinal, ordinal
from discdiff.processes import Absorbing, PerSegment, Process, check_layout


@dataclass(frozen=True)
class Elbo:
    """Negative evidence bound of a process: corrupt, predict, weigh (MDLM arXiv 2406.07524 eq. 10; `Process.loss`).

    masker: another law of hidden sets, for absorbing processes; None is the process's own. clock: the time of each
    position. kind: what the network is trained to predict. shift: slot i is predicted from slot i - 1. time_min keeps
    training away from weights of 1 / t. auxiliary: lambda of lambda * -log p(x0 | x_t) per unit time, added to the loss, not to
    the bound, at every free position (VQ-Diffusion arXiv 2111.14822 eq. 11, whose 5e-4 is per step of 100: 0.05); adaptive:
    times 2 - t, as its code has it. ordinal: modalities whose codes are numbers, and a loss that knows it; jitter: shows
    visible ones inexactly. The loss is the sum of nats over (batch * length), so that micro-batches of equal size average
    exactly. Metrics, (batch,) each: `nats`, a row's estimate of its bound with the prior term, and `row_loss`, the same per
    position; `ordinal` changes neither, with `jitter` they bound nothing.
    """

    process: Process = field(default_factory=Absorbing)
    masker: Masker | None = None
    clock: Clock = field(default_factory=Shared)
    kind: str = "cavity"
    shift: bool = False
    time_min: float = 1e-3
    auxiliary: float = 0.0
    adaptive: bool = False
    ordinal: Ordinal | None = None
    jitter: Jitter | None = None

    def __post_init__(self) -> None:
        if self.masker is not None and not isinstance(self.process, Absorbing):
            raise ValueError(f"a masker hides tokens: it goes with Absorbing, not with {type(self.process).__name__}")
        if self.masker is not None and self.clock != Shared():
            raise ValueError(f"a masker chooses what to hide: {self.clock} would have no say, leave it out")
        checked("auxiliary", self.auxiliary, self.auxiliary >= 0, "0 or more")
        if self.auxiliary and isinstance(self.process, Absorbing):
            raise ValueError(f"auxiliary {self.auxiliary}: of masked tokens the bound is that cross-entropy already")
        if self.adaptive and not self.auxiliary:
            raise ValueError("adaptive weighs the auxiliary loss, which is 0: give auxiliary, or leave it out")
        if self.jitter is not None and not isinstance(self.process, Absorbing | PerSegment):
            name = type(self.process).__name__
            raise ValueError(f"jitter shows visible codes inexactly: {name} replaces them itself, leave jitter out")
        if not 0 <= self.time_min < 1:
            raise ValueError(f"time_min {self.time_min} must lie in [0, 1)")

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.ordinal is not None:
            self.ordinal.check(batch.layout, self.process)
        time = self.time_min + (1 - self.time_min) * time.double()
        tokens, when, weight = self.corrupt(batch, noise, time)
        if self.jitter is not None:
            tokens = self.jitter(batch, tokens, noise)
        noisy = batch._replace(tokens=tokens)

        def head(network: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return self._nats(network, hidden, batch, noisy, when, weight)

        told = torch.where(batch.free, when, 0.0)  # what does not move is clean, as in sampling
        out = model(batch=noisy, time=told, objective=head)
        own = {"row_time": time} if isinstance(self.clock, Importance) else {}
        return out.loss, _metrics(out.extras + self.prior_kl(batch), batch) | own

    @property
    def memory(self) -> Importance | None:
        """What learns from the rows' losses; the trainer feeds and stores it."""
        return self.clock if isinstance(self.clock, Importance) else None

    def corrupt(self, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy tokens, the time of every position and the weight of its loss, all (batch, length).

        Raises ValueError for a noised segment without a process, and where noise on tokens could draw the mask id.
        """
        check_layout(self.process, batch.layout)
        if self.masker is not None:
            masked = self.masker(batch, noise, time)
            tokens = batch.tokens.masked_fill(masked.hidden, batch.layout.vocab.mask)
            when = time[:, None].expand(tokens.shape)
            if isinstance(self.masker, FullyMasked):
                when = torch.where(self.masker.whole(batch, noise), 1.0, when)
            return tokens, when, masked.weight
        when = self.clock(batch, time)
        noisy = self.process.corrupt(batch.symbols(batch.tokens), when, noise.uniform(CORRUPT), batch.alphabet)
        tokens = torch.where(batch.free, batch.ids(noisy), batch.tokens)
        return tokens, when, self.clock.rate(batch, time).expand(tokens.shape)

    def prior_kl(self, batch: TokenBatch) -> Tensor:
        """KL(q_1 || prior) of each row in nats, (batch,); 0 where the schedule ends without signal."""
        device = batch.tokens.device
        tables = batch.layout.tables(device)
        kl = torch.zeros(batch.layout.length, dtype=torch.float64, device=device)
        if self.masker is None:
            for number, part in self.parts(batch):
                for size in batch.layout.sizes:
                    here = (tables.size == size) & ((tables.segment == number) | (number is None))
                    kl = torch.where(here, part.prior_kl(size).to(device), kl)
        return torch.where(batch.free, kl[batch.slot], 0.0).sum(1)

    def _nats(
        self, model: Any, hidden: Tensor, batch: TokenBatch, noisy: TokenBatch, when: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        segment = batch.layout.tables(batch.tokens.device).segment[batch.slot]
        losses, nats = [], []
        for number, process in self.parts(batch):
            sites = batch.free if number is None else batch.free & (segment == number)
            if isinstance(process, Absorbing):
                sites = sites & (noisy.tokens == batch.layout.vocab.mask)
                scale = weight if self.masker else weight * process.weight(when)
                part = ordinal(batch, scale, self.ordinal) if self.ordinal else cross_entropy(batch, scale)
            else:
                part = density(batch, noisy, process, when, weight, self.kind, self.auxiliary, self.adaptive)
            loss, rows = gather(model, hidden, noisy, sites, self.shift, part)
            losses.append(loss)
            nats.append(rows)
        return torch.stack(losses).sum() / batch.tokens.numel(), torch.stack(nats).sum(0)

    def reconstruct(
        self, model: Any, hidden: Tensor, batch: TokenBatch, noisy: TokenBatch, when: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-log p(x0 | x_t) at the smallest time, summed over each row's positions that its process could have changed."""
        segment = batch.layout.tables(batch.tokens.device).segment[batch.slot]
        total = hidden.new_zeros(len(batch.tokens), dtype=torch.float64)
        for number, process in self.parts(batch):
            sites = batch.free if number is None else batch.free & (segment == number)
            if isinstance(process, Absorbing):
                sites = sites & (noisy.tokens == batch.layout.vocab.mask)
            part = reconstruction(batch, noisy, process, when, self.kind)
            total = total + gather(model, hidden, noisy, sites, self.shift, part)[1]
        return total.sum(), total

    def parts(self, batch: TokenBatch) -> list[tuple[int | None, Process]]:
        """(segment number, its process); one entry with None where all segments share a process."""
        if not isinstance(self.process, PerSegment):
            return [(None, self.process)]
        return [(batch.layout.names.index(name), part) for name, part in self.process.parts.items()]


@dataclass(frozen=True)
class Autoregressive:
    """Exact next-token likelihood with the same network: causal layout, slot i predicted from slot i - 1.

    The honest twin beside every diffusion figure. Raises ValueError for a layout that is not causal, or whose first
    slot is noised (start the row with a BOS). Metrics: `nats` and `row_loss` (batch,). jitter: what is behind is shown
    inexactly; the loss is then no likelihood.
    """

    jitter: Jitter | None = None

    def __call__(self, model: Any, batch: TokenBatch, noise: Noise, time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        layout = batch.layout
        if layout.attention != "causal" or layout.packed or layout.prefix == 0:
            raise ValueError(
                f"attention {layout.attention!r}, packed={layout.packed}, first segment {layout.names[0]!r}: the "
                "autoregressive twin needs attention='causal', packed=False and a first segment that is not noised (BOS)"
            )
        ones = torch.ones(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)

        def head(network: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
            loss, nats = gather(network, hidden, batch, batch.free, True, cross_entropy(batch, ones))
            return loss / batch.tokens.numel(), nats

        shown = batch if self.jitter is None else batch._replace(tokens=self.jitter(batch, batch.tokens, noise))
        out = model(batch=shown, time=None, objective=head)
        return out.loss, _metrics(out.extras, batch)


def _metrics(nats: Tensor, batch: TokenBatch) -> dict[str, Tensor]:
    return {"nats": nats, "row_loss": nats / batch.tokens.shape[1]}
