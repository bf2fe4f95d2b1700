"""A classifier of sounds by what is said of them, which judges reconstructions and samples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from discdiff.config import checked
from tasks.audio.settings import Judged
from tasks.audio.sources import Clips
from tasks.common.judge import Judge, predicted, train_judge
from tokenizers_vq.audio import pooled
from tokenizers_vq.spectra import log_mel

WINDOW, HOP, MELS = 0.032, 0.016, 40  # seconds, seconds, bands


def features(x: Tensor, mask: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """What a judge sees of sounds (n, samples): (dB + 40) / 20 of 40 mel bands, (n, 40, frames), and the mask (n, frames)."""
    hop = max(1, round(HOP * rate))
    size = hop + 2 * round((WINDOW - HOP) * rate / 2)
    mel = log_mel(x * mask, rate, size, hop, MELS)
    return ((mel + 40) / 20).mT.contiguous(), pooled(mask, hop)


def fit_judge(clips: Clips, column: str, rate: int, judged: Judged) -> tuple[Judge, list[str]]:
    """A classifier of a column, trained on real sounds alone, clean and with white noise, and the values by number.

    Raises ValueError for other numbers of values than 2 to 1000.
    """
    said = clips.column(column)
    labels = sorted(set(said))
    checked(column, labels[:3], 1 < len(labels) <= 1000, "between 2 and 1000 values, so that they can be told apart")
    given = [clips.x] + [noisy(clips.x, clips.mask, judged.judge_seed + copy) for copy in range(judged.noisy_copies)]
    parts = [features(x, clips.mask, rate) for x in given]
    x, mask = (torch.cat(column) for column in zip(*parts, strict=True))
    truth = torch.tensor([labels.index(each) for each in said]).repeat(len(given))
    with tempfile.TemporaryDirectory() as folder:  # of its checkpoints
        judge = train_judge(x, truth, Path(folder) / "judge", mask, steps=judged.judge_steps, seed=judged.judge_seed)
    return judge, labels


def noisy(x: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Sounds (n, samples) with white noise 0 to 30 dB below them, so that a judge hears what is said, not how clean it is."""
    draw = torch.Generator().manual_seed(seed)
    below = 30 * torch.rand(len(x), 1, generator=draw)
    power = (x.square() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    noise = torch.randn(x.shape, generator=draw) * power.sqrt() * 10 ** (-below / 20)
    return (x + noise).clamp(-1, 1) * mask


def right(judge: Judge, labels: Sequence[str], x: Tensor, mask: Tensor, said: Sequence[str], rate: int) -> Tensor:
    """Whether every sound is judged to be what is said of it, (n,) bool. Raises ValueError for a value the judge never saw."""
    unknown = sorted(set(said) - set(labels))
    checked("label", unknown[:3], not unknown, f"the judge knows {', '.join(labels)}")
    truth = torch.tensor([labels.index(each) for each in said])
    return predicted(judge, *features(x, mask, rate)) == truth


def share(hits: Tensor) -> tuple[float, float]:
    """The share of hits and its standard error."""
    p = hits.double().mean()
    return float(p), float((p * (1 - p) / len(hits)).sqrt())
