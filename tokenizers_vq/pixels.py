"""Pixels as tokens: grey pictures of few levels need no learned codebook."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tokenizers_vq.base import Latents, ModalityTokenizer
from tokenizers_vq.config import TokenizerConfig, checked, whole


class PixelTokenizerConfig(TokenizerConfig):
    """Pictures of height x width pixels with integer levels 0..codebook_size-1; a slot is a patch x patch square."""

    model_type = "discdiff_pixels"

    quantizer: str = "none"
    codebook_size: int = 17
    patch: int = 1
    height: int = 8
    width: int = 8

    def check(self) -> None:
        for name in ("patch", "height", "width"):
            checked(name, getattr(self, name), whole(getattr(self, name), 1), "an integer of at least 1")
        fits = self.height % self.patch == 0 and self.width % self.patch == 0
        checked("patch", self.patch, fits, f"a divisor of pictures of {self.height} x {self.width}")
        checked("codebook_size", self.codebook_size, whole(self.codebook_size, 2), "at least 2 levels of grey")
        self.num_quantizers = self.code_dim = self.patch**2
        super().check()


class PixelTokenizer(ModalityTokenizer):
    """Lossless tokenizer of pictures `(batch, height, width)`; the pixels of a patch are its slot's levels, row by row.

    Codes `(batch, height * width / patch^2, patch^2)`. Raises ValueError for other sizes and values outside.
    """

    config_class = PixelTokenizerConfig

    @classmethod
    def of(cls, levels: int = 17, patch: int = 1, height: int = 8, width: int = 8) -> PixelTokenizer:
        """With a configuration of these values."""
        return cls(PixelTokenizerConfig(codebook_size=levels, patch=patch, height=height, width=width)).eval()

    @property
    def grid(self) -> tuple[int, int]:
        """Slots per column and row."""
        return self.config.height // self.config.patch, self.config.width // self.config.patch

    @property
    def codebook(self) -> Tensor:
        """Level j has pixel j of the patch to itself: (patch^2, levels, patch^2)."""
        levels = torch.arange(self.codebook_size, dtype=torch.float32)
        return levels[None, :, None] * torch.eye(self.depth)[:, None, :]

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, height, width) to (batch, slots, depth)."""
        size = self.config.height, self.config.width
        if len(input_shape) != 3 or tuple(input_shape[-2:]) != size:
            raise ValueError(f"pictures are {tuple(input_shape)}: this tokenizer takes (batch, {size[0]}, {size[1]})")
        return input_shape[0], self.grid[0] * self.grid[1], self.depth

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Pictures of integers to their pixels, slot by slot."""
        self.token_shape(tuple(x.shape))
        if x.is_floating_point() or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.codebook_size):
            top = self.codebook_size - 1
            raise ValueError(f"pictures are {x.dtype} in {float(x.min())}..{float(x.max())}: give integers 0..{top}")
        h = rearrange(x.float(), "b (h p) (w q) -> b (h w) (p q)", p=self.config.patch, q=self.config.patch)
        return Latents(h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device), self.grid)

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """The nearest level of grey."""
        return e.round().long().clamp(0, self.codebook_size - 1)

    def decode_embeddings(self, e: Tensor, grid: Any = None, mask: Tensor | None = None) -> Tensor:
        """Levels of grey as floats, pictures `(batch, height, width)`."""
        h, w = self.grid
        return rearrange(e, "b (h w) (p q) -> b (h p) (w q)", h=h, w=w, p=self.config.patch, q=self.config.patch)

    def decode(self, codes: Tensor, grid: Any = None, mask: Tensor | None = None) -> Tensor:
        """Codes `(batch, slots, depth)` to pictures of integers `(batch, height, width)`."""
        return super().decode(codes, grid, mask).long()
