"""Learned codes of action chunks: a small convolutional autoencoder over time with one or several codebooks."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from tokenizers_vq.action.base import ActionTokenizer, ActionTokenizerConfig, fitted
from tokenizers_vq.action.normalise import ActionStatistics
from tokenizers_vq.blocks import Decoder, Encoder
from tokenizers_vq.config import checked, whole


class ChunkTokenizerConfig(ActionTokenizerConfig):
    """strides: steps of time per slot, their product divides `chunk`; width, blocks: channels and residual convolutions of
    every stage; quantizer: "vq", "rvq" of num_quantizers levels, "fsq" or "lfq"; velocity: weight of the error of
    differences between steps.
    """

    model_type = "discdiff_action_chunks"

    quantizer: str = "rvq"
    codebook_size: int = 64
    num_quantizers: int = 4
    code_dim: int = 32
    strides: tuple[int, ...] = (2,)
    width: int = 64
    blocks: int = 1
    velocity: float = 0.5

    def check(self) -> None:
        self.strides = tuple(self.strides)
        checked("strides", self.strides, all(whole(s, 1, 4096) for s in self.strides), "integers of at least 1")
        stride = math.prod(self.strides)
        divides = whole(self.chunk, 1) and self.chunk % stride == 0
        checked("chunk", self.chunk, divides, f"a multiple of {stride}, the product of strides")
        checked("width", self.width, whole(self.width, 1, 2**14), "an integer of at least 1")
        checked("blocks", self.blocks, whole(self.blocks, 0, 64), "an integer of 0 or more")
        checked("quantizer", self.quantizer, self.quantizer != "none", "vq, rvq, fsq or lfq: these codes are learned")
        number = isinstance(self.velocity, int | float) and not isinstance(self.velocity, bool)
        checked("velocity", self.velocity, number and 0 <= self.velocity < math.inf, "a weight of 0 or more")
        super().check()


class ChunkTokenizer(ActionTokenizer):
    """Actions (batch, chunk, dim) to codes (batch, chunk / stride, depth); the loss is the mean square error of normalised
    actions and of their differences between steps. Every slot has seen its neighbours, so all are data.
    """

    config_class = ChunkTokenizerConfig

    def __init__(self, config: ChunkTokenizerConfig) -> None:
        super().__init__(config)
        shape = (1, config.dim, config.width, config.code_dim, config.strides, config.blocks)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)

    @classmethod
    def of(
        cls, actions: Tensor, mask: Tensor | None = None, *, raw: tuple[int, ...] = (),
        statistics: ActionStatistics | None = None, **settings: Any,
    ) -> Self:  # fmt: skip
        """An untrained one with the statistics of chunks (rows, chunk, dim); arguments as of `ActionBins.fit`."""
        return cls(cls.config_class(**fitted(actions, mask, raw, statistics), **settings))

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, chunk, dim) to (batch, slots, depth)."""
        return self.check_shape(input_shape), self.config.chunk // math.prod(self.config.strides), self.depth

    def normalised_latents(self, y: Tensor) -> Tensor:
        """The encoder."""
        return self.encoder(y.mT).mT

    def decode_normalised(self, e: Tensor) -> Tensor:
        """The decoder."""
        return self.decoder(e.mT).mT

    def losses(self, x: Tensor, reconstruction: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Mean square error of normalised actions and of their differences, over the steps that are data; 0 where none is."""
        middle, half = (v.to(x.device) for v in self.normaliser.affine)
        y, z = self.normalised(x, mask)[0], ((reconstruction.double() - middle) / half).float()
        here = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device) if mask is None else mask
        found = {"actions": _mean_square(z - y, here)}
        if self.config.velocity and y.shape[1] > 1:
            both = here[:, 1:] & here[:, :-1]  # none where every chunk has a single step
            found["velocity"] = self.config.velocity * _mean_square(z.diff(dim=1) - y.diff(dim=1), both)
        return found


def _mean_square(off: Tensor, where: Tensor) -> Tensor:
    """Mean of off^2 (batch, steps, dim) over the steps of `where` (batch, steps) bool; 0 where there is none."""
    return torch.where(where[..., None], off, 0.0).square().sum() / (where.sum().clamp(min=1) * off.shape[-1])
