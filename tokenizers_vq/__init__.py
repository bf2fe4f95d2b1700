"""Tokenizers of pictures, sound, motion and actions behind one contract; independent of discdiff."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "ABSENT": "base",
    "ActionBins": "action.bins",
    "ActionBinsConfig": "action.bins",
    "ActionStatistics": "action.normalise",
    "AudioTokenizer": "audio",
    "AudioTokenizerConfig": "audio",
    "ChunkTokenizer": "action.chunks",
    "ChunkTokenizerConfig": "action.chunks",
    "DCTBins": "action.dct",
    "DCTBinsConfig": "action.dct",
    "DacTokenizer": "codecs.audio",
    "DiffusersTokenizer": "codecs.image",
    "Emu3Tokenizer": "codecs.image",
    "EncodecTokenizer": "codecs.audio",
    "Fast": "action.fast",
    "FastConfig": "action.fast",
    "ImageTokenizer": "image",
    "ImageTokenizerConfig": "image",
    "JanusTokenizer": "codecs.image",
    "Latents": "base",
    "MimiTokenizer": "codecs.audio",
    "ModalityTokenizer": "base",
    "MotionTokenizer": "motion.tokenizer",
    "MotionTokenizerConfig": "motion.tokenizer",
    "Normaliser": "action.normalise",
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
