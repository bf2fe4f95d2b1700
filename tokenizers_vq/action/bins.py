"""One token per number of a chunk: equal levels, levels at the data's quantiles, or OpenVLA's 255 centres."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.action.base import ActionTokenizerConfig, ScalarTokenizer, equal_levels, fitted
from tokenizers_vq.action.normalise import ActionStatistics
from tokenizers_vq.action.readout import read_out
from tokenizers_vq.config import checked

SPACINGS = ("uniform", "quantile", "openvla")
CENTRES = 255  # between OpenVLA's 256 edges
EVEN = 0.1  # share of equal levels in those at quantiles, which keeps levels of repeated values apart


class ActionBinsConfig(ActionTokenizerConfig):
    """spacing: "uniform" levels -1 + 2 c / (codebook_size - 1), end points included, which full scale hits exactly;
    "quantile": levels where the data are, fitted per dimension; "openvla": the 255 centres between 256 equal edges.
    """

    model_type = "discdiff_action_bins"

    codebook_size: int = 256
    spacing: str = "uniform"

    def check(self) -> None:
        checked("spacing", self.spacing, self.spacing in SPACINGS, f"choose from {', '.join(SPACINGS)}")
        fits = self.codebook_size == CENTRES if self.spacing == "openvla" else self.codebook_size >= 2
        checked("codebook_size", self.codebook_size, fits, "255 with spacing openvla, else at least 2 levels")
        self.code_dim = self.num_quantizers = 1
        super().check()


class ActionBins(ScalarTokenizer):
    """Actions (batch, chunk, dim) to codes (batch, chunk * dim, 1), row by row over (step, dim); slots of steps that are no
    data have mask False.

    A code's embedding is its level's place u in [-1, 1]; `levels` are the values. With equal levels the error is at most
    1 / (codebook_size - 1) of the normalised range. OpenVLA arXiv 2406.09246, FSQ-like levels with end points ours.
    """

    config_class = ActionBinsConfig
    fits = True

    def __init__(self, config: ActionBinsConfig) -> None:
        super().__init__(config)
        size, dim = config.codebook_size, config.dim
        even = equal_levels(size) * ((CENTRES - 1) / CENTRES if config.spacing == "openvla" else 1)
        self.register_buffer("levels", even.repeat(dim, 1))

    levels: Tensor

    @classmethod
    def fit(
        cls, actions: Tensor, mask: Tensor | None = None, *, raw: tuple[int, ...] = (),
        statistics: ActionStatistics | None = None, **settings: Any,
    ) -> Self:  # fmt: skip
        """From chunks (rows, chunk, dim) and the configuration's other settings; raw: dimensions that stay as they are;
        statistics: of the data set, where they are known. Raises ValueError for actions that are not finite.
        """
        found = cls(cls.config_class(**fitted(actions, mask, raw, statistics), **settings))
        if found.config.spacing == "quantile":
            y = found.normalised(actions, mask)[0].flatten(0, 1)
            y = y if mask is None else y[mask.flatten()]
            found.levels.copy_(quantile_levels(y, found.codebook_size))
        return found.eval()

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, chunk, dim) to (batch, chunk * dim, 1)."""
        return self.check_shape(input_shape), self.config.chunk * self.config.dim, 1

    @property
    def grid(self) -> tuple[int, int]:
        """Slots are (step, dimension)."""
        return self.config.chunk, self.config.dim

    def slot_mask(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A slot is data where its step is."""
        here = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return here[..., None].expand_as(x).flatten(1)

    def normalised_latents(self, y: Tensor) -> Tensor:
        """Every number's place u among the levels."""
        if self.config.spacing == "openvla":  # its edges are those of numpy.digitize, in float64
            edges = torch.linspace(-1, 1, CENTRES + 1, dtype=torch.float64, device=y.device)
            code = (torch.bucketize(y.double().contiguous(), edges, right=True) - 1).clamp(0, CENTRES - 1)
            u = equal_levels(CENTRES).to(y)[code]
        else:
            u = 2 * place(y, self.levels) / (self.codebook_size - 1) - 1
        return u.flatten(1)[..., None]

    def decode_normalised(self, e: Tensor) -> Tensor:
        """Places u to numbers, linear between levels."""
        u = (e.view(-1, *self.grid).clamp(-1, 1) + 1) * ((self.codebook_size - 1) / 2)
        return at_place(u, self.levels)

    def values(self) -> Tensor:
        """The action that each code of each dimension stands for, (dim, codebook_size)."""
        return self.normaliser.restore(self.levels.T).T

    def read_out(self, probabilities: Tensor, how: str, width: int) -> Tensor:
        """As the base class, in the values themselves rather than their places."""
        return read_out(probabilities.unflatten(1, self.grid), self.levels, how, width)


def place(y: Tensor, values: Tensor) -> Tensor:
    """Where numbers y (..., dim) lie among increasing levels (dim, size), in 0..size-1, linear between them."""
    rows = y.flatten(0, -2).T.contiguous()  # (dim, n)
    upper = torch.searchsorted(values, rows).clamp(1, values.shape[1] - 1)
    low, high = values.gather(1, upper - 1), values.gather(1, upper)
    share = ((rows - low) / (high - low)).clamp(0, 1)
    return (upper - 1 + share).T.reshape(y.shape)


def at_place(u: Tensor, values: Tensor) -> Tensor:
    """The way back: places u (..., dim) in 0..size-1 to numbers, differentiable in u."""
    rows = u.flatten(0, -2).T
    lower = rows.detach().floor().long().clamp(0, values.shape[1] - 2)
    low, high = values.gather(1, lower), values.gather(1, lower + 1)
    return torch.lerp(low, high, rows - lower).T.reshape(u.shape)


def quantile_levels(y: Tensor, size: int) -> Tensor:
    """Increasing levels (dim, size) from -1 to 1 at the quantiles of y (n, dim), blended with 10 % of equal steps."""
    found = torch.from_numpy(np.quantile(y.double().numpy(), np.linspace(0, 1, size), axis=0).T.copy())
    found = (1 - EVEN) * found + EVEN * equal_levels(size)
    found[:, 0], found[:, -1] = -1, 1
    return found.float()


def openvla_ids(codes: Tensor, vocab_size: int) -> Tensor:
    """Codes 0..254 to OpenVLA's token ids, the last of its text vocabulary: vocab_size - 1 - code.

    Raises ValueError for codes outside.
    """
    ok = not codes.numel() or 0 <= int(codes.min()) <= int(codes.max()) < CENTRES
    checked("codes", tuple(codes.shape), ok, f"codes 0..{CENTRES - 1}")
    return vocab_size - 1 - codes


def openvla_codes(ids: Tensor, vocab_size: int) -> Tensor:
    """The exact inverse; its 256th id, which it writes for +1 alone and decodes like the 255th, becomes code 254.

    Raises ValueError for ids that are no actions.
    """
    codes = vocab_size - 1 - ids
    ok = not ids.numel() or 0 <= int(codes.min()) <= int(codes.max()) <= CENTRES
    checked("ids", tuple(ids.shape), ok, f"action ids are {vocab_size - 1 - CENTRES}..{vocab_size - 1}")
    return codes.clamp(max=CENTRES - 1)
