"""The report of an image tokenizer: figures, training curves, reconstructions beside originals, and the use of the codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.report import Report, image_grid
from tokenizers_vq.image import to_bytes
from tokenizers_vq.metrics import code_counts

COLUMNS, ROWS = 12, 4


def shown(x: Tensor) -> np.ndarray:
    """uint8 pictures (n, channels, height, width) as a picture grid takes them."""
    if x.shape[1] == 1:
        return x[:, 0].numpy()
    return x[:, :3].permute(0, 2, 3, 1).contiguous().numpy()


def write(
    file: Path,
    title: str,
    x: Tensor,
    y: Tensor,
    codes: Tensor,
    size: int,
    figures: Mapping[str, float],
    log: Path | None,
) -> Path:
    """Write the page; x uint8 and y in [-1, 1] are pictures and their reconstructions."""
    report = Report(title, f"{codes.shape[1]} slots of {codes.shape[2]} level(s), {size} codes each")
    main = {"error, share of the range": figures["error"], "psnr, dB": figures["psnr"]}
    report.figures({**main, "codes used": f"{figures['usage']:.1%}", "perplexity": figures["perplexity"]})
    curves = _curves(log)
    if curves:
        report.heading("Training").curve(curves, "step", "loss", "parts of the loss", log_y=True)
    count = min(len(x), COLUMNS * ROWS)
    some = torch.linspace(0, len(x) - 1, count).long()
    pairs = torch.stack([x[some], to_bytes(y[some])])  # (2, count, channels, height, width)
    rows = torch.cat([pair for k in range(0, count, COLUMNS) for pair in pairs[:, k : k + COLUMNS]])
    scale = max(1, 56 // x.shape[-1])
    full = rows if count % COLUMNS == 0 else pairs[:, : min(count, COLUMNS)].flatten(0, 1)
    grid = image_grid(shown(full), min(count, COLUMNS), scale=scale)
    report.heading("Reconstructions").image(grid, "rows in pairs: originals it never saw, and what their codes give")
    counts = code_counts(codes, size).sort(-1, descending=True).values + 0.5
    ranks = np.arange(1, size + 1)
    report.heading("Use of the codes").curve(
        {f"level {q + 1}": (ranks, counts[q].numpy()) for q in range(min(len(counts), 8))},
        "code, the most frequent first", "times used + 0.5", "how often each code occurs", log_y=True,
    )  # fmt: skip
    report.heading("All figures").table([(k, f"{v:.4g}") for k, v in figures.items()], ("figure", "value"))
    return report.save(file)


def samples(
    file: Path,
    title: str,
    made: Tensor,
    real: Tensor | None = None,
    figures: Mapping[str, Any] | None = None,
    log: Path | None = None,
    columns: int = 10,
) -> Path:
    """A page of pictures uint8 that a model made, beside real ones where given, with its figures and training."""
    report = Report(title, f"{len(made)} pictures of {made.shape[2]} x {made.shape[3]}")
    if figures:
        report.figures({name: figures[name] for name in list(figures)[:4]})
    for name, x in (("Samples", made), ("Real pictures", real)):
        if x is not None:
            report.heading(name).image(_grid(x, columns), name.lower())
    if _curves(log):
        report.heading("Training").curve(_curves(log), "step", "loss", "parts of the loss", log_y=True)
    if figures:
        report.heading("All figures").table([(k, _number(v)) for k, v in figures.items()], ("figure", "value"))
    return report.save(file)


def filled(file: Path, x: Tensor, back: Tensor, made: Tensor, known: Tensor) -> Path:
    """A page of one picture (1, ...), its reconstruction, its codes outside the hole, and what was made of it."""
    tall, wide = x.shape[2] // known.shape[0], x.shape[3] // known.shape[1]
    shown_of = known.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
    cut = torch.where(shown_of, back, torch.full_like(back, 128))
    report = Report("A hole filled in", f"{int(known.sum())} of {known.numel()} codes are kept")
    row = torch.cat([x, back, cut, made])
    report.image(_grid(row, len(row)), "the picture, what its codes give, what is kept, and the hole made anew")
    return report.save(file)


def _grid(x: Tensor, columns: int) -> Any:
    whole = x[: len(x) - len(x) % columns] if len(x) > columns else x
    return image_grid(shown(whole), min(columns, len(whole)), scale=max(1, 56 // x.shape[-1]))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(log: Path | None) -> dict[str, tuple[Any, Any]]:
    """The parts of the loss against the step, from the trainer's log."""
    if log is None or not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    names = [
        n for n in ("loss", "pixel", "perceptual", "codebook", "discriminator") if all(n in line for line in lines)
    ]
    steps = [line["step"] for line in lines]
    return {n: (steps, [max(float(line[n]), 1e-6) for line in lines]) for n in names} if len(lines) > 1 else {}
