"""Visible numbers shown inexactly in training, so that a policy does not trust its own commitments too much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.layout import TokenBatch
from discdiff.noise import CORRUPT, TIME, Noise
from discdiff.values import CodeValues

_CHILD = 0x6A  # of a row's noise: no draw of the masker is used twice


@dataclass(frozen=True)
class Jitter:
    """Visible codes c of the modalities in `values` are shown to the network as the codes nearest to v_c + width * u * z, with
    u uniform on (0, 1) per row and z standard normal per position; targets stay as they are.

    While sampling, what is visible was committed by the network itself and is off by its own errors; a network that has seen
    exact neighbours only copies them. width is in the unit of the values. The loss is then no bound on a likelihood. Raises
    ValueError for a width that is not above 0 and, at the first batch, for values that do not fit the layout.
    """

    values: CodeValues
    width: float = 0.4

    def __post_init__(self) -> None:
        checked("values", self.values, isinstance(self.values, CodeValues), 'give CodeValues({"action": levels})')
        checked("width", self.width, 0 < self.width < math.inf, "above 0, in the unit of the values, or no jitter")

    def __call__(self, batch: TokenBatch, tokens: Tensor, noise: Noise) -> Tensor:
        """Tokens (batch, length) with the free visible codes moved."""
        place = self.values.at(batch)
        noise = noise.child(_CHILD)
        shown = batch.free & (place >= 0) & (tokens != batch.layout.vocab.mask)
        scale = self.width * noise.row_uniform(TIME)[:, None]
        z = math.sqrt(2.0) * torch.erfinv(2.0 * noise.uniform(CORRUPT) - 1.0)
        moved = self.values.of(batch, tokens) + scale * z
        table = self.values.table(tokens.device)
        code = torch.zeros_like(tokens)
        for number, row in enumerate(self.values.rows):
            v = table[number, : len(row)].contiguous()
            above = torch.searchsorted((v[1:] + v[:-1]) / 2, moved.nan_to_num())
            code = torch.where(place == number, above, code)
        return torch.where(shown, batch.ids(torch.where(shown, code, 0)), tokens)
