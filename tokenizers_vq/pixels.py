"""Pixels as tokens: grey pictures of few levels need no learned codebook."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class PixelTokenizer:
    """Lossless tokenizer of pictures `(batch, height, width)` with integer levels 0..levels-1.

    A slot is a patch of `patch` x `patch` pixels and its pixels are the slot's levels of depth, row by row:
    codes `(batch, height * width / patch^2, patch^2)`. Raises ValueError for sizes that do not divide or values outside.
    """

    levels: int = 17
    patch: int = 1
    height: int = 8
    width: int = 8

    def __post_init__(self) -> None:
        if self.levels < 2 or self.patch < 1:
            raise ValueError(f"levels {self.levels} must be at least 2 and patch {self.patch} at least 1")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch {self.patch} does not divide pictures of {self.height} x {self.width}")

    @property
    def codebook_size(self) -> int:
        """Codes per level."""
        return self.levels

    @property
    def depth(self) -> int:
        """Pixels of a slot."""
        return self.patch**2

    @property
    def grid(self) -> tuple[int, int]:
        """Slots per column and row."""
        return self.height // self.patch, self.width // self.patch

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(batch, height, width) to (batch, slots, depth)."""
        if tuple(input_shape[-2:]) != (self.height, self.width):
            raise ValueError(
                f"pictures are {tuple(input_shape[-2:])}, this tokenizer takes {(self.height, self.width)}"
            )
        return (*input_shape[:-2], self.grid[0] * self.grid[1], self.depth)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures `(batch, height, width)` to int64 codes `(batch, slots, depth)`."""
        self.token_shape(tuple(x.shape))
        if x.is_floating_point() or (x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.levels):
            top = self.levels - 1
            raise ValueError(f"pictures are {x.dtype} in {float(x.min())}..{float(x.max())}: give integers 0..{top}")
        return rearrange(x.long(), "b (h p) (w q) -> b (h w) (p q)", p=self.patch, q=self.patch)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `(batch, slots, depth)` to pictures `(batch, height, width)`."""
        h, w = self.grid
        return rearrange(codes, "b (h w) (p q) -> b (h p) (w q)", h=h, w=w, p=self.patch, q=self.patch)
