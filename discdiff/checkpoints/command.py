"""`discdiff convert SRC DST`: between public checkpoint layouts and ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversion:
    """to: "ours" or "original", by default the other side; format: where config.json does not tell.

    ema: averaged weights of a training checkpoint; the rest stands in for what config.json lacks.
    """

    to: str | None = None
    format: str | None = None
    ema: bool = True
    mask_token_id: int | None = None
    text_size: int | None = None
    block_size: int | None = None


def run(src: str, dst: str, how: Conversion) -> None:
    """Convert a checkpoint folder or file into a new folder."""
    from discdiff.checkpoints.convert import convert

    settings = {name: getattr(how, name) for name in ("mask_token_id", "text_size", "block_size")}
    settings = {name: value for name, value in settings.items() if value is not None}
    print(f"wrote {convert(src, dst, how.to, how.format, how.ema, **settings)}")
