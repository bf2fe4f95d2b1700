"""Fixed-length tokens of a chunk's frequencies: errors stay local, and the low frequencies come first."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from tokenizers_vq.action.base import ActionTokenizerConfig, ScalarTokenizer, fitted
from tokenizers_vq.action.normalise import FLOOR, SLACK, ActionStatistics
from tokenizers_vq.base import TokenizerOutput
from tokenizers_vq.config import checked, whole


class DCTBinsConfig(ActionTokenizerConfig):
    """frequencies: how many of the lowest are kept (0: all `chunk`); codebook_size: equal levels of every coefficient
    between bounds of its own, fitted to data; odd, so that 0, which most high frequencies are, is a level.
    """

    model_type = "discdiff_action_dct"

    codebook_size: int = 255
    frequencies: int = 0

    def check(self) -> None:
        whole_chunk = whole(self.chunk, 1)
        fits = whole_chunk and whole(self.frequencies, 0, self.chunk)
        checked("frequencies", self.frequencies, fits, f"1 to the {self.chunk} steps of a chunk, 0 for all")
        odd = whole(self.codebook_size, 3) and self.codebook_size % 2 == 1
        checked("codebook_size", self.codebook_size, odd, "an odd number, so that 0 is a level, of at least 3")
        self.code_dim = self.num_quantizers = 1
        super().check()


class DCTBins(ScalarTokenizer):
    """Actions (batch, chunk, dim) to codes (batch, frequencies * dim, 1): c = D y, orthonormal DCT-II over time, each
    coefficient c_kj to the nearest of equal levels between -+ bound_kj.

    Positions are (frequency, dim), low frequencies first. Every slot speaks of the whole chunk, so all are data.
    """

    config_class = DCTBinsConfig
    fits = True
    bound: Tensor

    def __init__(self, config: DCTBinsConfig) -> None:
        super().__init__(config)
        bound = dct_matrix(config.chunk)[: self.frequencies].abs().sum(1)  # what numbers in [-1, 1] can reach
        self.register_buffer("bound", bound[:, None].repeat(1, config.dim))

    @property
    def frequencies(self) -> int:
        """How many of them are kept."""
        return self.config.frequencies or self.config.chunk

    @classmethod
    def fit(
        cls, actions: Tensor, mask: Tensor | None = None, *, raw: tuple[int, ...] = (),
        statistics: ActionStatistics | None = None, share: float = 1.0, **settings: Any,
    ) -> Self:  # fmt: skip
        """From chunks (rows, chunk, dim); a bound is the `share` quantile of the coefficient's absolute values, by default
        their largest. What lies beyond is clipped and counted. Otherwise as `ActionBins.fit`.
        """
        checked("share", share, 0 < share <= 1, "a share in (0, 1]")
        found = cls(cls.config_class(**fitted(actions, mask, raw, statistics), **settings))
        size = found.coefficients(found.normalised(actions, mask)[0]).abs().double()
        bound = size.kthvalue(max(1, math.ceil(share * len(size))), dim=0).values.float()
        found.bound.copy_(torch.maximum(bound, FLOOR * found.bound))  # a coefficient that is always 0 stays near it
        return found.eval()

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, chunk, dim) to (batch, frequencies * dim, 1)."""
        return self.check_shape(input_shape), self.frequencies * self.config.dim, 1

    def coefficients(self, y: Tensor) -> Tensor:
        """Normalised actions (batch, chunk, dim) to their lowest frequencies (batch, frequencies, dim)."""
        return torch.einsum("kn,bnd->bkd", dct_matrix(self.config.chunk)[: self.frequencies].to(y), y)

    @property
    def grid(self) -> tuple[int, int]:
        """Slots are (frequency, dimension)."""
        return self.frequencies, self.config.dim

    def normalised_latents(self, y: Tensor) -> Tensor:
        """Coefficients in units of their bounds."""
        return (self.coefficients(y) / self.bound).flatten(1)[..., None]

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """Codes; aux also has "clipped_coefficients" (batch,)."""
        out = super().encode(x, mask)
        beyond = self.encode_latents(x, mask).h.abs() > 1 + SLACK
        return out._replace(aux={**out.aux, "clipped_coefficients": beyond.flatten(1).sum(1)})

    def decode_normalised(self, e: Tensor) -> Tensor:
        """Coefficients in units of their bounds to actions; the frequencies that were left out are 0."""
        c = e.view(-1, *self.grid) * self.bound
        return torch.einsum("kn,bkd->bnd", dct_matrix(self.config.chunk)[: self.frequencies].to(c), c)


def dct_matrix(steps: int) -> Tensor:
    """D_kn = sqrt((2 - [k = 0]) / steps) cos(pi k (n + 1/2) / steps), orthonormal DCT-II (steps, steps), D D^T = 1."""
    k, n = torch.arange(steps, dtype=torch.float64)[:, None], torch.arange(steps, dtype=torch.float64)
    d = (math.pi / steps * k * (n + 0.5)).cos() * math.sqrt(2 / steps)
    d[0] /= math.sqrt(2)
    return d.float()
