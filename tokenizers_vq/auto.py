"""Any tokenizer from its folder, by the model type in its configuration."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tokenizers_vq.base import ModalityTokenizer

TOKENIZERS = {
    "discdiff_action_bins": ("tokenizers_vq.action.bins", "ActionBins"),
    "discdiff_action_chunks": ("tokenizers_vq.action.chunks", "ChunkTokenizer"),
    "discdiff_action_dct": ("tokenizers_vq.action.dct", "DCTBins"),
    "discdiff_action_fast": ("tokenizers_vq.action.fast", "Fast"),
    "discdiff_audio": ("tokenizers_vq.audio", "AudioTokenizer"),
    "discdiff_dac": ("tokenizers_vq.codecs.audio", "DacTokenizer"),
    "discdiff_diffusers": ("tokenizers_vq.codecs.image", "DiffusersTokenizer"),
    "discdiff_emu3": ("tokenizers_vq.codecs.image", "Emu3Tokenizer"),
    "discdiff_encodec": ("tokenizers_vq.codecs.audio", "EncodecTokenizer"),
    "discdiff_image": ("tokenizers_vq.image", "ImageTokenizer"),
    "discdiff_janus": ("tokenizers_vq.codecs.image", "JanusTokenizer"),
    "discdiff_mimi": ("tokenizers_vq.codecs.audio", "MimiTokenizer"),
    "discdiff_motion": ("tokenizers_vq.motion.tokenizer", "MotionTokenizer"),
    "discdiff_pixels": ("tokenizers_vq.pixels", "PixelTokenizer"),
}


def load_tokenizer(folder: str | Path, **options: Any) -> ModalityTokenizer:
    """The tokenizer that `save_pretrained` wrote to a folder, or a hub name; options as `ModalityTokenizer.from_pretrained`.

    Raises ValueError for what holds none of these.
    """
    hub: dict[str, Any] = {
        name: options[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in options
    }
    try:
        file = Path(folder) / "config.json" if Path(folder).is_dir() else Path(_fetched(str(folder), hub))
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
        module, name = TOKENIZERS[kind]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} holds no tokenizer of {', '.join(TOKENIZERS)}: {error!r}") from error
    return getattr(importlib.import_module(module), name).from_pretrained(folder, **options)


def _fetched(name: str, hub: dict[str, Any]) -> str:
    """config.json of a hub name, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(name, "config.json", **hub)
