"""A report: one HTML file that holds everything it shows."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from PIL import Image

from .chart import curve
from .pictures import write_atomically
from .playback import asset, data_uri, player
from .trace import Trace
from .views import View

STYLES = ("theme.css", "page.css", "player.css", "chart.css")
WIDEST = 934  # pixels of content in a card that is as wide as the page


@dataclass(eq=False)
class Report:
    """A page built block by block; every method but `save` returns the report, so calls can be chained.

    All text is escaped, except what `html` is given. The file asks nothing of the network.
    """

    title: str
    subtitle: str = ""
    _blocks: list[tuple[str, str]] = field(default_factory=list, repr=False)  # (kind, html)
    _headings: list[str] = field(default_factory=list, repr=False)

    def heading(self, text: str) -> "Report":
        """Start a section."""
        self._headings.append(text)
        return self._add("heading", f'<h2 id="section-{len(self._headings)}">{escape(text)}</h2>')

    def text(self, paragraph: str) -> "Report":
        """Add a paragraph of plain text."""
        return self._add("text", f"<p>{escape(paragraph)}</p>")

    def table(self, rows: Iterable[Sequence[Any]], header: Sequence[str]) -> "Report":
        """Add a table; numbers are set to the right. ValueError for a row that is not as long as the header."""
        body = [list(row) for row in rows]
        for i, row in enumerate(body):
            if len(row) != len(header):
                raise ValueError(
                    f"row {i} has {len(row)} cells for {len(header)} columns {list(header)}; give one each"
                )
        right = [bool(body) and all(_is_number(row[c]) or row[c] is None for row in body) for c in range(len(header))]

        def line(tag: str, cells: Iterable[Any]) -> str:
            marks = (' class="number"' if number else "" for number in right)
            return "".join(f"<{tag}{mark}>{escape(shown(cell))}</{tag}>" for mark, cell in zip(marks, cells))

        lines = "".join(f"<tr>{line('td', row)}</tr>" for row in body)
        table = f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{lines}</tbody></table>"
        return self._add("table", f'<div class="card scroll">{table}</div>')

    def figures(self, values: Mapping[str, Any]) -> "Report":
        """Add tiles with big numbers from `{name: value}`."""
        if not values:
            raise ValueError("figures got no values; give {name: value}")
        tiles = (f"<div><dt>{escape(str(k))}</dt><dd>{escape(shown(v))}</dd></div>" for k, v in values.items())
        return self._add("figures", f'<dl class="tiles">{"".join(tiles)}</dl>')

    def image(self, image: Image.Image, caption: str = "") -> "Report":
        """Add a Pillow image; a small one is enlarged by a whole factor, with crisp pixels."""
        if not isinstance(image, Image.Image):
            raise ValueError(f"image is a {type(image).__name__}; give a PIL image, e.g. image_grid(images, columns=8)")
        width = image.width * max(1, 280 // max(image.size))
        crisp = ' class="crisp"' if width <= WIDEST else ""
        picture = f'<img src="{data_uri(image)}" alt="{escape(caption)}" width="{width}"{crisp}>'
        return self._add("figure", _card(picture, caption, min(width, WIDEST)))

    def html(self, fragment: str) -> "Report":
        """Add HTML as it is: it is not escaped, so never give it text of unknown origin."""
        return self._add("html", fragment)

    def player(self, trace: Trace, views: Sequence[View], caption: str = "") -> "Report":
        """Add a player for a sampling run, see `discdiff.report.player`."""
        return self._add("player", _card(player(trace, views, assets=False), caption))

    def curve(
        self,
        series: Mapping[str, tuple[Any, Any]],
        xlabel: str = "",
        ylabel: str = "",
        title: str = "",
        log_y: bool = False,
        log_x: bool = False,
        caption: str = "",
    ) -> "Report":
        """Add a line chart, see `discdiff.report.curve`; neighbouring charts and images share a row."""
        return self._add("figure", _card(curve(series, xlabel, ylabel, title, log_y, log_x, assets=False), caption))

    def render(self) -> str:
        """The whole page as a string."""
        links = (f'<a href="#section-{i}">{escape(text)}</a>' for i, text in enumerate(self._headings, 1))
        contents = f'<nav aria-label="Sections">{"".join(links)}</nav>' if len(self._headings) > 2 else ""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        body = []
        for kind, group in groupby(self._blocks, key=lambda block: block[0]):
            inner = "\n".join(block for _, block in group)
            body.append(f'<div class="row">{inner}</div>' if kind == "figure" else inner)
        script = f"<script>{asset('player.js')}</script>" if any(kind == "player" for kind, _ in self._blocks) else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title>\n<style>{''.join(map(asset, STYLES))}</style></head>\n"
            f'<body class="dd dd-page"><header><h1>{escape(self.title)}</h1>{subtitle}{contents}</header>\n<main>\n'
            + "\n".join(body)
            + f"\n</main>{script}</body></html>\n"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page, making its folder if needed; an old file is replaced only by a complete one."""
        return write_atomically(path, self.render().encode("utf-8"))

    def _add(self, kind: str, block: str) -> "Report":
        self._blocks.append((kind, block))
        return self


def _card(content: str, caption: str, width: int = 0) -> str:
    """A card; where cards share a row it claims `width` pixels for its content, so that pixels are not scaled down."""
    wish = f' style="flex-basis:{width + 50}px"' if width > 330 else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="card"{wish}>{content}{below}</figure>'


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value for the reader: whole numbers in groups of three, others to four digits, a dash for None."""
    if value is None:
        return "–"
    if not _is_number(value):
        return str(value)
    text = f"{int(value):,}" if isinstance(value, Integral) else f"{float(value):.4g}"
    return text.replace(",", "\u202f").replace("-", "−")
