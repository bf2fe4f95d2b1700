"""Any tokenizer from its folder, by the model type in its configuration."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tokenizers_vq.base import ModalityTokenizer

TOKENIZERS = {
    "discdiff_pixels": ("tokenizers_vq.pixels", "PixelTokenizer"),
}


def load_tokenizer(folder: str | Path, **options: Any) -> ModalityTokenizer:
    """The tokenizer that `save_pretrained` wrote to a folder. Raises ValueError for a folder that holds none of these."""
    file = Path(folder) / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
        module, name = TOKENIZERS[kind]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder)!r} holds no tokenizer of {', '.join(TOKENIZERS)}: {error!r}") from error
    return getattr(importlib.import_module(module), name).from_pretrained(folder, **options)
