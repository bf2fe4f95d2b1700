"""How a part of the sequence is shown: as text, as an image, or as coloured cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .trace import Trace, to_numpy


@dataclass(frozen=True, eq=False)
class TextView:
    """Tokens as running text: `columns` (n,) positions in the sequence, `symbol(id)` the text of a committed token."""

    name: str
    columns: Sequence[int] | np.ndarray
    symbol: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class GridView:
    """Tokens as coloured cells with their symbol; hue follows the id from the lowest shown to the highest.

    `columns` (n,) wraps like text; (rows, n) keeps its rows, e.g. one row per code depth and one column per slot.
    """

    name: str
    columns: Sequence[int] | np.ndarray
    symbol: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class ImageView:
    """Tokens as an image: `columns` (height, width) positions, `pixels(ids (height, width))` its picture.

    The picture is uint8 (height, width) or (height, width, 3), or a whole multiple of it when a token stands for a
    patch. `pixels` only ever sees ids that are committed: under an uncommitted position it gets the first committed id
    of the frame, and a frame with none is not asked for.
    """

    name: str
    columns: Sequence[Sequence[int]] | np.ndarray
    pixels: Callable[[np.ndarray], np.ndarray]


View = TextView | GridView | ImageView


def columns_of(view: View, length: int) -> np.ndarray:
    """The view's columns as a checked integer array; ValueError for a wrong rank or a position outside the sequence."""
    columns = to_numpy(view.columns)
    ranks = {TextView: (1,), GridView: (1, 2), ImageView: (2,)}[type(view)]
    if columns.ndim not in ranks or columns.size == 0 or not np.issubdtype(columns.dtype, np.integer):
        raise ValueError(
            f"columns of view {view.name!r} have shape {columns.shape} and dtype {columns.dtype}; "
            f"a {type(view).__name__} takes a non-empty integer array of rank {' or '.join(map(str, ranks))}"
        )
    if columns.min() < 0 or columns.max() >= length:
        raise ValueError(
            f"columns of view {view.name!r} span {columns.min()}..{columns.max()}, outside a sequence of {length}; "
            f"give positions in 0..{length - 1}"
        )
    return columns


def check(trace: Trace, views: Sequence[View]) -> None:
    """Raise ValueError for a missing view, something that is not a view, or columns that do not fit the trace."""
    if not isinstance(trace, Trace):
        raise ValueError(f"trace is a {type(trace).__name__}; give a Trace, e.g. record(iterate(...))")
    if isinstance(views, (TextView, GridView, ImageView)) or not views:
        raise ValueError(f"views is {views!r}; give a non-empty list of views")
    for view in views:
        if not isinstance(view, (TextView, GridView, ImageView)):
            raise ValueError(f"{view!r} is not a view; give a TextView, a GridView or an ImageView")
        columns_of(view, trace.length)


def indexed(trace: Trace, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct committed ids (k,), and per frame the index of each position's id (steps, n), -1 if uncommitted."""
    tokens, committed = trace.tokens[:, columns.ravel()], trace.committed[:, columns.ravel()]
    ids = np.unique(tokens[committed])
    return ids, np.where(committed, np.searchsorted(ids, tokens), -1)


def symbols_of(view: TextView | GridView, ids: np.ndarray) -> list[str]:
    """The symbol of every id; ValueError if the view's function returns something other than a string."""
    symbols: list[Any] = [view.symbol(int(token)) for token in ids]
    for token, symbol in zip(ids, symbols):
        if not isinstance(symbol, str):
            raise ValueError(f"symbol of view {view.name!r} gave {symbol!r} for id {token}; return a str")
    return symbols


def hues_of(ids: np.ndarray) -> list[int]:
    """A hue in degrees for each id, linear in the id, so that ordered codes (action bins) read as a scale."""
    if len(ids) == 0:
        return []
    return [int(hue) for hue in 210 - 270 * (ids - ids[0]) / max(1, ids[-1] - ids[0])]


def image_frames(trace: Trace, view: ImageView) -> np.ndarray:
    """All frames of an image view as uint8 RGBA (steps, height, width, 4), transparent where uncommitted."""
    columns = columns_of(view, trace.length)
    height, width = columns.shape
    tokens, committed = trace.tokens[:, columns], trace.committed[:, columns]  # (steps, height, width)
    pictures = {k: _picture(view, tokens[k], committed[k]) for k in range(trace.steps) if committed[k].any()}
    factor = next(iter(pictures.values())).shape[0] // height if pictures else 1
    frames = np.zeros((trace.steps, height * factor, width * factor, 4), np.uint8)
    for k, picture in pictures.items():
        if picture.shape[:2] != frames.shape[1:3]:
            raise ValueError(
                f"pixels of view {view.name!r} gave {picture.shape[:2]} at step {k + 1} "
                f"and {frames.shape[1:3]} before; return one size"
            )
        frames[k, :, :, :3] = picture if picture.ndim == 3 else picture[:, :, None]
        frames[k, :, :, 3] = 255 * committed[k].repeat(factor, 0).repeat(factor, 1)
    frames[frames[..., 3] == 0] = 0  # nothing of the stand-in ids is kept
    return frames


def _picture(view: ImageView, tokens: np.ndarray, committed: np.ndarray) -> np.ndarray:
    picture = to_numpy(view.pixels(np.where(committed, tokens, tokens[committed][0])))
    height, width = tokens.shape
    if picture.dtype != np.uint8:
        raise ValueError(
            f"pixels of view {view.name!r} gave dtype {picture.dtype}; return uint8 in 0..255, "
            "e.g. (255 * image).round().astype(np.uint8)"
        )
    factor = max(1, picture.shape[0] // height) if picture.ndim else 1
    if picture.shape not in ((height * factor, width * factor), (height * factor, width * factor, 3)):
        raise ValueError(
            f"pixels of view {view.name!r} gave shape {picture.shape} for ids {tokens.shape}; "
            "return (height, width) or (height, width, 3), or the same whole multiple of both sides"
        )
    return picture
