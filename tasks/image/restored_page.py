"""Reports of restored and of edited pictures: before and after, how well they fit, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discdiff.report import Report, image_grid
from discdiff.types import Info
from tasks.image import page
from tasks.image.fidelity import Shown
from tokenizers_vq.image import to_bytes

MOST = 8  # pictures of a row
SAID = {"original": "original", "codes": "its codes", "restored": "restored", "mean": "mean"}


def spent(info: Info, seconds: float) -> dict[str, float]:
    """What a run took: wall seconds, network calls and the rows they fed, and the rows that were decoded."""
    rows = {"nfe": info.nfe, "network_rows": info.network_rows, "decoded": info.decoded}
    return {"seconds": seconds, **{name: int(value) for name, value in rows.items()}}


def _told(cost: Mapping[str, float]) -> str:
    calls = f"{cost['nfe']} network calls, {cost['network_rows']} rows fed, {cost['decoded']} rows decoded"
    return f"{cost['seconds']:.1f} seconds, {calls}"


def restored(
    file: Path,
    title: str,
    pictures: Mapping[str, Tensor],
    y: Tensor,
    rows: Sequence[Mapping[str, Any]],
    sigma: float,
    cost: Mapping[str, float],
    trail: Shown | None,
) -> Path:
    """Write the page; pictures in [-1, 1] by name, y the measurement (1, ...), rows those of `fidelity.figures`, cost
    that of `spent`.
    """
    report = Report(title, _told(cost))
    made = [row for row in rows if row["picture"].startswith("restored")]

    def mean(name: str) -> float | None:
        values = [row[name] for row in made if row[name] is not None]
        return sum(values) / len(values) if values else None

    report.figures(
        {
            "psnr, dB": mean("psnr"),
            "ssim": mean("ssim"),
            "error of A(x) against y": mean("measurement_error"),
            "noise": sigma,
        }
    )
    report.heading("Before and after")
    if y.ndim == 4 and y.shape[1] == pictures["restored"].shape[1]:
        report.image(_row([y]), "what was measured")
    names = [n for n in ("original", "restored", "mean", "codes") if n in pictures]
    shown = [pictures[n][:MOST] for n in names]
    labels = [SAID[n] for n, x in zip(names, shown) for _ in range(len(x))]
    report.image(
        _row(shown, labels), "the picture, what was made of the measurement, and what the picture's own codes give"
    )
    table = [(r["picture"], *(_cell(r[n]) for n in ("psnr", "ssim", "measurement_error"))) for r in rows]
    report.table(table, ("picture", "psnr, dB", "ssim", "error of A(x) against y"))
    report.text(
        f"The error of the measurement is in units of y, whose noise is {sigma:g}: a picture that fits it better than that "
        "fits the noise. The row of the codes is what the tokenizer makes of the original itself."
    )
    return _trail(report, trail, "error of A(x) against y").save(file)


def edited(
    file: Path,
    title: str,
    x: Tensor,
    back: Tensor,
    kept: Tensor,
    made: Tensor,
    reference: Tensor | None,
    errors: Mapping[str, float],
    cost: Mapping[str, float],
    trail: Shown | None,
) -> Path:
    """Write the page of a picture (1, ...), its reconstruction, the pixels (height, width) that are kept, what was made of
    it, the reference with distances of style where there is one, and what it took.
    """
    report = Report(title, f"{float(kept.double().mean()):.0%} of the picture is kept; {_told(cost)}")
    report.heading("Before and after")
    row = [x, back, torch.where(kept, back, 0.0), made[:MOST]]
    labels = ["original", "its codes", "what is kept", *["edited"] * len(row[-1])]
    report.image(_row(row, labels), "the picture, what its codes give, what is kept, and the rest made anew")
    if reference is not None:
        report.image(_row([reference]), "the reference")
        report.table([(name, value) for name, value in errors.items()], ("region of", "distance of style"))
    return _trail(report, trail, "distance of style").save(file)


def _trail(report: Report, trail: Shown | None, what: str) -> Report:
    """What was expected on the way to the first picture."""
    if trail is None:
        return report
    labels = [f"t = {time:.2f}" for time in trail.times]
    report.heading("On the way").image(
        _row([trail.pictures], labels), "what is expected, from noise (1) to the end (0)"
    )
    if len(trail.errors) > 1:
        calls = list(range(1, len(trail.errors) + 1))
        report.curve({"expected": (calls, [max(e, 1e-9) for e in trail.errors])}, "prediction", what, what, log_y=True)
    return report


def _row(pictures: Sequence[Tensor], labels: Sequence[str] | None = None) -> Any:
    """Pictures in [-1, 1] beside one another."""
    x = to_bytes(torch.cat([each.cpu() for each in pictures]))
    return image_grid(page.shown(x), len(x), scale=max(1, 72 // x.shape[-1]), labels=labels)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
