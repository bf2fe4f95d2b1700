"""Sound as codes, several levels per slot: a convolutional autoencoder with residual quantisation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import Latents, ModalityTokenizer
from tokenizers_vq.blocks import Decoder, Encoder
from tokenizers_vq.config import TokenizerConfig, checked, whole
from tokenizers_vq.spectra import from_lapped_cosines, griffin_lim, lapped_cosines, log_mel, magnitudes, mel_distance

FEATURES = ("waveform", "log_mel")
RESOLUTIONS = ((128, 16), (256, 32), (512, 48))  # of the mel loss: samples of a window, filters
CENTRE, SCALE = -40.0, 20.0  # decibel of full scale: log-mels are about (dB + 40) / 20 inside
SLACK = 1e-3  # beyond [-1, 1], of rounding


class AudioTokenizerConfig(TokenizerConfig):
    """Mono sound of `sample_rate`, a slot standing for hop * product of `strides` samples.

    features: "waveform", coded as lapped cosines of `hop` samples and decoded to samples; or "log_mel", spectrograms of
    `mels` bands per hop from windows of `window` samples, decoded to spectrograms, from which Griffin-Lim makes sound: fewer
    bits, no phase. width: channels inside; blocks: residual convolutions per stride; layers, heads: of attention. level:
    root mean square a sound is expected to have. waveform, spectral: weights of the two losses of "waveform".
    """

    model_type = "discdiff_audio"

    modality: str = "audio"
    quantizer: str = "rvq"
    num_quantizers: int = 8
    codebook_size: int = 256
    code_dim: int = 32
    quantizer_dropout: bool = True
    decay: float = 0.95
    sample_rate: int = 8000
    features: str = "waveform"
    hop: int = 64
    mels: int = 40
    window: int = 256
    width: int = 128
    strides: tuple[int, ...] = (2,)
    blocks: int = 2
    layers: int = 0
    heads: int = 4
    level: float = 0.1
    waveform: float = 1.0
    spectral: float = 0.2

    def check(self) -> None:
        for name in ("sample_rate", "hop", "mels", "window", "width", "heads"):
            checked(name, getattr(self, name), whole(getattr(self, name), 1, 2**20), "an integer of at least 1")
        for name in ("blocks", "layers"):
            checked(name, getattr(self, name), whole(getattr(self, name), 0, 1024), "an integer of 0 or more")
        checked("features", self.features, self.features in FEATURES, f"choose from {', '.join(FEATURES)}")
        self.strides = tuple(self.strides)
        fits = bool(self.strides) and all(whole(s, 1, 64) for s in self.strides)
        checked("strides", self.strides, fits, "integers from 1 to 64, such as (2, 2)")
        fits = self.window >= self.hop and (self.window - self.hop) % 2 == 0
        checked("window", self.window, fits, f"at least hop = {self.hop} samples, and an even number more")
        fits = self.layers == 0 or (self.width % self.heads == 0 and self.width % 2 == 0)
        checked("width", self.width, fits, f"even and a multiple of the {self.heads} heads of attention")
        checked(
            "quantizer", self.quantizer, self.quantizer != "none", "rvq, vq, fsq or lfq: codes of sound are learned"
        )
        for name, least in (("level", 1e-6), ("waveform", 0.0), ("spectral", 0.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            checked(name, value, number and value >= least, f"a number of at least {least}")
        self.rate = self.sample_rate / (self.hop * math.prod(self.strides))
        super().check()


class AudioTokenizer(ModalityTokenizer):
    """Sound (batch, samples), floats in [-1, 1], mask (batch, samples) over its samples, to codes (batch, slots, depth).

    `decode` gives samples, slots * `stride` of them, where features are "waveform"; where they are "log_mel" it gives the
    spectrogram (batch, frames, mels) in decibel, which `encode` takes too (mask over frames). `sound` gives samples from
    either. SoundStream's plan (arXiv 2107.03312) over lapped cosines in place of its strided convolutions; the first `hop`
    samples have no frame before them to cancel their alias with.
    """

    config_class = AudioTokenizerConfig
    main_input_name = "x"

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__(config)
        channels = config.mels if self.spectral else config.hop
        shape = (config.width, config.code_dim, config.strides, config.blocks, config.layers, config.heads)
        self.encoder, self.decoder = Encoder(1, channels, *shape), Decoder(1, channels, *shape)

    @property
    def spectral(self) -> bool:
        """Whether spectrograms are coded, not samples."""
        return self.config.features == "log_mel"

    @property
    def frames(self) -> int:
        """Frames per slot."""
        return math.prod(self.config.strides)

    @property
    def stride(self) -> int:
        """Samples per slot."""
        return self.config.hop * self.frames

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, samples), or (batch, frames, mels) where those are coded, to (batch, slots, depth)."""
        shape = tuple(input_shape)
        spectrogram = self.spectral and len(shape) == 3 and shape[2] == self.config.mels
        if (len(shape) != 2 and not spectrogram) or shape[1] < 1:
            also = f" or (batch, frames, {self.config.mels}) in decibel" if self.spectral else ""
            raise ValueError(f"sounds are {shape}: this tokenizer takes mono sound (batch, samples){also}")
        return shape[0], -(-shape[1] // (self.frames if spectrogram else self.stride)), self.depth

    def spectrogram(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """log_mel of samples in decibel, (batch, samples) -> (batch, ceil(samples / hop), mels)."""
        c = self.config
        x = x if mask is None else x.masked_fill(~mask, 0)
        return log_mel(x, c.sample_rate, c.window, c.hop, c.mels)

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Latents of the slots; raises ValueError for another shape, type or range."""
        batch, slots, _ = self.token_shape(tuple(x.shape))
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask is {tuple(mask.shape)}: give one value per sample or frame, {tuple(x.shape[:2])}")
        samples = x.ndim == 2
        held = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        data = x.masked_fill(~(held if samples else held[..., None]), 0)
        if samples:
            check_range(data)
        unit = self.stride if samples else self.frames
        room = slots * unit - x.shape[1]
        data = F.pad(data, (0, room) if samples else (0, 0, 0, room))
        held = F.pad(held, (0, room))
        if samples:
            data = self.spectrogram(data) if self.spectral else lapped_cosines(data, self.config.hop)[:, 1:]
            held = pooled(held, self.config.hop)
        h = (data - CENTRE) / SCALE if self.spectral else data / self.config.level
        inner = None if bool(held.all()) else held
        h = self.encoder(h.mT, inner).mT
        return Latents(h, pooled(held, self.frames), (slots,))

    def decode_embeddings(self, e: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, slots, code_dim) to samples or decibel, differentiable and not cut to [-1, 1]; slots without
        data are silent.
        """
        h = self.decoder(e.mT, None if mask is None or bool(mask.all()) else mask).mT
        if self.spectral:
            found = h * SCALE + CENTRE
            return (
                found if mask is None else found.masked_fill(~mask.repeat_interleave(self.frames, 1)[..., None], -80.0)
            )
        found = from_lapped_cosines(F.pad(h, (0, 0, 1, 0))) * self.config.level
        return found if mask is None else found.masked_fill(~mask.repeat_interleave(self.stride, 1), 0)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, depth or fewer) to samples in [-1, 1], or to decibel of at least -80."""
        found = super().decode(codes, grid, mask)
        return found.clamp(min=-80.0) if self.spectral else found.clamp(-1, 1)

    @torch.no_grad()
    def sound(self, codes: Tensor, grid: tuple[int, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Codes (batch, slots, depth or fewer) to samples in [-1, 1], (batch, slots * stride)."""
        found = self.decode(codes, grid, mask)
        return self.audible(found) if self.spectral else found

    @torch.no_grad()
    def audible(self, spectrogram: Tensor) -> Tensor:
        """Decibel (batch, frames, mels) to samples (batch, frames * hop), by Griffin-Lim."""
        c = self.config
        s = magnitudes(spectrogram, c.sample_rate, c.window)
        return griffin_lim(s, c.window, c.hop).clamp(-1, 1)

    def losses(self, x: Tensor, reconstruction: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """waveform: mean |x - y|^2 / |x|^2, of one row each; spectral: mean mel distance at three resolutions / 20 dB.

        Of spectrograms: spectral, mean |x - y| / 20 dB.
        """
        c = self.config
        if self.spectral:
            if x.ndim == 2:
                x, mask = self.spectrogram(x, mask), None if mask is None else pooled(mask, c.hop)
            gap = (x - reconstruction[:, : x.shape[1]]).abs().mean(-1) / SCALE
            return {"spectral": gap.mean() if mask is None else gap[mask].mean()}
        y = reconstruction[:, : x.shape[1]]
        if mask is not None:
            x, y = x.masked_fill(~mask, 0), y.masked_fill(~mask, 0)
        quiet = x.shape[1] * (1e-2 * c.level) ** 2
        gap = (x - y).square().sum(1) / (x.square().sum(1) + quiet)
        far = [mel_distance(x, y, c.sample_rate, size, mels, mask).mean() / 20 for size, mels in RESOLUTIONS]
        return {"waveform": c.waveform * gap.mean(), "spectral": c.spectral * torch.stack(far).mean()}


def pooled(mask: Tensor, unit: int) -> Tensor:
    """Whether any of `unit` neighbours is data: (batch, n) -> (batch, ceil(n / unit))."""
    return F.pad(mask, (0, -mask.shape[1] % unit)).unflatten(1, (-1, unit)).any(-1)


def check_range(x: Any) -> None:
    """Raise ValueError unless sounds are finite floats in [-1, 1]."""
    if not x.is_floating_point():
        raise ValueError(f"sounds are {x.dtype}: give floats in [-1, 1], 16-bit samples divided by 32768")
    if x.numel():
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not (low >= -1 - SLACK and high <= 1 + SLACK):  # also true of NaN
            raise ValueError(f"sounds span {low:.4g}..{high:.4g}: give floats in [-1, 1]")
