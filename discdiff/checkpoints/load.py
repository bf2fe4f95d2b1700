"""Any checkpoint as a network: one of ours, a public diffusion model, or a stock model of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discdiff.checkpoints.convert import load_foreign
from discdiff.checkpoints.files import CONFIG, read_json
from discdiff.checkpoints.formats import FORMATS
from discdiff.models import Network, load_network, network_type


def load(path: str | Path, *, tokenizer: Any = None, shift: bool | None = None, **settings: Any) -> Network:
    """The network in a folder, in a file of weights, or (stock models) under a hub name.

    tokenizer: of a stock model: which ids it defines, and its mask, begin and end. shift: the slot before predicts; None
    is what the checkpoint was trained with, and for stock decoders, which predict the next token, True. settings: of
    `load_foreign` or `HostedModel.from_host`. Raises ValueError as those do.
    """
    if network_type(path):
        model = load_network(path, **settings)
    elif _is_foreign(Path(path), settings):
        model = load_foreign(path, **settings)
    else:
        from discdiff.models.hosted import HostedModel

        model = HostedModel.from_host(path, tokenizer=tokenizer, **settings)
        model.config.shift = model.family.decoder
    if shift is not None:
        model.config.shift = shift
    return model


def _is_foreign(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a path holds a format of `FORMATS`: by what was asked for, a file of weights, or its configuration."""
    if "format" in settings or path.is_file():
        return True
    if not (path / CONFIG).is_file():
        return False
    said = read_json(path / CONFIG)
    named = str(said.get("model_type", "")).lower()
    return any(named in each.model_types for each in FORMATS.values()) or {"graph", "noise", "tokens"} <= set(said)
