"""Pictures of any size and number of channels as grids of codes: a convolutional autoencoder with a codebook."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tokenizers_vq.adversarial import PatchDiscriminator, hinge
from tokenizers_vq.base import Latents, ModalityTokenizer
from tokenizers_vq.blocks import Decoder, Encoder
from tokenizers_vq.config import TokenizerConfig, checked, whole

PIXEL = {"l1": F.l1_loss, "l2": F.mse_loss}
SLACK = 1e-3  # beyond the range, of rounding


class ImageTokenizerConfig(TokenizerConfig):
    """Pictures (batch, channels, height, width), height and width multiples of the product of `strides`.

    width: channels inside; blocks: residual convolutions per stride; layers, heads: of attention over the grid of codes,
    0 layers for none. pixel: "l1" or "l2"; perceptual: weight of `ImageTokenizer.perceptual`; gan: weight of the hinge
    loss against a discriminator of `gan_width` channels, 0 for none.
    """

    model_type = "discdiff_image"

    modality: str = "image"
    channels: int = 3
    width: int = 64
    strides: tuple[int, ...] = (2, 2)
    blocks: int = 2
    layers: int = 0
    heads: int = 4
    pixel: str = "l1"
    perceptual: float = 0.0
    gan: float = 0.0
    gan_width: int = 32

    def check(self) -> None:
        super().check()
        for name in ("channels", "width", "heads", "gan_width"):
            checked(name, getattr(self, name), whole(getattr(self, name), 1, 2**16), "an integer of at least 1")
        for name in ("blocks", "layers"):
            checked(name, getattr(self, name), whole(getattr(self, name), 0, 1024), "an integer of 0 or more")
        self.strides = tuple(self.strides)
        strides = bool(self.strides) and all(whole(s, 1, 64) for s in self.strides)
        checked("strides", self.strides, strides, "integers from 1 to 64, such as (2, 2)")
        fits = self.layers == 0 or (self.width % self.heads == 0 and self.width % 4 == 0)
        checked("width", self.width, fits, f"a multiple of 4 and of the {self.heads} heads of attention")
        checked(
            "quantizer", self.quantizer, self.quantizer != "none", "vq, rvq, fsq or lfq: a picture's codes are learned"
        )
        checked("pixel", self.pixel, self.pixel in PIXEL, f"choose from {', '.join(PIXEL)}")
        for name in ("perceptual", "gan"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            checked(name, value, number and value >= 0, "a weight of 0 or more")


class ImageTokenizer(ModalityTokenizer):
    """Pictures (batch, channels, height, width), floats in [-1, 1], to codes (batch, slots, depth) and back; slots are the
    cells of a grid of height / stride x width / stride, row by row.

    `perceptual` is a callable (a, b) -> scalar or one value per picture, no part of the saved weights; it is needed for
    training where config.perceptual is above 0. Of VQGAN's losses (arXiv 2012.09841) with weights that are fixed.
    """

    config_class = ImageTokenizerConfig
    main_input_name = "x"

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__(config)
        shape = (config.width, config.code_dim, config.strides, config.blocks, config.layers, config.heads)
        self.encoder, self.decoder = Encoder(2, config.channels, *shape), Decoder(2, config.channels, *shape)
        self.discriminator = PatchDiscriminator(config.channels, config.gan_width) if config.gan else None
        self.set_perceptual(None)

    @property
    def stride(self) -> int:
        """Pixels per slot and axis."""
        return math.prod(self.config.strides)

    @property
    def perceptual(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What tells how unlike two batches of pictures look."""
        return self._perceptual

    def set_perceptual(self, distance: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        """Take a distance that is neither trained nor saved with the tokenizer, even where it is a module."""
        object.__setattr__(self, "_perceptual", distance)

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, channels, height, width) to (batch, slots, depth)."""
        shape, stride = tuple(input_shape), self.stride
        if len(shape) != 4 or shape[1] != self.config.channels:
            raise ValueError(
                f"pictures are {shape}: this tokenizer takes (batch, {self.config.channels}, height, width)"
            )
        if any(n < stride or n % stride for n in shape[2:]):
            near = tuple(max(1, round(n / stride)) * stride for n in shape[2:])
            raise ValueError(
                f"pictures are {shape[2]} x {shape[3]}: height and width must be multiples of {stride}, "
                f"such as {near[0]} x {near[1]}"
            )
        return shape[0], math.prod(n // stride for n in shape[2:]), self.depth

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Latents of the grid; raises ValueError for another shape, type or range, and for a mask."""
        batch, slots, _ = self.token_shape(tuple(x.shape))
        if mask is not None:
            raise ValueError("a mask was given: pictures of one batch have one size and are whole")
        check_range(x)
        h = self.encoder(x)
        held = torch.ones(batch, slots, dtype=torch.bool, device=x.device)
        return Latents(rearrange(h, "b d h w -> b (h w) d"), held, tuple(h.shape[2:]))

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to pictures, differentiable and not cut to [-1, 1]; grid: rows and columns
        of slots, a square where it is None. Raises ValueError for another number of slots.
        """
        side = math.isqrt(e.shape[1])
        rows, columns = (side, side) if grid is None else grid
        if rows * columns != e.shape[1]:
            raise ValueError(f"{e.shape[1]} slots are no grid of {rows} x {columns}: give grid as encode returned it")
        return self.decoder(rearrange(e, "b (h w) d -> b d h w", h=rows))

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, depth or fewer) to pictures in [-1, 1]."""
        return super().decode(codes, grid, mask).clamp(-1, 1)

    def losses(self, x: Tensor, reconstruction: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """pixel, perceptual, and with a discriminator both sides of the hinge game."""
        found = {"pixel": PIXEL[self.config.pixel](reconstruction, x)}
        if self.config.perceptual:
            if self.perceptual is None:
                raise ValueError(
                    f"perceptual is {self.config.perceptual} but there is no distance: call set_perceptual first"
                )
            found["perceptual"] = self.config.perceptual * self.perceptual(reconstruction, x).mean()
        if self.discriminator is not None:
            generator, discriminator = hinge(self.discriminator, x, reconstruction)
            found |= {"generator": self.config.gan * generator, "discriminator": discriminator}
        return found


def check_range(x: Tensor) -> None:
    """Raise ValueError unless pictures are finite floats in [-1, 1]."""
    if not x.is_floating_point():
        raise ValueError(f"pictures are {x.dtype}: give floats in [-1, 1], from_bytes(x) makes them of uint8")
    if x.numel():
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not (low >= -1 - SLACK and high <= 1 + SLACK):  # also true of NaN
            remedy = "from_bytes(x) takes levels 0..255, 2 * x - 1 those in [0, 1]"
            raise ValueError(f"pictures span {low:.4g}..{high:.4g}: give floats in [-1, 1]; {remedy}")


def from_bytes(x: Any) -> Tensor:
    """uint8 0..255 (batch, [channels,] height, width) as floats in [-1, 1]. Raises ValueError for another type."""
    levels = torch.as_tensor(x)
    if levels.dtype != torch.uint8:
        raise ValueError(f"pictures are {levels.dtype}: give uint8, 0..255")
    return levels.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Floats in [-1, 1] as uint8 0..255, cut where they are beyond."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
