"""Train and evaluate a tokenizer of sound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.cli import parse
from discdiff.config import checked, from_dict, read_json
from tasks.audio import page
from tasks.audio.settings import Codec, CodecTraining, Nothing, Sounds, TokenizerOutput, Windows
from tasks.audio.sources import Clips, load
from tasks.common.fitting import Arrays, Reconstruction, fit
from tasks.common.folders import MODEL, TASK, write_task
from tokenizers_vq.audio import AudioTokenizer, AudioTokenizerConfig
from tokenizers_vq.base import TokenizerOutput as Codes
from tokenizers_vq.metrics import code_counts, perplexity, signal_to_noise, usage
from tokenizers_vq.spectra import mel_distance


def windows(clips: Clips, size: int) -> Arrays:
    """Sounds cut into rows of `size` samples, x and mask; rows with less than an eighth of sound are left out.

    Raises ValueError where none is left.
    """
    room = -clips.x.shape[1] % size
    x, mask = (torch.nn.functional.pad(part, (0, room)).unflatten(1, (-1, size)).flatten(0, 1) for part in clips[:2])
    kept = mask.sum(1) >= size / 8
    fewer = "no sound fills an eighth of it: give a smaller --window_seconds"
    checked("window_seconds", f"{size} samples", bool(kept.any()), fewer)
    return Arrays(x=x[kept], mask=mask[kept])


def build(config: AudioTokenizerConfig, seed: int) -> AudioTokenizer:
    """A new tokenizer whose first weights are a function of the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return AudioTokenizer(config)


def fit_codec(
    tokenizer: AudioTokenizer, clips: Clips, seconds: float, settings: Any, folder: Path, resume: str | None = None
) -> AudioTokenizer:
    """The tokenizer trained on windows of the sounds, saved to `folder`."""
    slots = max(1, round(seconds * tokenizer.config.rate))
    return fit(tokenizer, Reconstruction(), settings, windows(clips, slots * tokenizer.stride), folder, resume=resume)


def encode(tokenizer: AudioTokenizer, x: Tensor, mask: Tensor, batch: int = 64) -> Codes:
    """Codes of many sounds, a bounded number at a time."""
    device = tokenizer.device
    parts = [
        tokenizer.encode(x[i : i + batch].to(device), mask[i : i + batch].to(device)) for i in range(0, len(x), batch)
    ]
    return Codes(torch.cat([p.codes.cpu() for p in parts]), torch.cat([p.mask.cpu() for p in parts]), parts[0].grid, {})


def sounds_of(tokenizer: AudioTokenizer, codes: Tensor, mask: Tensor, samples: int, batch: int = 64) -> Tensor:
    """Sound (n, samples) of many rows of codes, a bounded number at a time."""
    device = tokenizer.device
    parts = [
        tokenizer.sound(c.to(device), (codes.shape[1],), m.to(device)).cpu()
        for c, m in zip(codes.split(batch), mask.split(batch), strict=True)
    ]
    y = torch.cat(parts)[:, :samples]
    return torch.nn.functional.pad(y, (0, samples - y.shape[1]))


def figures(tokenizer: AudioTokenizer, clips: Clips) -> tuple[dict[str, float], Tensor, Codes]:
    """Signal-to-noise ratio (of waveforms) and mel distance in decibel at every depth, use of the codes, bits per second;
    the reconstructions at full depth, and the codes.

    Of spectrograms also what Griffin-Lim alone loses, "mel_distance_uncoded".
    """
    c, rate = tokenizer.config, tokenizer.config.sample_rate
    out, samples = encode(tokenizer, clips.x, clips.mask), clips.x.shape[1]
    found: dict[str, float] = {}
    y = clips.x
    for depth in range(1, tokenizer.depth + 1):
        y = sounds_of(tokenizer, out.codes[..., :depth], out.mask, samples) * clips.mask
        if not tokenizer.spectral:
            found[f"snr_{depth}"] = float(signal_to_noise(clips.x, y).mean())
        found[f"mel_distance_{depth}"] = float(mel_distance(clips.x, y, rate, mask=clips.mask).mean())
    if tokenizer.spectral:
        shown = tokenizer.audible(tokenizer.spectrogram(clips.x, clips.mask).cpu())[:, :samples] * clips.mask
        found["mel_distance_uncoded"] = float(mel_distance(clips.x, shown, rate, mask=clips.mask).mean())
    counts = code_counts(out.codes, tokenizer.codebook_size, out.mask)
    found |= {"usage": float(usage(counts).mean()), "perplexity": float(perplexity(counts).mean())}
    found["bits_per_second"] = c.rate * tokenizer.depth * float(torch.tensor(float(tokenizer.codebook_size)).log2())
    return found, y, out


def train(prog: str, argv: Sequence[str]) -> None:
    """Train and evaluate. An interrupted run goes on when the command is repeated."""
    sections = {"sounds": Sounds, "codec": Codec, "windows": Windows, "training": CodecTraining}
    chosen = parse(prog, argv, {**sections, "output": TokenizerOutput})
    sounds, folder, settings = chosen["sounds"], Path(chosen["output"].out), chosen["training"]
    config = AudioTokenizerConfig(sample_rate=sounds.sample_rate, **asdict(chosen["codec"]))
    tokenizer = build(config, settings.seed)
    clips, valid = load(sounds)
    tell(clips, valid, sounds)
    write_task(folder, {"sounds": sounds, "windows": chosen["windows"], "codec": config.to_diff_dict()})
    seconds = chosen["windows"].window_seconds
    tokenizer = fit_codec(tokenizer, clips, seconds, settings, folder / MODEL, resume="auto")
    _report(folder, tokenizer, valid)


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Figures and page of a trained folder, on its validation sounds."""
    folder = Path(parse(prog, argv, {"": Nothing}, ("folder",))["folder"])
    tokenizer, sounds = opened(folder)
    _report(folder, tokenizer, load(sounds)[1])


def opened(folder: Path) -> tuple[AudioTokenizer, Sounds]:
    """What `train` left in a folder. Raises ValueError for any other folder, and where training has not ended."""
    if not (folder / TASK).is_file() or not (folder / MODEL / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds no audio tokenizer: run python -m tasks.audio tokenizer train --out it, to its end"
        )
    stored = read_json(folder / TASK)
    checked("tokenizer", str(folder), "generator" not in stored, "that is a model: give what tokenizer train wrote")
    sounds = from_dict(stored.get("sounds", {}), {"Sounds": Sounds})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AudioTokenizer.from_pretrained(folder / MODEL).to(device), sounds


def rates_fit(tokenizer: AudioTokenizer, sounds: Sounds) -> None:
    """Raise ValueError for sounds of a rate the tokenizer was not trained on."""
    wanted = tokenizer.config.sample_rate
    checked("sample_rate", sounds.sample_rate, sounds.sample_rate == wanted, f"{wanted}, as the tokenizer has")


def write_figures(folder: Path, found: Mapping[str, float]) -> None:
    """Print figures and write them to metrics.json."""
    (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:>36}{value:12.4f}")


def tell(clips: Clips, valid: Clips, sounds: Sounds) -> None:
    """Print how much there is."""
    seconds = float(clips.mask.sum()) / sounds.sample_rate
    print(f"{len(clips.x):,} training sounds, {seconds:,.0f} s, and {len(valid.x):,} validation sounds", flush=True)


def _report(folder: Path, tokenizer: AudioTokenizer, valid: Clips) -> None:
    found, y, out = figures(tokenizer, valid)
    write_figures(folder, found)
    log = folder / f"{MODEL}_training" / "metrics.jsonl"
    print(page.codec(folder / "report.html", tokenizer, valid, y, out.codes, found, log))
