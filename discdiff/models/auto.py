"""Any network of the library from its folder, by the model type in its configuration."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from discdiff.config import read_json
from discdiff.models.network import Network

NETWORKS = {
    "discdiff": ("discdiff.models.transformer", "DiscDiffModel"),
    "discdiff_dit": ("discdiff.models.dit", "DitModel"),
    "discdiff_hosted": ("discdiff.models.hosted", "HostedModel"),
}


def network_type(path: str | Path) -> str:
    """The model type of a folder's config.json, "" where it has none of the library.

    Raises ValueError for a config.json that cannot be read.
    """
    file = Path(path) / "config.json"
    kind = read_json(file).get("model_type") if file.is_file() else None
    return kind if isinstance(kind, str) and kind in NETWORKS else ""


def load_network(path: str | Path, **options: Any) -> Network:
    """The network that `save_pretrained` wrote to a folder; options as `Network.from_pretrained`.

    Raises ValueError for a folder that holds none of the library's.
    """
    kind = network_type(path)
    if not kind:
        known = ", ".join(NETWORKS)
        raise ValueError(f"{str(path)!r} holds no network of the library: its model_type is none of {known}")
    module, name = NETWORKS[kind]
    return getattr(importlib.import_module(module), name).from_pretrained(path, **options)
