"""What posterior sampling knows beside the network: how codes become data, and what was measured of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout, TokenBatch

DISTANCES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "l1": lambda r, _: r.abs().sum(1),
    "l2": lambda r, _: r.square().sum(1).clamp(min=1e-24).sqrt(),
    "gaussian": lambda r, sigma: r.square().sum(1) / (2 * sigma**2),
}
"""Of residuals (n, numbers) and sigma to (n,): sum |r|; sqrt(sum r^2); sum r^2 / (2 sigma^2), a negative log likelihood."""


@dataclass(frozen=True, eq=False)
class SoftDecode:
    """The way from a table of codes of one segment to data.

    codebook (depth, codes, d): embeddings of the codes, summed over the depths of a slot; decode: embeddings (n, slots, d) to
    data (n, ...), differentiable; quantise: embeddings (n, slots, d) to legal codes (n, slots, depth).
    """

    codebook: Tensor
    decode: Callable[[Tensor], Tensor]
    quantise: Callable[[Tensor], Tensor]
    segment: str

    def __post_init__(self) -> None:
        shape = tuple(self.codebook.shape)
        checked("codebook", shape, len(shape) == 3, "give embeddings (depth, codes, d)")

    @classmethod
    def of(cls, tokenizer: Any, segment: str, grid: tuple[int, ...] | None = None) -> SoftDecode:
        """That of a tokenizer with `codebook`, `decode_embeddings` and `embeddings_to_codes`; grid: as its `encode` gave it.

        Raises ValueError for a tokenizer without a soft decode.
        """
        needs = ("codebook", "decode_embeddings", "embeddings_to_codes")
        remedy = f"a tokenizer whose decoding is differentiable in embeddings is needed: {', '.join(needs)}"
        try:
            book = tokenizer.codebook
            missing = [name for name in needs[1:] if not callable(getattr(tokenizer, name, None))]
        except (AttributeError, NotImplementedError):
            missing = ["codebook"]
        checked("tokenizer", type(tokenizer).__name__, not missing, remedy)
        frozen = book.detach()

        def decode(e: Tensor) -> Tensor:
            try:
                return tokenizer.decode_embeddings(e, grid)
            except NotImplementedError as error:
                raise ValueError(f"tokenizer is {type(tokenizer).__name__!r}: {remedy}") from error

        return cls(frozen, decode, tokenizer.embeddings_to_codes, segment)

    @property
    def depth(self) -> int:
        return self.codebook.shape[0]

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (..., depth) to the sum of their embeddings (..., d)."""
        return torch.stack([book[codes[..., j]] for j, book in enumerate(self.codebook)]).sum(0)

    def columns(self, layout: Layout) -> Tensor:
        """The segment's columns (slots, depth). Raises ValueError where the codebook does not fit it."""
        checked("segment", self.segment, self.segment in layout.names, f"choose from {', '.join(layout.names)}")
        segment = next(s for s in layout.segments if s.name == self.segment)
        sizes = {layout.alphabets[int(n)][1] for n in layout.tables().alphabet[layout.columns(self.segment)].unique()}
        fits = layout.depth(segment) == self.depth and sizes == {self.codebook.shape[1]}
        remedy = (
            f"segment {self.segment!r} has depth {layout.depth(segment)} and {sorted(sizes)} codes: another tokenizer?"
        )
        checked("codebook", tuple(self.codebook.shape), fits, remedy)
        return layout.columns(self.segment).view(-1, self.depth)

    def data(self, codes: Tensor) -> Tensor:
        """Codes (n, slots, depth) to data (n, ...)."""
        return self.decode(self.embed(codes))


@dataclass(frozen=True, eq=False)
class Measured:
    """A measurement y = operator(x) + noise of data x, and how far data are from it.

    y (rows, ...): of every row of a run, in its order; distance: "l1", "l2" or "gaussian" (`DISTANCES`), summed over the
    numbers of a row, and times `weight`; sigma: of "gaussian", the measurement's noise; perceptual: a second term of your own,
    (operator(x), y) -> (n,), times `perceptual_weight`.
    """

    operator: Callable[[Tensor], Tensor]
    y: Tensor
    distance: str = "gaussian"
    sigma: float = 0.05
    weight: float = 1.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    perceptual_weight: float = 1.0

    def __post_init__(self) -> None:
        checked("distance", self.distance, self.distance in DISTANCES, f"choose from {', '.join(DISTANCES)}")
        for name in ("sigma", "weight", "perceptual_weight"):
            checked(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0")
        bad = int((~torch.isfinite(self.y)).sum())
        checked("y", bad, bad == 0, "numbers of the measurement are not finite")

    def repeat(self, copies: int) -> Measured:
        """For a run of which every row is there `copies` times in a row."""
        return replace(self, y=self.y.repeat_interleave(copies, 0))

    def check(self, soft: SoftDecode, batch: TokenBatch, needs: str = "gradient") -> None:
        """Raise ValueError unless every row of the batch has a measurement, codebook and layout agree, and the operator makes
        of one decoded row what was measured; needs: "gradient" through decoder and operator, "soft", through the decoder alone,
        or "codes", none.
        """
        rows, length = batch.tokens.shape
        whole_rows(length, batch.layout)
        checked("y", len(self.y), len(self.y) == rows, f"the run has {rows} rows: one measurement each")
        slots, kind = len(soft.columns(batch.layout)), type(self.operator).__name__
        with torch.enable_grad():
            e = soft.codebook[:, 0].sum(0).expand(1, slots, -1).clone().requires_grad_()
            x = soft.decode(e)
            smooth = x.requires_grad or needs == "codes"
            checked("decode", tuple(x.shape), smooth, "no gradient reaches the embeddings: a soft decode is needed")
            made = self.operator(x)
            seen = (1, *self.y.shape[1:])
            checked("operator", tuple(made.shape), made.shape == seen, f"one row of the measurement y is {seen}")
            for name, term in self._terms(made, self.y[:1]).items():
                checked(name, tuple(term.shape), term.shape == (1,), "a number per row, (n,), is needed")
            if needs == "gradient":
                smooth = made.requires_grad and torch.autograd.grad(made.sum(), e, allow_unused=True)[0] is not None
                checked("operator", kind, smooth, "no gradient passes through it: take Selected, SplitGibbs or best_of")

    def terms(self, x: Tensor, row: Tensor) -> dict[str, Tensor]:
        """Each term (n,) of data (n, ...) that are of the rows `row` (n,) of the run."""
        return self._terms(self.operator(x), self.y[row])

    def _terms(self, made: Tensor, y: Tensor) -> dict[str, Tensor]:
        apart = (made - y).reshape(len(y), -1)
        found = {self.distance: self.weight * DISTANCES[self.distance](apart, self.sigma)}
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual_weight * self.perceptual(made, y)
        return found

    def __call__(self, x: Tensor, row: Tensor) -> Tensor:
        """The sum of the terms (n,)."""
        return torch.stack(list(self.terms(x, row).values())).sum(0)


def whole_rows(length: int, layout: Layout) -> None:
    """Raise ValueError for rows that are packed, cut or padded: their columns are not those of the layout."""
    remedy = f"posterior sampling takes one whole sample of {layout.length} per row"
    checked("length", length, length == layout.length, remedy)
