"""Tokenizers of pictures, sound, motion and actions behind one contract; independent of discdiff."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ABSENT": "base",
    "Latents": "base",
    "ModalityTokenizer": "base",
    "PixelTokenizer": "pixels",
    "PixelTokenizerConfig": "pixels",
    "TokenizerConfig": "config",
    "TokenizerOutput": "base",
    "TokenizerTrainOutput": "base",
    "check_tokenizer": "testing",
    "load_tokenizer": "auto",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Names resolve when they are first used: importing the package loads nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
