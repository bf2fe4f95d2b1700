"""The demo's report: training curve, samples by caption, captions read, halves filled in, and two players."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.layout import Layout
from discdiff.report import ImageView, Report, TextView, gif, image_grid, record
from discdiff.sampling import iterate
from tasks.demo import digits, tasks
from tasks.demo.digits import Digits


def grey(images: Tensor) -> np.ndarray:
    """Levels 0..16 as ink on paper, uint8."""
    return (255 - images.numpy() * 255 // (digits.PIXELS.codebook_size - 1)).astype(np.uint8)


def views(where: Layout) -> list[Any]:
    """How the players show a row: the caption as text, the image as pixels."""
    columns = where.columns("image").reshape(1, -1, digits.PIXELS.depth)
    place = digits.PIXELS.decode_embeddings(columns)[0].numpy()
    levels = torch.zeros(where.vocab.total, dtype=torch.int64)
    for depth in range(digits.PIXELS.depth):
        first, count = where.vocab.range("image", depth)
        levels[first : first + count] = torch.arange(count)

    def pixels(ids: Any) -> np.ndarray:
        return grey(levels[torch.as_tensor(np.asarray(ids))])

    def symbol(token: int) -> str:
        return digits.LEXICON[token] + " " if token < len(digits.LEXICON) else "_ "

    return [TextView("caption", where.columns("caption").numpy(), symbol), ImageView("image", place, pixels)]


def write(
    folder: Path, model: Any, where: Layout, test: Digits, figures: dict[str, float], curve: dict[str, Any], seed: int
) -> Path:
    """Write `report.html` and two GIFs, and return the page's path."""
    report = Report("discdiff demo", "One masked-diffusion transformer over captions and handwritten digits")
    names = ("caption_accuracy", "digit_accuracy_64", "digit_accuracy_16", "classifier_accuracy_on_real")
    report.figures({name.replace("_", " "): f"{figures[name]:.1%}" for name in names})
    report.heading("Training").curve(curve, "seconds", "nats per token", "training loss")
    _drawings(report, model, where, seed, folder)
    _readings(report, model, where, test)
    _halves(report, model, where, test, seed)
    shown = views(where)
    drawing = record(tasks.draw_run(model, where, ["somebody drew number eight"], 64, seed))
    report.heading("An image appears").player(
        drawing, shown, 'caption given: "somebody drew number eight"; 64 ancestral steps'
    )
    denoiser, kernel = tasks.reader(model)
    reading = record(iterate(denoiser, kernel, tasks.read_batch(model, where, test.images[:1]), digits.CAPTION))
    report.heading("A caption appears").player(reading, shown, "image given; the surest word first")
    gif(drawing, shown, folder / "drawing.gif")
    gif(reading, shown, folder / "reading.gif")
    report.heading("All figures").table([(k, f"{v:.4g}") for k, v in figures.items()], ("figure", "value"))
    return report.save(folder / "report.html")


def _drawings(report: Report, model: Any, where: Layout, seed: int, folder: Path) -> None:
    labels = torch.arange(10).repeat(8)
    images = tasks.draw(model, where, labels, 64, seed + 1)
    grid = image_grid(grey(images), 10, scale=6, labels=[*digits.WORDS, *[""] * 70])
    grid.save(folder / "drawn.png")
    report.heading("Drawn from captions").image(grid, "one column per digit, 64 steps, temperature 1, no guidance")


def _readings(report: Report, model: Any, where: Layout, test: Digits) -> None:
    images = test.images[:15]
    texts = tasks.read(model, where, images)
    report.heading("Captions read from images it never saw")
    report.image(image_grid(grey(images), 5, scale=22, labels=texts), "held-out handwriting, caption by the model")


def _halves(report: Report, model: Any, where: Layout, test: Digits, seed: int) -> None:
    images = test.images[:20]
    texts = digits.captions(test.labels[:20])
    filled = tasks.fill(model, where, images, texts, slice(4, 8), 32, seed)
    hidden = images.clone()
    hidden[:, 4:] = 0
    rows = torch.cat([images[:10], hidden[:10], filled[:10]])
    report.heading("Lower halves filled in")
    report.image(image_grid(grey(rows), 10, scale=6), "top: held-out original; middle: given; bottom: filled in")
