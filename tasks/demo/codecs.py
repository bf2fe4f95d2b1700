"""How the demo's pictures become codes: their pixels as they are, or the codes of a small tokenizer trained first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from discdiff.config import checked
from tokenizers_vq import PixelTokenizer, load_tokenizer

LEVELS, SIDE = 17, 8


@dataclass(frozen=True, eq=False)
class Codec(ABC):
    """Pictures (n, 8, 8) int64 of 0..16 as codes (n, slots, depth) of a tokenizer, and back."""

    kind: ClassVar[str]
    tokenizer: Any

    @property
    def codebook_size(self) -> int:
        """Codes of a level."""
        return self.tokenizer.codebook_size

    @property
    def depth(self) -> int:
        """Levels of a slot."""
        return self.tokenizer.depth

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Slots per column and row."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to codes."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes to pictures."""

    @abstractmethod
    def places(self, columns: Tensor) -> Tensor:
        """Columns (slots, depth) of a sequence to the one that each pixel comes from, (8, 8)."""

    @abstractmethod
    def shown(self, codes: Tensor) -> Tensor:
        """The picture (8, 8) of the codes (8, 8) that lie at `places`."""


class Pixels(Codec):
    """The four pixels of a 2 x 2 patch are a slot's levels: nothing is lost, nothing is trained."""

    kind = "pixels"

    @classmethod
    def new(cls) -> Pixels:
        """Of the demo's pictures."""
        return cls(PixelTokenizer.of(levels=LEVELS, patch=2, height=SIDE, width=SIDE))

    @property
    def grid(self) -> tuple[int, int]:
        return self.tokenizer.grid

    def encode(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images).codes

    def decode(self, codes: Tensor) -> Tensor:
        return self.tokenizer.decode(codes)

    def places(self, columns: Tensor) -> Tensor:
        return self.tokenizer.decode_embeddings(columns[None])[0]

    def shown(self, codes: Tensor) -> Tensor:
        return codes


class Learned(Codec):
    """A cell of the picture is one code of an `ImageTokenizer`, which sees pictures scaled to [-1, 1]."""

    kind = "learned"

    @property
    def grid(self) -> tuple[int, int]:
        return SIDE // self.tokenizer.stride, SIDE // self.tokenizer.stride

    def encode(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(scaled(images)).codes

    def decode(self, codes: Tensor) -> Tensor:
        pictures = self.tokenizer.decode(codes, self.grid)[:, 0]
        return ((pictures + 1) * (LEVELS - 1) / 2).round().long()

    def places(self, columns: Tensor) -> Tensor:
        cells = columns.view(self.grid)
        return cells.repeat_interleave(self.tokenizer.stride, 0).repeat_interleave(self.tokenizer.stride, 1)

    def shown(self, codes: Tensor) -> Tensor:
        cells = codes[:: self.tokenizer.stride, :: self.tokenizer.stride]
        return self.decode(cells.reshape(1, -1, 1))[0]


KINDS: dict[str, type[Codec]] = {"discdiff_pixels": Pixels, "discdiff_image": Learned}


def scaled(images: Tensor) -> Tensor:
    """Levels (n, 8, 8) of 0..16 as floats (n, 1, 8, 8) in [-1, 1]."""
    return (images.float() * 2 / (LEVELS - 1) - 1)[:, None]


def opened(folder: str | Path) -> Codec:
    """The codec whose tokenizer was saved to a folder. Raises ValueError for a tokenizer of something else."""
    tokenizer = load_tokenizer(folder)
    kind = tokenizer.config.model_type
    checked("tokenizer", kind, kind in KINDS, f"{str(folder)!r} holds no tokenizer of the demo's pictures")
    return KINDS[kind](tokenizer)


def untrained(codes: int, seed: int) -> Learned:
    """A codec of `codes` codes, to be trained; its first weights are a function of the seed."""
    from tasks.image.tokenizer import build
    from tokenizers_vq import ImageTokenizerConfig

    small = ImageTokenizerConfig(
        channels=1, width=32, strides=(2,), blocks=1, codebook_size=codes, code_dim=8, pixel="l2"
    )
    return Learned(build(small, seed).eval())


def trained(codec: Codec, images: Tensor, steps: int, seed: int, folder: Path) -> Codec:
    """A codec trained on pictures and saved to a folder; an interrupted training goes on from FOLDER_training."""
    from discdiff.training import TrainingSettings
    from tasks.common.fitting import Arrays, Reconstruction, fit

    settings = TrainingSettings(
        seed=seed, steps=steps, batch_size=64, learning_rate=3e-3, warmup=min(20, steps), log_every=min(25, steps)
    )
    fit(codec.tokenizer, Reconstruction(), settings, Arrays(x=scaled(images)), folder, resume="auto")
    return opened(folder)
