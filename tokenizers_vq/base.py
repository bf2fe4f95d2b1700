"""The contract of every modality tokenizer: raw data to codes `(batch, slots, depth)`, coarse first, and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class ModalityTokenizer(Protocol):
    """codebook_size codes on each of `depth` levels; `token_shape(input_shape)` says the slots without running anything."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def depth(self) -> int: ...

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]: ...

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...
