"""A line chart as one inline SVG."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from .playback import asset
from .trace import to_numpy

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 540, 340, 62, 16, 50  # in SVG units
COLORS, DASHES = 8, ("none", "6 4", "2 3")


def curve(
    series: Mapping[str, tuple[Any, Any]],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    log_y: bool = False,
    log_x: bool = False,
    assets: bool = True,
) -> str:
    """An SVG line chart of `{name: (x, y)}` with axes, ticks and legend, in light and dark.

    `x` and `y` are (points,), arrays or tensors. Short series also get a dot per point. `assets=False` leaves the style
    out for a page that has it. Raises ValueError for an empty chart, shapes that differ, values that are not finite,
    and for values at or below 0 on a logarithmic axis.
    """
    lines = _checked(series, log_x, log_y)
    every_x = np.concatenate([x for x, _ in lines.values()])
    every_y = np.concatenate([y for _, y in lines.values()])
    x_low, x_high, x_ticks = _axis(every_x, log_x, 0.0, 7)
    y_low, y_high, y_ticks = _axis(every_y, log_y, 0.05, 6)

    legend, legend_rows = _legend(list(lines), 34 if title else 14)
    top = (34 if title else 14) + 20 * legend_rows
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def at_x(x: Any) -> Any:
        return LEFT + (_scaled(x, log_x) - x_low) / (x_high - x_low) * (right - LEFT)

    def at_y(y: Any) -> Any:
        return bottom - (_scaled(y, log_y) - y_low) / (y_high - y_low) * (bottom - top)

    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>' if title else "", *legend]
    for tick in y_ticks:
        y = at_y(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in x_ticks:
        x = at_x(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{tick_label(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    middle_x, middle_y = (LEFT + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text class="label" x="{middle_x}" y="{HEIGHT - 10}" text-anchor="middle">{_axis_name(xlabel, log_x)}</text>'
    )
    parts.append(
        f'<text class="label" transform="translate(14 {middle_y:.1f}) rotate(-90)" text-anchor="middle">'
        f"{_axis_name(ylabel, log_y)}</text>"
    )
    for i, (x, y) in enumerate(lines.values()):
        points = [f"{a:.1f},{b:.1f}" for a, b in zip(at_x(x), at_y(y))]
        parts.append(f'<polyline class="line" points="{" ".join(points)}" {_stroke(i)}/>')
        if len(points) <= 24:
            dots = (point.split(",") for point in points)
            parts += [f'<circle cx="{a}" cy="{b}" r="3" style="fill:var(--c{i % COLORS})"/>' for a, b in dots]
    style = f"<style>{asset('theme.css')}{asset('chart.css')}</style>" if assets else ""
    name = escape(title or f"{ylabel} over {xlabel}: " + ", ".join(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="dd dd-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name}">{style}{"".join(parts)}</svg>'
    )


def _scaled(values: Any, log: bool) -> np.ndarray:
    return np.log10(values) if log else np.asarray(values, float)


def _axis(values: np.ndarray, log: bool, pad: float, most: int) -> tuple[float, float, list[float]]:
    low, high = _padded(_scaled(values, log), pad)
    return low, high, log_ticks(low, high) if log else nice_ticks(low, high, most)


def _axis_name(label: str, log: bool) -> str:
    return escape(f"{label} (log scale)" if log and label else label)


def _checked(
    series: Mapping[str, tuple[Any, Any]], log_x: bool, log_y: bool
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if not series:
        raise ValueError("series is empty; give {name: (x, y)} with at least one line")
    lines = {}
    for name, (raw_x, raw_y) in series.items():
        x, y = to_numpy(raw_x).astype(float), to_numpy(raw_y).astype(float)
        if x.ndim != 1 or x.shape != y.shape or x.size == 0:
            raise ValueError(f"series {name!r} has x {x.shape} and y {y.shape}; give two non-empty (points,) arrays")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            first = int(np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))[0])
            raise ValueError(
                f"series {name!r} is not finite at point {first}: ({x[first]}, {y[first]}); drop such points"
            )
        for axis, log, values in (("x", log_x, x), ("y", log_y, y)):
            if log and values.min() <= 0:
                raise ValueError(
                    f"series {name!r} has {axis} = {values.min()} on a logarithmic axis; "
                    f"drop such points or use log_{axis}=False"
                )
        lines[str(name)] = (x, y)
    return lines


def _padded(values: np.ndarray, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = share * (high - low) if high > low else max(abs(low), 1.0) * 0.5
    return low - pad, high + pad


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most about `most` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(k * step, digits) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within 10**[low, high]; with 2 and 5 between them, or linear ticks, where these are too few."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    stride = max(1, len(decades) // 8)
    for factors in ((1,), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= math.log10(f) + d <= high and d % stride == 0]
        if len(ticks) >= 3:
            return ticks
    return [tick for tick in nice_ticks(10**low, 10**high, 5) if tick > 0]


def tick_label(value: float) -> str:
    """A short label: plain where that is short, with k and M for thousands and millions, else a power of ten."""
    size = abs(value)
    if size == 0:
        return "0"
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if unit * (10 if unit == 1e3 else 1) <= size < 1e9:
            return f"{value / unit:.6g}{suffix}".replace("-", "−")
    plain = f"{value:.6g}" if 1e-4 <= size < 1e9 else f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")
    return plain.replace("-", "−")


def _stroke(i: int) -> str:
    dash = DASHES[i // COLORS % len(DASHES)]
    return f'style="stroke:var(--c{i % COLORS});stroke-dasharray:{dash}"'


def _legend(names: list[str], top: float) -> tuple[list[str], int]:
    parts, x, row = [], float(LEFT), 0
    for i, name in enumerate(names):
        width = 44 + 7.6 * len(name)  # an estimate: SVG cannot measure text
        if x + width > WIDTH and x > LEFT:
            x, row = float(LEFT), row + 1
        y = top + 20 * row
        parts.append(f'<path class="line" d="M{x:.1f} {y}h18" {_stroke(i)}/>')
        parts.append(f'<text class="key" x="{x + 24:.1f}" y="{y + 4}">{escape(name)}</text>')
        x += width
    return parts, row + 1
