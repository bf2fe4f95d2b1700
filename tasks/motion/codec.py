"""Train and evaluate a motion tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.cli import parse
from discdiff.config import checked, from_dict, read_json, to_dict
from tasks.common.fitting import Arrays, Reconstruction, fit
from tasks.common.folders import MODEL, TASK, write_task
from tasks.common.sections import training
from tasks.motion import page
from tasks.motion.clips import TEST, TRAIN, VALID, Clip, Clips, padded, windows
from tasks.motion.settings import Codec, Motions, TokenizerOutput, Windows
from tasks.motion.sources import load
from tokenizers_vq.base import TokenizerOutput as Encoded
from tokenizers_vq.metrics import code_counts, perplexity, usage
from tokenizers_vq.motion import MotionTokenizer, MotionTokenizerConfig, bone_variation, mpjpe, statistics

Training = training(steps=1500, batch_size=64, learning_rate=1e-3, warmup=50, ema=0.995)


def build(settings: Any, clips: Clips, seed: int = 0) -> MotionTokenizer:
    """A new tokenizer of motions, with the means and deviations of those to train on."""
    frames = [clip.frames for clip in clips.of(TRAIN)]
    told: dict[str, Any] = {"channels": clips.channels, "fps": clips.fps, **asdict(settings)}
    if clips.vectors is not None:
        told |= {"explicit": clips.vectors.span("positions"), "frames": clips.vectors.to_dict()}
    config = MotionTokenizerConfig(**told)
    return MotionTokenizer.seeded(config, seed, statistics(frames, clips.vectors))


def fit_codec(
    tokenizer: MotionTokenizer, clips: Clips, window: int, settings: Any, folder: Path, resume: Any = None
) -> Any:
    """The tokenizer trained on windows of the training motions, saved to `folder`."""
    x, mask = windows([clip.frames for clip in clips.of(TRAIN)], window)
    return fit(tokenizer, Reconstruction(), settings, Arrays(x=x, mask=mask), folder, resume=resume)


def opened(folder: Path) -> tuple[MotionTokenizer, Motions]:
    """A trained tokenizer and what it was trained on. Raises ValueError for a folder that `tokenizer train` did not write."""
    if not (folder / TASK).is_file() or not (folder / MODEL / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds no motion tokenizer: run python -m tasks.motion tokenizer train --out it"
        )
    stored = read_json(folder / TASK)
    checked("tokenizer", str(folder), "generator" not in stored, "that is a model: give what tokenizer train wrote")
    settings = from_dict(stored.get("motions", {}), {"Motions": Motions})
    if not isinstance(settings, Motions):
        raise ValueError(f"{str(folder / TASK)!r} names no motions: it is no tokenizer's")
    return MotionTokenizer.from_pretrained(folder / MODEL), settings


def load_for(tokenizer: MotionTokenizer, settings: Motions) -> Clips:
    """Motions that a tokenizer reads. Raises ValueError for those of another skeleton or with other channels."""
    clips = load(settings, tokenizer.vectors)
    tokenizer.check_skeleton(None if clips.vectors is None else clips.vectors.skeleton)
    tokenizer.token_shape((1, 1, clips.channels))
    return clips


@torch.no_grad()
def encode(tokenizer: MotionTokenizer, frames: Sequence[Tensor], longest: int = 0, batch: int = 64) -> Encoded:
    """Codes (n, slots, depth) of motions and the mask (n, slots) of slots that hold data, `batch` motions at a time."""
    x, mask = padded(frames, longest)
    device = tokenizer.device
    parts = [tokenizer.encode(p.to(device), m.to(device)) for p, m in zip(x.split(batch), mask.split(batch))]
    codes, held = torch.cat([p.codes.cpu() for p in parts]), torch.cat([p.mask.cpu() for p in parts])
    return Encoded(codes, held, parts[0].grid, {})


@torch.no_grad()
def decode(
    tokenizer: MotionTokenizer, codes: Tensor, held: Tensor, lengths: Sequence[int], batch: int = 64
) -> list[Tensor]:
    """Motions of these lengths from their codes."""
    device = tokenizer.device
    parts = [
        tokenizer.decode(c.to(device), (c.shape[1],), m.to(device)).cpu()
        for c, m in zip(codes.split(batch), held.split(batch))
    ]
    return [row[:length] for row, length in zip(torch.cat(parts), lengths)]


def measured(tokenizer: MotionTokenizer, clips: Sequence[Clip]) -> dict[str, float]:
    """Errors by depth, how the codes are used, and how much the bones' lengths vary before and after projection."""
    frames, vectors = [clip.frames for clip in clips], tokenizer.vectors
    lengths = [len(each) for each in frames]
    out = encode(tokenizer, frames)
    counts = code_counts(out.codes, tokenizer.codebook_size, out.mask)
    found: dict[str, float] = {"usage": float(usage(counts).mean()), "perplexity": float(perplexity(counts).mean())}
    if tokenizer.config.rate:
        bits = tokenizer.depth * float(torch.tensor(float(tokenizer.codebook_size)).log2())
        found["bits_per_second"] = tokenizer.config.rate * bits
    std = tokenizer.std.cpu()
    for depth in range(1, tokenizer.depth + 1):
        made = decode(tokenizer, out.codes[..., :depth], out.mask, lengths)
        off = torch.cat([((y - x) / std).square().mean(1) for x, y in zip(frames, made)])
        found[f"error_depth_{depth}"] = float(off.mean().sqrt())
        if vectors is not None:
            pairs = [(vectors.recover(y), vectors.recover(x)) for x, y in zip(frames, made)]
            for name, rooted in (("mm", True), ("mm_in_the_world", False)):
                found[f"{name}_depth_{depth}"] = float(torch.cat([mpjpe(y, x, rooted) for y, x in pairs]).mean())
    if vectors is not None:
        parents = vectors.skeleton.parents
        rigid = [(vectors.skeleton.project(y), x) for y, x in pairs]
        found["bone_variation_of_data"] = sum(bone_variation(x, parents) for _, x in pairs) / len(pairs)
        found["bone_variation"] = sum(bone_variation(y, parents) for y, _ in pairs) / len(pairs)
        found["bone_variation_projected"] = sum(bone_variation(y, parents) for y, _ in rigid) / len(pairs)
        found["mm_projected"] = float(torch.cat([mpjpe(y, x, True) for y, x in rigid]).mean())
    return found


def train(prog: str, argv: Sequence[str]) -> None:
    """Train and evaluate. An interrupted run goes on when the command is repeated."""
    sections = {"motions": Motions, "codec": Codec, "windows": Windows, "training": Training, "output": TokenizerOutput}
    chosen = parse(prog, argv, sections)
    folder, settings = Path(chosen["output"].out), chosen["training"]
    clips = load(chosen["motions"])
    tokenizer = build(chosen["codec"], clips, settings.seed)
    tell(clips)
    parts = {"motions": to_dict(chosen["motions"]), "windows": to_dict(chosen["windows"])}
    write_task(folder, {**parts, "codec": tokenizer.config.to_diff_dict()})
    tokenizer = fit_codec(tokenizer, clips, chosen["windows"].window, settings, folder / MODEL, resume="auto")
    report(folder, tokenizer, clips)


def evaluate(prog: str, argv: Sequence[str]) -> None:
    """Figures and page of a trained tokenizer on the held-out motions of its source, or of another (--source)."""
    chosen = parse(prog, argv, {"motions": Motions}, ("folder",))
    folder = Path(chosen["folder"])
    tokenizer, settings = opened(folder)
    clips = load_for(tokenizer, overridden(settings, chosen["motions"], argv))
    tell(clips)
    report(folder, tokenizer, clips)


def overridden(stored: Motions, given: Motions, argv: Sequence[str]) -> Motions:
    """What a folder was trained on, with the flags that were given in the place of its own."""
    flags = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    return replace(stored, **{f.name: getattr(given, f.name) for f in fields(Motions) if f.name in flags})


def write_figures(folder: Path, found: dict[str, float]) -> None:
    """Figures to metrics.json, and printed."""
    (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:>28}{value:12.4f}")


def report(folder: Path, tokenizer: MotionTokenizer, clips: Clips) -> None:
    """Figures and page of the held-out motions."""
    kept = [clip for clip in clips.clips if clip.split in (VALID, TEST)] or list(clips.clips)
    found = measured(tokenizer, kept)
    write_figures(folder, found)
    shown: tuple[Any, ...] = ()
    if tokenizer.vectors is not None:
        some, skeleton = page.spread(kept, 4), tokenizer.vectors.skeleton
        out = encode(tokenizer, [clip.frames for clip in some])
        made = decode(tokenizer, out.codes, out.mask, [len(clip.frames) for clip in some])
        originals = [(clip.caption, tokenizer.vectors.recover(clip.frames)) for clip in some]
        shown = originals, [("from its codes", skeleton.project(tokenizer.vectors.recover(y))) for y in made]
    print(page.codec(folder / "report.html", tokenizer, found, folder / f"{MODEL}_training" / "metrics.jsonl", *shown))


def tell(clips: Clips) -> None:
    """Print how many motions there are, and what was left out."""
    for note in clips.notes:
        print(f"note: {note}")
    counts = {split: sum(clip.split == split for clip in clips.clips) for split in (TRAIN, VALID, TEST)}
    print(", ".join(f"{count} {split}" for split, count in counts.items() if count) + " motions", flush=True)
