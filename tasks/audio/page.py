"""Pages that play sounds: players, waveforms, spectrograms, and curves."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from discdiff.report import Report
from discdiff.report.playback import data_uri
from tasks.audio.files import wav_bytes
from tasks.audio.sources import Clips
from tokenizers_vq.audio import AudioTokenizer
from tokenizers_vq.metrics import code_counts
from tokenizers_vq.spectra import log_mel

WIDTH, WAVE, SHADES = 240, 40, ((14, 12, 48), (108, 32, 120), (222, 84, 72), (252, 240, 180))
MOST = 8  # sounds of one section


class Heard(NamedTuple):
    """A sound (samples,) and what is said of it."""

    caption: str
    x: Tensor


def picture(x: Tensor, rate: int, mels: int = 40, size: int = 256) -> Image.Image:
    """A waveform above a log-mel spectrogram of -80 to 0 decibel, low tones below; x (samples,)."""
    columns = np.array_split(x.numpy(), min(WIDTH, len(x)))
    wave = np.full((WAVE, len(columns), 3), 245, np.uint8)
    for n, part in enumerate(columns):
        top, bottom = (int(round((1 - v) / 2 * (WAVE - 1))) for v in (part.max(), part.min()))
        wave[top : bottom + 1, n] = (51, 85, 209)
    mel = log_mel(x[None], rate, size, size // 4, mels)[0].T.flip(0)
    level = ((mel + 80) / 80).clamp(0, 1).numpy() * (len(SHADES) - 1)
    low = np.minimum(level.astype(int), len(SHADES) - 2)
    shades = np.array(SHADES, float)
    share = (level - low)[..., None]
    colours = (shades[low] * (1 - share) + shades[low + 1] * share).round().astype(np.uint8)
    parts = [
        Image.fromarray(a).resize((WIDTH, h), Image.Resampling.NEAREST) for a, h in ((wave, WAVE), (colours, 2 * mels))
    ]
    whole = Image.new("RGB", (WIDTH, sum(p.height for p in parts)))
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (0, WAVE))
    return whole


def players(heard: Sequence[Heard], rate: int) -> str:
    """Cards with a picture and a player each, as HTML."""
    cards = []
    for caption, x in heard:
        sound = base64.b64encode(wav_bytes(x, rate)).decode()
        said = escape(caption)
        cards.append(
            f'<figure class="card"><img src="{data_uri(picture(x, rate))}" width="{WIDTH}" alt="waveform and spectrogram of '
            f'{said}"><br><audio controls preload="none" style="width:{WIDTH}px" src="data:audio/wav;base64,{sound}"></audio>'
            f"<figcaption>{said}</figcaption></figure>"
        )
    return f'<div class="row" style="flex-wrap:wrap">{"".join(cards)}</div>'


def ends(x: Tensor, mask: Tensor) -> list[Tensor]:
    """Sounds without what is not theirs."""
    return [row[: max(1, int(held.sum()))] for row, held in zip(x, mask, strict=True)]


def spread(count: int, most: int = MOST) -> list[int]:
    """Up to `most` numbers below `count`, evenly apart."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def codec(
    file: Path, tokenizer: AudioTokenizer, clips: Clips, y: Tensor, codes: Tensor, found: Mapping[str, float], log: Path
) -> Path:
    """The page of a tokenizer: sounds it never saw beside what their codes give, and every figure against the depth."""
    c, depth = tokenizer.config, tokenizer.depth
    report = Report("Audio tokenizer", f"{c.rate:g} slots a second, {depth} levels of {tokenizer.codebook_size} codes")
    main = {"mel distance, dB": found[f"mel_distance_{depth}"], "bits per second": found["bits_per_second"]}
    ratio = {} if tokenizer.spectral else {"signal to noise, dB": found[f"snr_{depth}"]}
    report.figures({**ratio, **main, "codes used": f"{found['usage']:.1%}", "perplexity": found["perplexity"]})
    curves(report, log, ("loss", "waveform", "spectral", "codebook"))
    if depth > 1:
        report.heading("Depth")
        levels = range(1, depth + 1)
        for key, name in (("snr", "signal to noise"), ("mel_distance", "mel distance")):
            if f"{key}_1" in found:
                values = [found[f"{key}_{d}"] for d in levels]
                report.curve({name: (list(levels), values)}, "levels decoded", "dB", name)
    chosen = spread(len(clips.x))
    said = clips.columns.get("label", [""] * len(clips.x))
    real, coded = (ends(part[chosen], clips.mask[chosen]) for part in (clips.x, y))
    report.heading("Sounds it never saw").html(
        players([Heard(f"original {said[i]}", x) for i, x in zip(chosen, real, strict=True)], c.sample_rate)
    )
    report.heading("What their codes give").html(
        players([Heard(f"decoded {said[i]}", x) for i, x in zip(chosen, coded, strict=True)], c.sample_rate)
    )
    counts = code_counts(codes, tokenizer.codebook_size).sort(-1, descending=True).values + 0.5
    ranks = np.arange(1, tokenizer.codebook_size + 1)
    report.heading("Use of the codes").curve(
        {f"level {q + 1}": (ranks, counts[q].numpy()) for q in range(min(len(counts), 8))},
        "code, the most frequent first", "times used + 0.5", "how often each code occurs", log_y=True,
    )  # fmt: skip
    return all_figures(report, found).save(file)


def model(
    file: Path, title: str, rate: int, samples: Sequence[Heard], real: Sequence[Heard] = (),
    found: Mapping[str, float] | None = None, log: Path | None = None, tiles: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """The page of a generator: samples, real sounds where given, curves and figures."""
    report = Report(title, "sounds drawn as tokens by a masked-diffusion transformer")
    if tiles:
        report.figures(tiles)
    report.heading("Samples").html(players(samples, rate))
    if real:
        report.heading("Real sounds").html(players(real, rate))
    if log is not None:
        curves(report, log, ("loss",))
    return (all_figures(report, found) if found else report).save(file)


def all_figures(report: Report, found: Mapping[str, float]) -> Report:
    """A table of them."""
    rows = [(name, f"{value:.4g}") for name, value in found.items()]
    return report.heading("All figures").table(rows, ("figure", "value"))


def curves(report: Report, log: Path, names: Sequence[str]) -> None:
    """Parts of the loss against the step, from a trainer's log."""
    if not log.exists():
        return
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    shown = [n for n in names if lines and all(isinstance(line.get(n), int | float) for line in lines)]
    steps = [line["step"] for line in lines]
    if len(lines) > 1 and shown:
        series = {n: (steps, [max(float(line[n]), 1e-6) for line in lines]) for n in shown}
        report.heading("Training").curve(series, "step", "loss", "parts of the loss", log_y=True)
