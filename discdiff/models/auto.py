"""Any network of the library from its folder, by the model type in its configuration."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from discdiff.models.network import Network

NETWORKS = {
    "discdiff": ("discdiff.models.transformer", "DiscDiffModel"),
    "discdiff_dit": ("discdiff.models.dit", "DitModel"),
    "discdiff_hosted": ("discdiff.models.hosted", "HostedModel"),
}


def network_type(path: str | Path) -> str:
    """The model type of a folder's config.json, "" where it has none of the library."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if kind in NETWORKS else ""


def load_network(path: str | Path, **options: Any) -> Network:
    """The network that `save_pretrained` wrote to a folder; options as `Network.from_pretrained`.

    Raises ValueError for a folder that holds none of the library's.
    """
    kind = network_type(path)
    if not kind:
        known = ", ".join(NETWORKS)
        raise ValueError(f"{str(path)!r} holds no network of the library (its config.json names none of {known})")
    module, name = NETWORKS[kind]
    return getattr(importlib.import_module(module), name).from_pretrained(path, **options)
