"""Encodec, DAC and Mimi of transformers: waveforms (batch, samples) to codes (batch, slots, depth), coarse first."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from tokenizers_vq.audio import check_range
from tokenizers_vq.base import Latents, TokenizerOutput
from tokenizers_vq.codecs.base import CodecConfig, CodecTokenizer, projected
from tokenizers_vq.config import checked
from tokenizers_vq.nearest import residual_codes


class AudioCodecConfig(CodecConfig):
    """sampling_rate: samples per second; hop: samples per slot."""

    model_type = "discdiff_audio_codec"

    modality: str = "audio"
    sampling_rate: int = 24000
    hop: int = 320


class AudioCodec(CodecTokenizer):
    """Waveforms (batch, samples), mono, at config.sampling_rate; a slot is `hop` samples, and a sound that ends within one is
    filled up with silence. `decode` gives slots * hop samples, or `length` of them, whatever the wrapped network gives:
    the codecs disagree about where a sound ends. mask (batch, samples): what is data.
    """

    config_class = AudioCodecConfig

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, samples) to (batch, ceil(samples / hop), depth)."""
        shape = tuple(input_shape)
        if len(shape) != 2 or shape[1] < 1:
            raise ValueError(f"sounds are {shape}: this tokenizer takes mono (batch, samples)")
        return shape[0], -(-shape[1] // self.config.hop), self.depth

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """What the wrapped encoder gives, one latent per slot. Raises ValueError for another shape, type or range."""
        batch, slots, _ = self.token_shape(tuple(x.shape))
        here = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        if here.shape != x.shape or here.dtype != torch.bool:
            raise ValueError(f"mask is {here.dtype} {tuple(here.shape)}: give bool {tuple(x.shape)}")
        if x.is_floating_point() and not bool(torch.isfinite(x[here]).all()):
            raise ValueError("sounds hold numbers that are not finite")
        check_range(x[here])
        over = slots * self.config.hop - x.shape[1]
        x, here = F.pad(x.masked_fill(~here, 0), (0, over)), F.pad(here, (0, over))
        h = self.encoder_output(x[:, None].to(self.dtype)).mT
        return Latents(h, here.view(batch, slots, -1).any(-1), (slots,))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> TokenizerOutput:
        """Codes; aux["length"]: samples that were given, for `decode`."""
        return super().encode(x, mask)._replace(aux={"length": x.shape[1]})

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to waveforms of slots * hop samples."""
        x = self.decoder_output(e.mT)[:, 0]
        size = e.shape[1] * self.config.hop
        return F.pad(x, (0, max(0, size - x.shape[1])))[:, :size]

    @torch.no_grad()
    def decode(  # type: ignore[override]
        self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None, length: int = 0
    ) -> Tensor:
        """Codes (batch, slots, depth or fewer) to waveforms; length: samples to keep, 0 for all of the slots'."""
        x = super().decode(codes, grid, mask)
        return x[:, :length] if length else x

    def encoder_output(self, x: Tensor) -> Tensor:
        """Waveforms (batch, 1, samples) to latents (batch, code_dim, slots)."""
        return self.codec.encoder(x)

    def decoder_output(self, e: Tensor) -> Tensor:
        """The way back."""
        return self.codec.decoder(e)


class EncodecConfigOf(AudioCodecConfig):
    model_type = "discdiff_encodec"


class EncodecTokenizer(AudioCodec):
    """`EncodecModel` (arXiv 2210.13438), whose codes are (chunks, batch, depth, slots), in one chunk.

    Raises ValueError for those that divide every chunk by its loudness (48 kHz): their codes alone do not say how loud it
    was; and for stereo.
    """

    config_class = EncodecConfigOf
    wraps = "EncodecModel"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> EncodecModel:
        config = EncodecConfig(**codec)
        mono = not config.normalize and config.chunk_length_s is None and config.audio_channels == 1
        shown = {
            "normalize": config.normalize,
            "chunk_length_s": config.chunk_length_s,
            "channels": config.audio_channels,
        }
        checked("codec", shown, mono, "only mono in one chunk without normalisation is a function of its codes")
        return EncodecModel(config)

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        hop = math.prod(c.upsampling_ratios)
        return {
            "codebook_size": c.codebook_size, "num_quantizers": codec.quantizer.num_quantizers, "code_dim": c.codebook_dim,
            "sampling_rate": c.sampling_rate, "hop": hop, "rate": c.sampling_rate / hop,
        }  # fmt: skip

    def books(self) -> Tensor:
        """The tables themselves."""
        return torch.stack([layer.codebook.embed for layer in self.codec.quantizer.layers])


class DacConfigOf(AudioCodecConfig):
    model_type = "discdiff_dac"


class DacTokenizer(AudioCodec):
    """`DacModel` (arXiv 2306.06546), codes (batch, depth, slots). A level projects the residual down, takes the code of the
    nearest direction, and projects its vector up: the codebook is that projection, W e + b.
    """

    config_class = DacConfigOf
    wraps = "DacModel"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> DacModel:
        return DacModel(DacConfig(**codec))

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        return {
            "codebook_size": c.codebook_size, "num_quantizers": c.n_codebooks, "code_dim": c.hidden_size,
            "sampling_rate": c.sampling_rate, "hop": math.prod(c.downsampling_ratios),
            "rate": c.sampling_rate / math.prod(c.downsampling_ratios),
        }  # fmt: skip

    def books(self) -> Tensor:
        """Projected codes."""
        return torch.stack([projected(q.codebook.weight, q.out_proj) for q in self.codec.quantizer.quantizers])

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """The wrapped quantiser's codes: level by level the largest cosine."""
        rest, found = e.flatten(0, -2), []
        for level, q in enumerate(self.codec.quantizer.quantizers[: self.depth]):
            down = F.normalize(projected(rest, q.in_proj))
            found.append(residual_codes(down, F.normalize(q.codebook.weight)[None])[:, 0])
            rest = rest - self.codebook[level][found[-1]]
        return torch.stack(found, -1).view(*e.shape[:-1], -1)


class MimiConfigOf(AudioCodecConfig):
    model_type = "discdiff_mimi"


class MimiTokenizer(AudioCodec):
    """`MimiModel` (arXiv 2410.00037), codes (batch, depth, slots): the first `num_semantic_quantizers` levels and the others
    quantise the same latent, each group by itself; the codebook is projected to the latent's width.
    """

    config_class = MimiConfigOf
    wraps = "MimiModel"

    @classmethod
    def build(cls, codec: dict[str, Any]) -> MimiModel:
        return MimiModel(MimiConfig(**codec))

    @classmethod
    def settings(cls, codec: Any) -> dict[str, Any]:
        c = codec.config
        return {
            "codebook_size": c.codebook_size, "num_quantizers": c.num_quantizers, "code_dim": c.hidden_size,
            "sampling_rate": c.sampling_rate, "hop": round(c.sampling_rate / c.frame_rate), "rate": float(c.frame_rate),
        }  # fmt: skip

    @property
    def groups(self) -> tuple[Any, Any]:
        """Semantic and acoustic levels."""
        q = self.codec.quantizer
        return q.semantic_residual_vector_quantizer, q.acoustic_residual_vector_quantizer

    def books(self) -> Tensor:
        """Projected codes of both groups."""
        return torch.stack([projected(table, group.output_proj) for group in self.groups for table in tables(group)])

    def embeddings_to_codes(self, e: Tensor) -> Tensor:
        """The wrapped quantiser's codes."""
        flat = e.flatten(0, -2)
        found = [
            residual_codes(projected(flat, group.input_proj), torch.stack(tables(group)))
            for group in self.groups
            if len(group.layers)
        ]
        return torch.cat(found, -1)[:, : self.depth].reshape(*e.shape[:-1], -1)

    def encoder_output(self, x: Tensor) -> Tensor:
        codec = self.codec
        if hasattr(codec.encoder, "downsample"):  # as in later versions of transformers, the whole way
            return codec.encoder(x).latents
        return codec.downsample(codec.encoder_transformer(codec.encoder(x).mT).last_hidden_state.mT)

    def decoder_output(self, e: Tensor) -> Tensor:
        codec = self.codec
        if hasattr(codec.decoder, "upsample"):
            return codec.decoder(e).audio_values
        return codec.decoder(codec.decoder_transformer(codec.upsample(e).mT).last_hidden_state.mT)


def tables(group: Any) -> list[Tensor]:
    """Codes of the levels of a group, as its moving averages say."""
    books = [layer.codebook for layer in group.layers]
    return [b.embed_sum / b.cluster_usage.clamp(min=b.epsilon)[:, None] for b in books]
