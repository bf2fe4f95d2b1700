"""Pictures by Pillow: grids of images, and a sampling run as an animated GIF."""

import colorsys
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .trace import Trace, to_numpy
from .views import GridView, ImageView, TextView, View, check, columns_of, hues_of, image_frames, indexed, symbols_of

PAPER, INK, MUTED, HATCH, BLANK, LINE = "#ffffff", "#1b1d23", "#676b75", "#c8c6bf", "#eeede8", "#e5e3dc"
ACCENT, NEW, GONE, SPARK = "#3355d1", "#ffe19a", "#cf3863", "#f59e0b"
MARGIN, TEXT_WIDTH = 12, 460  # pixels


def write_atomically(path: str | os.PathLike, data: bytes) -> Path:
    """Write a file that is either complete or absent: a temporary file beside it, then a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600, which a web server could not read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def image_grid(images: Any, columns: int, scale: int = 1, labels: Sequence[str] | None = None) -> Image.Image:
    """Images (n, height, width) or (n, height, width, 3) uint8 in rows of `columns`, each pixel `scale` wide.

    The ground is transparent, so the picture suits light and dark pages; a label that is too long is cut. Raises
    ValueError for other shapes or dtypes, for columns or scale below 1, and for a wrong number of labels.
    """
    images = to_numpy(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"images have dtype {images.dtype}; give uint8 in 0..255, e.g. (255 * images).round().astype(np.uint8)"
        )
    if images.ndim not in (3, 4) or images.size == 0 or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"images have shape {images.shape}; give (n, height, width) or (n, height, width, 3), n >= 1")
    if columns < 1 or scale < 1:
        raise ValueError(f"columns is {columns}, scale {scale}; give at least 1 for both")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images; give one label per image")
    columns = min(columns, len(images))
    height, width, gap = images.shape[1] * scale, images.shape[2] * scale, max(4, scale)
    font, strip = ImageFont.load_default(12), 18 if labels is not None else 0
    down, right = height + strip + gap, width + gap
    grid = Image.new("RGBA", (columns * right - gap, -(-len(images) // columns) * down - gap))
    draw = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        x, y = i % columns * right, i // columns * down
        picture = Image.fromarray(image).convert("RGBA").resize((width, height), Image.Resampling.NEAREST)
        grid.paste(picture, (x, y))
        if labels is not None:
            draw.text((x + width / 2, y + height + 9), _cut(labels[i], font, width), "#80838c", font, anchor="mm")
    return grid


def gif(trace: Trace, views: Sequence[View], path: str | os.PathLike, scale: int = 8, duration_ms: int = 120) -> Path:
    """Write the run as an animated GIF, one frame per step, the last one held; `scale` is the width of a pixel.

    Returns the path. The text is in Pillow's own font, which knows Latin letters only. Raises ValueError when a view
    does not fit the trace, for a scale below 1 and for a duration below 20 ms, which viewers slow down.
    """
    check(trace, views)
    if scale < 1 or duration_ms < 20:
        raise ValueError(f"scale is {scale}, duration_ms {duration_ms}; give scale >= 1 and duration_ms >= 20")
    panels = zip(*[list(_panels(trace, view, scale)) for view in views])
    frames = [_compose(trace, k, views, parts) for k, parts in enumerate(panels)]
    size = [max(frame.size[axis] for frame in frames) for axis in (0, 1)]
    canvases = [_on_canvas(frame, size[0], size[1]) for frame in frames]
    palette = _palette(canvases)
    indexed_frames = [canvas.quantize(palette=palette, dither=Image.Dither.NONE) for canvas in canvases]
    durations = [duration_ms] * (len(frames) - 1) + [max(1200, duration_ms)]
    buffer = io.BytesIO()
    indexed_frames[0].save(
        buffer, "GIF", save_all=True, append_images=indexed_frames[1:], duration=durations, loop=0, optimize=False
    )
    return write_atomically(path, buffer.getvalue())


def _on_canvas(image: Image.Image, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(image, (0, 0))
    return canvas


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, so that colours do not flicker; it holds paper, ink and marks exactly."""
    some = [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, 8).round().astype(int))]
    sample = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
    exact = [ImageColor.getrgb(color) for color in (PAPER, INK, MUTED, HATCH, BLANK, LINE, ACCENT, NEW, GONE, SPARK)]
    # Fewer than 256 colours leave one for "as in the frame before", which keeps the file small.
    found = np.reshape(sample.quantize(250 - len(exact)).getpalette() or [], (-1, 3))
    # Pillow looks colours up by their leading bits, so a near twin could take an exact colour's place.
    found = found[np.abs(found[:, None] - np.array(exact)).max(2).min(1) >= 8]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.ravel(exact).tolist(), *found.ravel().tolist()])
    return palette


def _compose(trace: Trace, k: int, views: Sequence[View], panels: Sequence[Image.Image]) -> Image.Image:
    """One frame: the views below each other with their names, then a bar and a line that say how far the run is."""
    font = ImageFont.load_default(12)
    width = max(260, *(panel.width for panel in panels)) + 2 * MARGIN
    height = sum(panel.height + 32 for panel in panels) + 40
    frame = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(frame)
    y = MARGIN
    for view, panel in zip(views, panels):
        draw.text((MARGIN, y), _cut(view.name, font, width - 2 * MARGIN), MUTED, font)
        frame.paste(panel, (MARGIN, y + 18))
        y += panel.height + 32
    count = int(trace.committed[k].sum())
    span = width - 2 * MARGIN
    draw.rectangle((MARGIN, y, MARGIN + span, y + 3), LINE)
    draw.rectangle((MARGIN, y, MARGIN + span * (k + 1) // trace.steps, y + 3), ACCENT)
    draw.text((MARGIN, y + 9), f"step {k + 1} of {trace.steps}, committed {count} of {trace.length}", MUTED, font)
    return frame


def _panels(trace: Trace, view: View, scale: int) -> Iterator[Image.Image]:
    """The picture of one view at every step."""
    columns = columns_of(view, trace.length)
    ids, frames = indexed(trace, columns)
    if isinstance(view, ImageView):
        pixels = image_frames(trace, view)
        for k, (now, before) in enumerate(_pairs(frames)):
            yield _image_panel(pixels[k], now.reshape(columns.shape), before.reshape(columns.shape), scale)
        return
    symbols = symbols_of(view, ids)
    for now, before in _pairs(frames):
        if isinstance(view, TextView):
            yield _text_panel([symbols[a] if a >= 0 else None for a in now], _ghosts(symbols, frames[-1]), now, before)
        else:
            wide = columns.shape[1] if columns.ndim == 2 else 0
            yield _grid_panel(view, wide, symbols, hues_of(ids), now, before)


def _pairs(frames: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame with the one before it; the first with itself, since nothing is new there."""
    return zip(frames, np.concatenate([frames[:1], frames[:-1]]))


def _ghosts(symbols: list[str], last: np.ndarray) -> list[str]:
    """What a masked position will hold in the end, whose width it keeps so that the lines stay in place."""
    return [symbols[index] if index >= 0 else " " for index in last]


def _image_panel(pixels: np.ndarray, now: np.ndarray, before: np.ndarray, scale: int) -> Image.Image:
    height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
    panel = _hatched(width, height)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    panel.paste(picture, (0, 0), picture)
    draw, cell = ImageDraw.Draw(panel), height // now.shape[0]
    for row, column in zip(*np.nonzero(now != before)):
        box = (column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1)
        draw.rectangle(box, outline=SPARK if now[row, column] >= 0 else GONE, width=max(1, min(2, cell // 6)))
    return panel


def _text_panel(
    texts: list[str | None], ghosts: list[str], now: np.ndarray, before: np.ndarray, size: int = 15
) -> Image.Image:
    font, line = ImageFont.load_default(size), size + 8
    places, x, y = [], 0.0, 0
    for text, ghost in zip(texts, ghosts):
        symbol = ghost if text is None else text
        visible = symbol.replace("\n", "") or (" " if text is None else "")
        width = font.getlength(visible)
        if x + width > TEXT_WIDTH and x > 0:
            x, y = 0.0, y + line
        places.append((x, y, width, visible))
        x += width + 1
        for _ in range(symbol.count("\n")):
            x, y = 0.0, y + line
    panel = Image.new("RGB", (TEXT_WIDTH, y + line), PAPER)
    draw = ImageDraw.Draw(panel)
    for (x, y, width, visible), text, a, b in zip(places, texts, now, before):
        box = (int(x), y + 2, int(x + width), y + line - 3)
        if text is None:
            panel.paste(_hatched(box[2] - box[0] + 1, box[3] - box[1] + 1), box[:2])
            if b >= 0:
                draw.rectangle(box, outline=GONE)
            continue
        if a != b:
            draw.rectangle(box, NEW)
        draw.text((x, y + line / 2), visible, INK, font, anchor="lm")
    return panel


def _grid_panel(
    view: GridView, wide: int, symbols: list[str], hues: list[int], now: np.ndarray, before: np.ndarray
) -> Image.Image:
    font, height, gap = ImageFont.load_default(11), 20, 3
    width = int(max([16, *(font.getlength(symbol.replace("\n", " ")) for symbol in symbols)])) + 8
    across = wide or min(len(now), max(1, (TEXT_WIDTH + gap) // (width + gap)))
    rows = -(-len(now) // across)
    panel = Image.new("RGB", (across * (width + gap) - gap, rows * (height + gap) - gap), PAPER)
    draw = ImageDraw.Draw(panel)
    for i, (a, b) in enumerate(zip(now, before)):
        x, y = i % across * (width + gap), i // across * (height + gap)
        box = (x, y, x + width - 1, y + height - 1)
        if a < 0:
            panel.paste(_hatched(width, height), (x, y))
        else:
            draw.rectangle(box, _color(hues[a]))
            draw.text((x + width / 2, y + height / 2), symbols[a].replace("\n", " "), INK, font, anchor="mm")
        if a != b:
            draw.rectangle(box, outline=SPARK if a >= 0 else GONE, width=2)
    return panel


def _color(hue: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(hue % 360 / 360, 0.86, 0.6)
    return round(255 * red), round(255 * green), round(255 * blue)


def _hatched(width: int, height: int) -> Image.Image:
    """The look of an uncommitted place: diagonal lines."""
    panel = Image.new("RGB", (width, height), BLANK)
    draw = ImageDraw.Draw(panel)
    for x in range(-height, width, 6):
        draw.line((x, height, x + height, 0), HATCH)
    return panel


def _cut(text: str, font: Any, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
