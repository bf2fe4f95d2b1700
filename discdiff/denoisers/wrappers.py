"""Wrappers: temperature, sharpening and truncation as transforms of logits, applied only to the sites asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.denoisers.draw import rank
from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction
from discdiff.layout import TokenBatch
from discdiff.types import State, Step

NEG_INF = float("-inf")
_WIDE = 1024  # symbols from which a radix search beats a sort, on a CPU


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
        inner = self.inner.start(batch)
        return self if inner is self.inner else replace(self, inner=inner)

    def __call__(self, state: State, step: Step) -> Prediction:
        return self.inner(state, step).then(lambda logits, index: self.transform(logits, step))

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        """Logits (n, K) to logits (n, K)."""
        raise TypeError(f"{type(self).__name__} defines no transform")


@dataclass(frozen=True)
class Temperature(Wrapper):
    """Logits divided by a temperature; 0 draws the arg-max (lowest id among ties). A step's own temperature wins.

    At 0 only the draw is greedy: log probabilities and statistics stay those of the logits as they are, so that orders
    still know how sure a position is (LLaDA arXiv 2502.09992, Fast-dLLM 2505.22618).
    """

    value: float = 1.0
    obeys: ClassVar[tuple[str, ...]] = ("temperature",)

    def __post_init__(self) -> None:
        if not self.value >= 0:
            raise ValueError(f"temperature {self.value} must be at least 0 (0 is the arg-max)")

    def __call__(self, state: State, step: Step) -> Prediction:
        value = self.value if step.temperature is None else step.temperature
        prediction = self.inner(state, step)
        if value == 0:
            return replace(prediction, temperature=0.0)
        return prediction if value == 1 else prediction.then(lambda logits, index: logits / value)


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
    """The smallest set of most likely tokens whose probability reaches p, the crossing token kept (arXiv 1904.09751).

    Of tokens that tie at the edge the lower ids stay.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"nucleus p of {self.p} must lie in (0, 1]")

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        if self.p == 1:
            return logits
        share = logits.softmax(-1)
        if share.device.type != "cpu" or share.dtype != torch.float32 or share.shape[-1] < _WIDE:
            ordered, order = share.sort(dim=-1, descending=True, stable=True)
            drop = ordered.cumsum(-1) - ordered >= self.p
            return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), NEG_INF)
        return logits.masked_fill(_beyond(share, self.p), NEG_INF)


def _beyond(share: Tensor, p: float) -> Tensor:
    """What a nucleus of mass p drops, `(n, K) -> (n, K)` bool, by a radix search instead of a sort.

    Floats from 0 to 1 are ordered like their 30 bits. The mass is added up in 1024 bins of the first ten bits; what lies
    in the bin where it reaches p, mostly little, is told apart by the next ten, and so on down to equal values.
    """
    n, width = share.shape
    bits = share.view(torch.int32)
    digit = (bits >> 20).bitwise_and_(1023)
    mass = share.new_zeros(n, 1024).scatter_add(-1, digit.long(), share)
    prefix, above = _crossing(mass, torch.zeros(n, dtype=torch.float64), p)
    site = (digit == prefix[:, None]).view(-1).nonzero()[:, 0]
    for shift in (10, 0):
        row, inside = torch.div(site, width, rounding_mode="floor"), share.view(-1)[site]
        place = (bits.view(-1)[site] >> shift) & 1023
        mass = share.new_zeros(n * 1024).scatter_add(0, row * 1024 + place, inside).view(n, 1024)
        digits, above = _crossing(mass, above, p)
        prefix = (prefix << 10) + digits
        site = site[place == digits[row]]
    edge, row = prefix.view(torch.float32), torch.div(site, width, rounding_mode="floor")
    count = torch.bincount(row, minlength=n)
    rank = torch.arange(len(site)) - (count.cumsum(0) - count)[row]
    drop = share < edge[:, None]
    drop.view(-1)[site[above[row] + rank * edge[row] >= p]] = True
    return drop


def _crossing(mass: Tensor, above: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The bin (n,) in which the sum from the last bin down reaches p, and the sum before it (n,) float64."""
    mass = mass.flip(-1).double()
    before = above[:, None] + mass.cumsum(-1) - mass
    place = (before < p).sum(-1, keepdim=True).clamp(min=1) - 1
    return (mass.shape[-1] - 1 - place[:, 0]).int(), before.gather(-1, place)[:, 0]


@dataclass(frozen=True)
class Sharpen(Wrapper):
    """Logits times 1 + r max_v p(v): sure predictions become surer (Improved VQ-Diffusion's purity, arXiv 2205.16007).

    The released code divides the purity by the largest one of the image; this one leaves each position to itself.
    """

    r: float = 1.0

    def __post_init__(self) -> None:
        if not self.r >= 0:
            raise ValueError(f"r of {self.r} must be at least 0 (0 leaves the prediction as it is)")

    def transform(self, logits: Tensor, step: Step) -> Tensor:
        purity = rank(logits, "confidence")
        return logits * (1 + self.r * purity).to(logits.dtype)[:, None]


def some_left(logits: Tensor, index: Tensor, batch: TokenBatch, who: str) -> Tensor:
    """The logits (n, K) at the sites (n,), checked: ValueError naming the first site at which no token is possible."""
    empty = logits.amax(-1) == NEG_INF
    if bool(empty.any()):
        row, column = divmod(int(index[empty][0]), batch.tokens.shape[1])
        name = batch.layout.names[int(batch.alphabet.segment[row, column])]
        raise ValueError(
            f"no token is left at row {row}, position {column} (segment {name!r}) after {who}: what it allows is "
            "impossible inside it; loosen one of the two, and put truncation (TopK, Nucleus) outside"
        )
    return logits
