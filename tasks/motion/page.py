"""Reports of motions: stick figures that move, in one HTML file or a GIF."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from discdiff.report import Report
from tasks.motion.clips import Clip
from tokenizers_vq.motion import MotionTokenizer

PAPER, GROUND, MIDDLE, LEFT, RIGHT, INK = "#ffffff", "#e5e3dc", "#454a57", "#3355d1", "#cf3863", "#1b1d23"
SIDE, STRIP, TURN = 170, 20, 0.6  # pixels of a panel, of its label; radians the camera stands aside


def animation(
    motions: Sequence[tuple[str, Tensor]], parents: Sequence[int], fps: float = 20.0, columns: int = 4, every: int = 2
) -> bytes:
    """Motions (frames, joints, 3) with their labels as one GIF; the camera follows each root, a grid shows the ground.

    Every `every`-th frame is drawn. Motions end at their last frame and wait for the longest.
    """
    columns = min(columns, len(motions))
    size = columns * SIDE, -(-len(motions) // columns) * (SIDE + STRIP)
    count = max(len(positions) for _, positions in motions)
    low = min(float(p[..., 1].min()) for _, p in motions)
    tall = max(max(float(p[..., 1].max()) for _, p in motions) - low, 0.1)
    lines = [_limbs(positions, parents, low, tall) for _, positions in motions]
    font = ImageFont.load_default(11)
    pictures = []
    for frame in range(0, count, every):
        picture = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(picture)
        for n, (label, positions) in enumerate(motions):
            x, y = n % columns * SIDE, n // columns * (SIDE + STRIP)
            k = min(frame, len(positions) - 1)
            for color, width, points in lines[n][k]:
                draw.line([(x + u, y + STRIP + v) for u, v in points], color, width)
            draw.rectangle((x, y, x + SIDE, y + STRIP), PAPER)
            draw.text((x + SIDE / 2, y + STRIP / 2), _cut(label, font), INK, font, anchor="mm")
        pictures.append(picture.quantize(16))
    file = io.BytesIO()
    pause = max(20, round(1000 * every / fps))
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=pause, loop=0)
    return file.getvalue()


def _limbs(positions: Tensor, parents: Sequence[int], low: float, tall: float) -> list[list[tuple[str, int, Any]]]:
    """Lines of every frame: the ground's grid, then bones, the far ones first; the side of a bone is where it starts out."""
    p = positions.double()
    turn = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=p.dtype)
    cosine, sine = torch.tensor(TURN).cos(), torch.tensor(TURN).sin()
    turn[0, 0] = turn[2, 2] = cosine
    turn[0, 2], turn[2, 0] = -sine, sine
    root = p[:, :1] * torch.tensor([1.0, 0.0, 1.0])
    scale = 0.8 * SIDE / max(tall, 1e-6)

    def seen(points: Tensor) -> Tensor:
        q = points @ turn
        return torch.stack([SIDE / 2 + scale * q[..., 0], SIDE * 0.88 - scale * (q[..., 1] - 0.2 * q[..., 2])], -1)

    flat = seen(torch.cat([p[..., :1], p[..., 1:2] - low, p[..., 2:]], -1) - root)
    depth = ((p - root) @ turn)[..., 2]
    first = p[0] - p[0, 0]
    colors = [
        MIDDLE if abs(float(first[j, 0])) < 0.03 else LEFT if first[j, 0] > 0 else RIGHT for j in range(p.shape[1])
    ]
    lines = []
    reach = torch.tensor([-1.0, 1.0]) * tall * 0.6
    for k in range(len(p)):
        rows: list[tuple[str, int, Any]] = []
        for axis in (0, 2):
            step = 0.25 * tall
            start = -float(root[k, 0, axis]) % step
            for at in torch.arange(-2, 3) * step + start:
                ends = torch.zeros(2, 3, dtype=p.dtype)
                ends[:, axis], ends[:, 2 - axis] = at, reach.double()
                rows.append((GROUND, 1, [tuple(x) for x in seen(ends).tolist()]))
        order = sorted(range(1, p.shape[1]), key=lambda j: float(depth[k, j]))
        rows += [(colors[j], 3, [tuple(x) for x in flat[k, [parents[j], j]].tolist()]) for j in order]
        lines.append(rows)
    return lines


def figure(motions: Sequence[tuple[str, Tensor]], parents: Sequence[int], caption: str, fps: float = 20.0) -> str:
    """An animation as HTML of a report."""
    picture = base64.b64encode(animation(motions, parents, fps)).decode()
    told = html.escape(caption)
    return (
        f'<figure class="card"><img src="data:image/gif;base64,{picture}" alt="{told}" style="max-width:100%">'
        f"<figcaption>{told}</figcaption></figure>"
    )


def _cut(text: str, font: Any) -> str:
    while font.getlength(text) > SIDE - 6:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def curves(log: Path) -> dict[str, tuple[Any, Any]]:
    """The parts of a loss against the step, from a trainer's log."""
    if not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line and "step" in line]
    names = [
        name for name in ("loss", "reconstruction", "explicit", "bones", "codebook") if any(name in x for x in lines)
    ]
    return {name: ([x["step"] for x in lines if name in x], [x[name] for x in lines if name in x]) for name in names}


def spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` motions of different labels, as far as there are."""
    by_label: dict[str, list[Clip]] = {}
    for clip in clips:
        by_label.setdefault(clip.label, []).append(clip)
    turns = [clip for group in zip_longest(*by_label.values()) for clip in group if clip is not None]
    return turns[:count]


def codec(
    file: Path,
    tokenizer: MotionTokenizer,
    figures: Mapping[str, float],
    log: Path,
    originals: Sequence[tuple[str, Tensor]] = (),
    decoded: Sequence[tuple[str, Tensor]] = (),
) -> Path:
    """The page of a tokenizer: errors by depth, training, and originals above what their codes give."""
    depth = tokenizer.depth
    told = f"{tokenizer.frames_per_slot} frames a slot, {depth} level(s) of {tokenizer.codebook_size} codes"
    report = Report("Motion tokenizer", told)
    main = {"codes used": f"{figures['usage']:.1%}", "perplexity": figures["perplexity"]}
    if tokenizer.vectors is not None:
        main["joint error, mm"] = figures[f"mm_depth_{depth}"]
        main["bits per second"] = figures.get("bits_per_second", 0.0)
    report.figures(main)
    if found := curves(log):
        report.heading("Training").curve(found, "step", "loss", "parts of the loss", log_y=True)
    names = [n for n in ("mm", "mm_in_the_world", "error") if f"{n}_depth_1" in figures]
    series = {n: (list(range(1, depth + 1)), [figures[f"{n}_depth_{d + 1}"] for d in range(depth)]) for n in names}
    if depth > 1:
        report.heading("Error by depth").curve(
            {k: v for k, v in series.items() if k != "error"} or series,
            "levels",
            "mm" if len(names) > 1 else "deviations",
        )
    if originals and tokenizer.vectors is not None:
        told = "above: motions it never saw; below: what their codes give, bones of constant length"
        moving = figure([*originals, *decoded], tokenizer.vectors.skeleton.parents, told, tokenizer.config.fps)
        report.heading("Reconstructions").html(moving)
    report.heading("All figures").table([(k, f"{v:.4g}") for k, v in figures.items()], ("figure", "value"))
    return report.save(file)


def model(
    file: Path,
    title: str,
    parents: Sequence[int],
    fps: float,
    samples: Sequence[tuple[str, Tensor]],
    real: Sequence[tuple[str, Tensor]] = (),
    figures: Mapping[str, float] | None = None,
    log: Path | None = None,
    rate: Mapping[str, str] | None = None,
) -> Path:
    """The page of a model of codes: figures, training, motions drawn from captions, and real ones."""
    report = Report(title, "motions drawn from captions")
    if rate:
        report.figures(rate)
    if log is not None and (found := curves(log)):
        report.heading("Training").curve({"loss": found["loss"]}, "step", "nats", "training loss")
    report.heading("Drawn").html(figure(samples, parents, "drawn from the captions above them", fps))
    if real:
        report.heading("Real").html(figure(real, parents, "motions of the same captions that were held out", fps))
    if figures:
        report.heading("All figures").table([(k, f"{v:.4g}") for k, v in figures.items()], ("figure", "value"))
    return report.save(file)
