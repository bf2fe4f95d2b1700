"""Motions as every reader leaves them, and as rows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from discdiff.config import checked
from tokenizers_vq.motion import FrameVectors

TRAIN, VALID, TEST = "train", "valid", "test"


class Clip(NamedTuple):
    """One motion: frames (frames, channels) float32, with what it shows."""

    name: str
    frames: Tensor
    caption: str
    label: str
    split: str


@dataclass(frozen=True, eq=False)
class Clips:
    """Motions of one kind: what their channels mean (None: unknown), frames per second (0: unknown), and what was left out."""

    clips: tuple[Clip, ...]
    vectors: FrameVectors | None
    fps: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked("motions", len(self.clips), bool(self.clips), "the source holds none that is long enough")
        for clip in self.clips:
            told = f"finite numbers, {self.channels} per frame: {clip.name!r} is damaged or of another kind"
            fits = clip.frames.shape[1] == self.channels and bool(torch.isfinite(clip.frames).all())
            checked("channels", clip.frames.shape[1], fits, told)

    @property
    def channels(self) -> int:
        """Length of a frame."""
        return self.clips[0].frames.shape[1]

    @property
    def labels(self) -> list[str]:
        """Different labels in alphabetical order."""
        return sorted({clip.label for clip in self.clips})

    def of(self, *splits: str) -> list[Clip]:
        """Motions of these splits. Raises ValueError where there are none."""
        found = [clip for clip in self.clips if clip.split in splits]
        checked("motions", len(found), bool(found), f"none is of split {' or '.join(splits)}")
        return found


def padded(clips: Sequence[Tensor], longest: int = 0) -> tuple[Tensor, Tensor]:
    """Clips (frames, channels) as rows (n, longest, channels), cut or filled with zeros, and their mask (n, longest)."""
    longest = longest or max(map(len, clips))
    rows = torch.stack([F.pad(clip[:longest], (0, 0, 0, max(0, longest - len(clip)))) for clip in clips])
    lengths = torch.tensor([min(len(clip), longest) for clip in clips])
    return rows, torch.arange(longest) < lengths[:, None]


def windows(clips: Sequence[Tensor], window: int) -> tuple[Tensor, Tensor]:
    """Rows (n, window, channels) that overlap by half and cover every clip to its end, and their mask (n, window)."""
    hop = max(1, window // 2)
    parts = []
    for clip in clips:
        last = max(0, len(clip) - window)
        parts += [clip[start : start + window] for start in sorted({*range(0, last, hop), last})]
    return padded(parts, window)


def held_out(number: int) -> str:
    """Split of a motion whose source names none: every tenth is kept back."""
    return VALID if number % 10 == 9 else TRAIN
