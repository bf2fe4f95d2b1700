"""Motion as tokens: vectors of frames through one-dimensional convolutions and attention to VQ or RVQ codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import Latents, ModalityTokenizer
from tokenizers_vq.blocks import Decoder, Encoder, strided
from tokenizers_vq.config import TokenizerConfig, checked, whole
from tokenizers_vq.motion.skeleton import Skeleton, bone_lengths
from tokenizers_vq.motion.vectors import FrameVectors


class MotionTokenizerConfig(TokenizerConfig):
    """channels of a frame, width of the network, strides (frames per slot is their product), residual blocks per stage
    with dilations 1, 3, 9, ..., layers of attention over time, heads; fps: frames per second, 0 where unknown.

    explicit: first channel, and the one behind the last, whose error counts explicit_weight times more; (0, 0): none.
    frames: what the channels mean, as `FrameVectors.to_dict` tells it; empty for channels without a skeleton.
    bone_weight: of the error of the decoded bones' lengths, in units of their mean, which needs `frames`.
    """

    model_type = "discdiff_motion"

    modality: str = "motion"
    quantizer: str = "rvq"
    codebook_size: int = 256
    num_quantizers: int = 4
    commitment: float = 0.02
    channels: int = 263
    width: int = 128
    strides: tuple[int, ...] = (2, 2)
    blocks: int = 3
    layers: int = 0
    heads: int = 4
    fps: float = 20.0
    explicit: tuple[int, int] = (0, 0)
    explicit_weight: float = 0.5
    bone_weight: float = 0.0
    frames: dict[str, Any] | None = None

    def check(self) -> None:
        self.strides, self.explicit = tuple(self.strides), (self.explicit[0], self.explicit[1])
        for name in ("channels", "width", "heads"):
            checked(name, getattr(self, name), whole(getattr(self, name), 1), "an integer of at least 1")
        for name in ("blocks", "layers"):
            checked(name, getattr(self, name), whole(getattr(self, name)), "an integer of at least 0")
        checked("strides", self.strides, all(whole(s, 1) for s in self.strides), "integers of at least 1")
        for name in ("fps", "explicit_weight", "bone_weight"):
            value = getattr(self, name)
            checked(name, value, isinstance(value, int | float) and 0 <= value < math.inf, "0 or more")
        first, last = self.explicit
        checked("explicit", self.explicit, 0 <= first <= last <= self.channels, f"a range of 0..{self.channels}")
        if self.frames is not None:
            told = FrameVectors.from_dict(self.frames).channels
            checked("channels", self.channels, self.channels == told, f"{told}, as frames says")
        checked("bone_weight", self.bone_weight, not self.bone_weight or self.frames is not None, "it needs frames")
        self.rate = self.fps / math.prod(self.strides)
        super().check()


class MotionTokenizer(ModalityTokenizer):
    """Motions `(batch, frames, channels)` to codes `(batch, ceil(frames / prod(strides)), num_quantizers)`.

    `decode` gives whole slots, so up to prod(strides) - 1 frames more than went in. Means and deviations of the channels
    are buffers, set by `normalise`, and saved with it. T2M-GPT (arXiv 2301.06052) and MoMask (2312.00063) have
    the convolutions, M2DM (2308.14480) attention and the orthogonal codebook (config.orthogonal).
    """

    config_class = MotionTokenizerConfig

    def __init__(self, config: MotionTokenizerConfig) -> None:
        super().__init__(config)
        shape = (1, config.channels, config.width, config.code_dim, config.strides, config.blocks, config.layers)
        self.encoder, self.decoder = Encoder(*shape, config.heads), Decoder(*shape, config.heads)
        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.vectors = None if config.frames is None else FrameVectors.from_dict(config.frames)

    @classmethod
    def of(cls, vectors: FrameVectors, statistics: Sequence[Tensor] = (), seed: int = 0, **settings: Any) -> Self:
        """A new tokenizer of a skeleton's frame vectors, their positions being the explicit channels."""
        told = {"channels": vectors.channels, "explicit": vectors.span("positions"), "frames": vectors.to_dict()}
        return cls.seeded(MotionTokenizerConfig(**{**told, **settings}), seed, statistics)

    @classmethod
    def seeded(cls, config: MotionTokenizerConfig, seed: int = 0, statistics: Sequence[Tensor] = ()) -> Self:
        """A new tokenizer whose weights are drawn from a seed; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        if statistics:
            model.normalise(*statistics)
        return model

    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and deviation (channels,) of the channels. Raises ValueError for other lengths and deviations of 0."""
        for name, x in (("mean", mean), ("std", std)):
            size = (self.config.channels,)
            checked(name, tuple(x.shape), tuple(x.shape) == size, f"shape {size}, one number per channel")
        checked(
            "std", float(std.min()), bool((std > 0).all()) and bool(torch.isfinite(std).all()), "finite and above 0"
        )
        self.mean.copy_(mean)
        self.std.copy_(std)

    @property
    def frames_per_slot(self) -> int:
        """Product of the strides."""
        return math.prod(self.config.strides)

    def token_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(batch, frames, channels) to (batch, slots, depth)."""
        if len(input_shape) != 3 or input_shape[2] != self.config.channels or input_shape[1] < 1:
            of = "" if self.vectors is None else f", vectors of a skeleton of {len(self.vectors.skeleton)} joints"
            raise ValueError(
                f"motions are {tuple(input_shape)}: this tokenizer takes (batch, frames, {self.config.channels}){of}"
            )
        return input_shape[0], -(-input_shape[1] // self.frames_per_slot), self.depth

    def check_skeleton(self, skeleton: Skeleton | None) -> None:
        """Raise ValueError unless motions of this skeleton are what the tokenizer was made for."""
        own = None if self.vectors is None else self.vectors.skeleton
        same = own is None if skeleton is None else own is not None and own.joints == skeleton.joints
        if not same or (own is not None and skeleton is not None and own.parents != skeleton.parents):
            names = [
                f"{len(s)} joints ({', '.join(s.joints[:3])}, ...)" if s else "no skeleton" for s in (skeleton, own)
            ]
            raise ValueError(
                f"motions have {names[0]}, the tokenizer was trained on {names[1]}: give motions of that one"
            )

    def encode_latents(self, x: Tensor, mask: Tensor | None = None) -> Latents:
        """Motions and the mask (batch, frames) of the frames that are data; frames missing from the last slot count as none.

        Raises ValueError for another shape, another mask, and data that are not finite.
        """
        batch, slots, _ = self.token_shape(tuple(x.shape))
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}: give bool {tuple(x.shape[:2])}, one per frame")
        if not bool(torch.isfinite(x if mask is None else x[mask]).all()):
            raise ValueError("motions hold numbers that are not finite: leave those frames out by the mask")
        missing = slots * self.frames_per_slot - x.shape[1]
        h = ((x - self.mean) / self.std).mT.to(self.dtype)
        if missing and mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask is not None:
            h = h.masked_fill(~mask[:, None], 0)  # also what is not finite there
            h, mask = F.pad(h, (0, missing)), F.pad(mask, (0, missing))
        h = self.encoder(h, mask).mT
        held = None if mask is None else strided(mask, self.frames_per_slot)
        full = torch.ones(batch, slots, dtype=torch.bool, device=x.device) if held is None else held
        return Latents(h, full, (slots,))

    def decode_embeddings(self, e: Tensor, grid: Any = None, mask: Tensor | None = None) -> Tensor:
        """Embeddings to motions (batch, slots * frames_per_slot, channels); frames of masked slots are the mean."""
        whole_ = mask is None or bool(mask.all())
        out = self.decoder(e.mT, None if whole_ else mask)
        if mask is not None and not whole_:
            out = out * mask.repeat_interleave(self.frames_per_slot, 1)[:, None].to(out.dtype)
        return out.mT * self.std + self.mean

    def losses(self, x: Tensor, reconstruction: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Smooth L1 of all channels and of the explicit ones, in deviations; of the bones' lengths."""
        y = reconstruction[:, : x.shape[1]]
        held = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.to(x.dtype)
        off = F.smooth_l1_loss((y - self.mean) / self.std, (x - self.mean) / self.std, reduction="none")
        first, last = self.config.explicit
        found = {"reconstruction": _mean(off, held)}
        if last > first and self.config.explicit_weight:
            found["explicit"] = self.config.explicit_weight * _mean(off[..., first:last], held)
        if self.config.bone_weight and self.vectors is not None:
            real, made = (self._bones(z) for z in (x, y))
            found["bones"] = self.config.bone_weight * _mean((made - real).abs() / real.mean(), held)
        return found

    def _bones(self, x: Tensor) -> Tensor:
        """Lengths of the bones that the positions' channels tell, (batch, frames, joints - 1)."""
        assert self.vectors is not None
        part: Mapping[str, Tensor] = self.vectors.split(x)
        root = F.pad(part["height"], (1, 1))[..., None, :]
        joints = torch.cat([root, part["positions"].unflatten(-1, (-1, 3))], -2)
        return bone_lengths(joints, self.vectors.skeleton.parents)


def _mean(x: Tensor, held: Tensor) -> Tensor:
    return (x * held[..., None]).sum() / (held.sum() * x.shape[-1]).clamp(min=1)
