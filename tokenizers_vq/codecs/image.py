"""Janus and Emu3 of transformers and VQModel of diffusers: pictures (batch, channels, height, width) to grids of codes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers import Emu3VQVAE, Emu3VQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from tokenizers_vq.base import Latents
from tokenizers_vq.codecs.base import CodecConfig, CodecTokenizer
from tokenizers_vq.nearest import residual_codes

BEYOND = 4.0  # no processor's pictures reach this; levels 0..255 do


class ImageCodecConfig(CodecConfig):
    """channels of a picture; stride: pixels per slot and axis."""

    model_type = "discdiff_image_codec"

    channels: int = 3
    stride: int = 16


class ImageCodec(CodecTokenizer):
    """Pictures (batch, channels, height, width), floats as the codec's own processor gives them, sides multiples of
    config.stride; slots row by row, grid (rows, columns). The number of pixels does not come from the wrapped
    configuration: any such size will do.
    """

    config_class = ImageCodecConfig

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, channels, height, width) to (batch, slots, 1)."""
        shape, c = tuple(input_shape), self.config
        fits = (
            len(shape) == 4 and shape[1] == c.channels and all(n >= c.stride and n % c.stride == 0 for n in shape[2:])
        )
        if not fits:
            raise ValueError(
                f"pictures are {shape}: this tokenizer takes (batch, {c.channels}, height, width) with sides that are "
                f"multiples of {c.stride}"
            )
        return shape[0], math.prod(n // c.stride for n in shape[2:]), self.depth

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """What the wrapped encoder gives. Raises ValueError for another shape, no floats, and for a mask."""
        batch, slots, _ = self.token_shape(tuple(x.shape))
        if mask is not None or not x.is_floating_point():
            raise ValueError(f"pictures are {x.dtype}: give floats in [-1, 1], whole pictures without a mask")
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not -BEYOND <= low <= high <= BEYOND:  # also true of NaN
            raise ValueError(f"pictures span {low:.4g}..{high:.4g}: give what the codec's own processor makes of them")
        h = self.encoder_output(x.to(self.dtype))
        here = torch.ones(batch, slots, dtype=torch.bool, device=x.device)
        return Latents(rearrange(h, "b d h w -> b (h w) d"), here, tuple(h.shape[2:]))

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to pictures; grid: rows and columns, a square where it is None.

        Raises ValueError for another number of slots.
        """
        side = math.isqrt(e.shape[1])
        rows, columns = (side, side) if grid is None else grid
        if rows * columns != e.shape[1]:
            raise ValueError(f"{e.shape[1]} slots are no grid of {rows} x {columns}: give grid as encode returned it")
        return self.decoder_output(rearrange(e, "b (h w) d -> b d h w", h=rows))

    def encoder_output(self, x: Tensor) -> Tensor:
        """Pictures to latents (batch, code_dim, rows, columns)."""
        return self.codec.quant_conv(self.codec.encoder(x))

    def decoder_output(self, e: Tensor) -> Tensor:
        """Embeddings (batch, code_dim, rows, columns) to pictures."""
        return self.codec.decoder(self.codec.post_quant_conv(e))

    def books(self) -> Tensor:
        """The table itself."""
        return self.codec.quantize.embedding.weight[None]

    def quantize(self, h: Tensor) -> Tensor:
        """The nearest code of the wrapped table."""
        table = self.codec.quantize.embedding.weight[None]
        return residual_codes(h.flatten(0, -2), table).view(*h.shape[:-1], 1)


class JanusConfigOf(ImageCodecConfig):
    model_type = "discdiff_janus"


class JanusTokenizer(ImageCodec):
    """`JanusVQVAE` (arXiv 2410.13848): codes are the nearest of the table, but what is decoded is their direction, e / |e|;
    that is the codebook.
    """

    config_class = JanusConfigOf
    wraps = "JanusVQVAE"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> JanusVQVAE:
        return JanusVQVAE(JanusVQVAEConfig(**codec))

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        stride = 2 ** (len(c.channel_multiplier) - 1)
        return {"codebook_size": c.num_embeddings, "code_dim": c.embed_dim, "channels": c.in_channels, "stride": stride}

    def books(self) -> Tensor:
        """Directions."""
        return F.normalize(self.codec.quantize.embedding.weight, dim=-1)[None]


class Emu3ConfigOf(ImageCodecConfig):
    model_type = "discdiff_emu3"


class Emu3Tokenizer(ImageCodec):
    """`Emu3VQVAE` (arXiv 2409.18869) on pictures, which it takes as films that stand still."""

    config_class = Emu3ConfigOf
    wraps = "Emu3VQVAE"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> Emu3VQVAE:
        return Emu3VQVAE(Emu3VQVAEConfig(**codec))

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        stride = 2 ** (len(c.channel_multiplier) - 1)
        return {"codebook_size": c.codebook_size, "code_dim": c.embed_dim, "channels": c.in_channels, "stride": stride}

    def encoder_output(self, x: Tensor) -> Tensor:
        film = x[:, None].repeat(1, self.codec.config.temporal_downsample_factor, 1, 1, 1)
        return self.codec.quant_conv(self.codec.encoder(film).transpose(1, 2))[:, :, 0]

    def decoder_output(self, e: Tensor) -> Tensor:
        quantised = e[:, :, None]  # (batch, code_dim, 1, rows, columns)
        latents = self.codec.post_quant_conv(quantised)
        frames = self.codec.decoder(latents.transpose(1, 2), quantised.transpose(1, 2))
        rows, columns = (n * self.config.stride for n in e.shape[2:])
        return frames.reshape(len(e), -1, self.codec.config.out_channels, rows, columns)[:, 0]


class DiffusersConfigOf(ImageCodecConfig):
    model_type = "discdiff_diffusers"


class DiffusersTokenizer(ImageCodec):
    """`VQModel` of diffusers (extra "hf"), as of aMUSEd (arXiv 2401.01808)."""

    config_class = DiffusersConfigOf
    wraps = "VQModel"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> Any:
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ValueError("VQModel is of diffusers, which is not installed: pip install 'discdiff[hf]'") from error
        return VQModel(**codec)

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        stride = 2 ** (len(c.block_out_channels) - 1)
        width = c.vq_embed_dim or c.latent_channels
        return {"codebook_size": c.num_vq_embeddings, "code_dim": width, "channels": c.in_channels, "stride": stride}

    def decoder_output(self, e: Tensor) -> Tensor:
        spatial = e if self.codec.config.norm_type == "spatial" else None
        return self.codec.decoder(self.codec.post_quant_conv(e), spatial)
