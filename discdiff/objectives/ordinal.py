"""A cross-entropy for codes that are numbers: neighbours share the target, and the expected number is drawn to the true one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import Layout, TokenBatch
from discdiff.objectives.heads import Part, cross_entropy, predicted
from discdiff.processes import Absorbing, PerSegment, Process
from discdiff.values import CodeValues, soft_label

DISTANCES = ("absolute", "squared")


@dataclass(frozen=True)
class Ordinal:
    """Loss of a masked code c* of the modalities in `values`, whose codes c stand for numbers v_c:

        -sum_c q(c) log p(c) + weight * |sum_c p(c) v_c - v_c*|,    q(c) ~ exp(-(v_c - v_c*)^2 / (2 width^2)).

    width is in the unit of the values (256 even levels in [-1, 1] are 0.0078 apart); 0 is hard cross-entropy, and any width
    far below the step between levels equals it. The soft labels' loss keeps the entropy of q, a constant; numbers are read
    out of what learned from them by `Valued(how="matched", window=width)`. distance: "absolute", or "squared" for its square.
    Other modalities keep their cross-entropy, bit for bit. Soft labels as in Diaz and Marathe, "Soft Labels for Ordinal
    Regression" (CVPR 2019). Raises ValueError for numbers out of range, for an option that changes nothing and, before the
    network is asked, for values that do not fit the layout and for segments that are not absorbing.
    """

    values: CodeValues
    width: float = 0.0
    weight: float = 0.0
    distance: str = "absolute"

    def __post_init__(self) -> None:
        checked("values", self.values, isinstance(self.values, CodeValues), 'give CodeValues({"action": levels})')
        for name, x in (("width", self.width), ("weight", self.weight)):
            checked(name, x, 0 <= x < math.inf, "0 or more, and finite")
        checked("distance", self.distance, self.distance in DISTANCES, f"choose from {', '.join(DISTANCES)}")
        on = self.width > 0 or self.weight > 0
        checked("width and weight", (self.width, self.weight), on, "set one above 0, or leave ordinal out")

    def check(self, layout: Layout, process: Process) -> None:
        """Raise ValueError unless the values fit the layout and their segments are masked by the process."""
        self.values.check(layout)
        for segment in layout.segments:
            if segment.noised and segment.modality in self.values.numbers:
                part = process.parts.get(segment.name) if isinstance(process, PerSegment) else process
                what = f"process of {segment.name!r}"
                checked(
                    what,
                    type(part).__name__,
                    isinstance(part, Absorbing),
                    "ordinal losses are of masked codes: Absorbing",
                )


def ordinal(batch: TokenBatch, weight: Tensor, how: Ordinal) -> Part:
    """weight * the loss of `Ordinal` with the tokens of `batch` as targets, weight (batch, length); nats as `cross_entropy`."""
    plain = cross_entropy(batch, weight)
    modalities = {n: batch.layout.segments[s].modality for n, s in _alphabets(batch.layout)}

    def value(log_p: Tensor, target: Tensor, _: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        scale, codes = weight.reshape(-1)[index], log_p.shape[-1]
        v = how.values.table(log_p.device, log_p.dtype)[how.values.at(batch, index)][:, :codes]
        true = v.gather(1, target[:, None])
        nats = -log_p.gather(1, target[:, None])[:, 0]
        loss = nats
        if how.width:
            loss = -(soft_label(v, true[:, 0], how.width) * log_p).sum(-1)
        if how.weight:
            off = (log_p.exp() * v).sum(-1) - true[:, 0]
            loss = loss + how.weight * (off.abs() if how.distance == "absolute" else off.square())
        return loss * scale, nats * scale

    ordered = predicted(batch, batch, value)

    def part(hidden: Tensor, head: Tensor, index: Tensor, alphabet: int) -> tuple[Tensor, Tensor]:
        chosen = ordered if modalities[alphabet] in how.values.numbers else plain
        return chosen(hidden, head, index, alphabet)

    return part


def _alphabets(layout: Layout) -> list[tuple[int, int]]:
    """(alphabet, a segment that draws from it); the symbols of an alphabet are of one modality."""
    tables = layout.tables()
    pairs = torch.stack([tables.alphabet, tables.segment])[:, tables.noised].unique(dim=1)
    return [(int(a), int(s)) for a, s in pairs.T]
