"""The demo's report: training curve, samples by caption, captions read, halves filled in, and two players."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.report import ImageView, Report, TextView, gif, image_grid, record
from discdiff.sampling import iterate
from tasks.demo import digits, tasks
from tasks.demo.codecs import LEVELS, Pixels
from tasks.demo.digits import Digits, Form


def grey(images: Tensor) -> np.ndarray:
    """Levels 0..16 as ink on paper, uint8."""
    return (255 - images.numpy() * 255 // (LEVELS - 1)).astype(np.uint8)


def views(form: Form) -> list[Any]:
    """How the players show a row: the caption as text, the image as pixels."""
    vocab = form.where.vocab
    code_of = torch.zeros(vocab.total, dtype=torch.int64)
    for depth in range(form.codec.depth):
        first, count = vocab.range("image", depth)
        code_of[first : first + count] = torch.arange(count)

    def pixels(ids: Any) -> np.ndarray:
        return grey(form.codec.shown(code_of[torch.as_tensor(np.asarray(ids))]))

    def symbol(token: int) -> str:
        return digits.LEXICON[token] + " " if token < len(digits.LEXICON) else "_ "

    caption = TextView("caption", form.where.columns("caption").numpy(), symbol)
    return [caption, ImageView("image", form.places().numpy(), pixels)]


def write(
    folder: Path, model: Any, form: Form, test: Digits, figures: dict[str, float], curve: dict[str, Any], seed: int
) -> Path:
    """Write `report.html` and two GIFs, and return the page's path."""
    report = Report("discdiff demo", "One masked-diffusion transformer over captions and handwritten digits")
    names = ("caption_accuracy", "digit_accuracy_64", "digit_accuracy_16", "classifier_accuracy_on_real")
    shown_first = [name for name in (*names, "classifier_accuracy_on_reconstructions") if name in figures]
    report.figures({name.replace("_", " "): f"{figures[name]:.1%}" for name in shown_first})
    report.heading("Training").curve(curve, "seconds", "nats per token", "training loss")
    if not isinstance(form.codec, Pixels):
        _reconstructions(report, form, test)
    _drawings(report, model, form, seed, folder)
    _readings(report, model, form, test)
    _halves(report, model, form, test, seed)
    shown = views(form)
    drawing = record(tasks.draw_run(model, form, ["somebody drew number eight"], 64, seed))
    report.heading("An image appears").player(
        drawing, shown, 'caption given: "somebody drew number eight"; 64 ancestral steps'
    )
    denoiser, kernel = tasks.reader(model)
    reading = record(iterate(denoiser, kernel, tasks.read_batch(model, form, test.images[:1]), digits.CAPTION))
    report.heading("A caption appears").player(reading, shown, "image given; the surest word first")
    gif(drawing, shown, folder / "drawing.gif")
    gif(reading, shown, folder / "reading.gif")
    report.heading("All figures").table([(k, f"{v:.4g}") for k, v in figures.items()], ("figure", "value"))
    return report.save(folder / "report.html")


def _reconstructions(report: Report, form: Form, test: Digits) -> None:
    images = test.images[:20]
    back = form.codec.decode(form.codec.encode(images))
    rows = torch.cat([images[:10], back[:10], images[10:], back[10:]])
    grid, size = form.codec.grid, form.codec.codebook_size
    report.heading("Pictures that come back from their codes")
    report.image(
        image_grid(grey(rows), 10, scale=6),
        f"held-out originals, and below each what {grid[0]} x {grid[1]} codes of {size} keep of it",
    )


def _drawings(report: Report, model: Any, form: Form, seed: int, folder: Path) -> None:
    labels = torch.arange(10).repeat(8)
    images = tasks.draw(model, form, labels, 64, seed + 1)
    grid = image_grid(grey(images), 10, scale=6, labels=[*digits.WORDS, *[""] * 70])
    grid.save(folder / "drawn.png")
    report.heading("Drawn from captions").image(grid, "one column per digit, 64 steps, temperature 1, no guidance")


def _readings(report: Report, model: Any, form: Form, test: Digits) -> None:
    images = test.images[:15]
    texts = tasks.read(model, form, images)
    report.heading("Captions read from images it never saw")
    report.image(image_grid(grey(images), 5, scale=22, labels=texts), "held-out handwriting, caption by the model")


def _halves(report: Report, model: Any, form: Form, test: Digits, seed: int) -> None:
    images = test.images[:20]
    texts = digits.captions(test.labels[:20])
    filled = tasks.fill(model, form, images, texts, slice(4, 8), 32, seed)
    hidden = images.clone()
    hidden[:, 4:] = 0
    rows = torch.cat([images[:10], hidden[:10], filled[:10]])
    report.heading("Lower halves filled in")
    report.image(image_grid(grey(rows), 10, scale=6), "top: held-out original; middle: given; bottom: filled in")
