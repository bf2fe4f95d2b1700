"""A small player, as an HTML fragment, that steps through a sampling run."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from .trace import Trace
from .views import GridView, TextView, View, check, columns_of, hues_of, image_frames, indexed, symbols_of


def asset(name: str) -> str:
    """The text of a style sheet or script of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def data_uri(image: Image.Image) -> str:
    """The image as a base64 PNG address, so that a page needs no second file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def player(trace: Trace, views: Sequence[View], assets: bool = True) -> str:
    """An HTML fragment that plays the run: buttons, slider, arrow keys, speed, a counter of steps and tokens.

    The fragment brings its data, style and script, so it works in a page or a notebook without a network, next to any
    number of others; `assets=False` leaves style and script out for a page that has them. Raises ValueError when a view
    does not fit the trace.
    """
    check(trace, views)
    lost = trace.committed[:-1] & ~trace.committed[1:]
    data = {
        "steps": trace.steps,
        "length": trace.length,
        "committed": trace.committed.sum(1).tolist(),
        "calls": None if trace.nfe is None else np.cumsum(trace.nfe).tolist(),
        "remasks": bool(lost.any()),
        "views": [_view_data(trace, view) for view in views],
    }
    label = escape("Sampling run: " + ", ".join(view.name for view in views))
    fragment = (
        f'<div class="dd dd-player" role="group" tabindex="0" aria-label="{label}">'
        f'<script type="application/json">{script_json(data)}</script>'
        "<noscript>This player needs JavaScript.</noscript></div>"
    )
    if not assets:
        return fragment
    return f"<style>{asset('theme.css')}{asset('player.css')}</style>{fragment}<script>{asset('player.js')}</script>"


def script_json(data: Any) -> str:
    """Compact JSON that cannot end the script element holding it, nor open a comment in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _view_data(trace: Trace, view: View) -> dict[str, Any]:
    columns = columns_of(view, trace.length)
    ids, frames = indexed(trace, columns)
    data: dict[str, Any] = {"name": view.name, "size": columns.size, "deltas": _deltas(frames)}
    if isinstance(view, TextView):
        return data | {"kind": "text", "symbols": symbols_of(view, ids)}
    if isinstance(view, GridView):
        wide = columns.shape[1] if columns.ndim == 2 else 0
        return data | {"kind": "grid", "symbols": symbols_of(view, ids), "hues": hues_of(ids), "columns": wide}
    return data | {"kind": "image", "width": columns.shape[1], **_sprite(image_frames(trace, view))}


def _deltas(frames: np.ndarray) -> list[list[int]]:
    """Per frame the flat pairs (position, index) that differ from the frame before; before the first all are -1."""
    before = np.vstack([np.full((1, frames.shape[1]), -1), frames[:-1]])
    changed = (np.flatnonzero(now != old) for now, old in zip(frames, before))
    return [np.stack([where, now[where]], 1).ravel().tolist() for where, now in zip(changed, frames)]


def _sprite(frames: np.ndarray) -> dict[str, Any]:
    """All frames in one PNG, in rows of `across`: smaller than one each, and near square for the browser's limits."""
    steps, height, width, _ = frames.shape
    across = int(np.ceil(np.sqrt(steps * height / width)))
    rows = -(-steps // across)
    sheet = np.zeros((rows * height, across * width, 4), np.uint8)
    for k, frame in enumerate(frames):
        top, left = k // across * height, k % across * width
        sheet[top : top + height, left : left + width] = frame
    return {"pixels": [height, width], "across": across, "sprite": data_uri(Image.fromarray(sheet))}
