"""Any checkpoint as a network: one of ours, a public diffusion model, or a stock model of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discdiff.checkpoints.convert import load_foreign
from discdiff.checkpoints.files import CONFIG, read_json
from discdiff.checkpoints.formats import FORMATS
from discdiff.models import Network, load_network, network_type

# Weights, settings, tokenizer, chat template.
_KINDS = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"]


def load(path: str | Path, *, tokenizer: Any = None, shift: bool | None = None, **settings: Any) -> Network:
    """The network in a folder, in a file of weights, or under a hub name.

    tokenizer: of a stock model: which ids it defines, and its mask, begin and end. shift: the slot before predicts; None
    is what the checkpoint was trained with, and for stock decoders, which predict the next token, True. settings: of
    `load_foreign` or `HostedModel.from_host`. Raises ValueError as those do.
    """
    path = _fetched(path, settings)
    if network_type(path):
        model = load_network(path, **settings)
    elif _is_foreign(Path(path), settings):
        model = load_foreign(path, **settings)
    else:
        from discdiff.models.hosted import HostedModel

        try:
            model = HostedModel.from_host(path, tokenizer=tokenizer, **settings)
        except OSError as error:
            raise ValueError(f"{str(path)!r} is no folder of a model, nor is it on the hub: {error}") from error
        model.config.shift = model.family.decoder
    if shift is not None:
        model.config.shift = shift
    return model


def _fetched(path: str | Path, settings: dict[str, Any]) -> str | Path:
    """A hub name of ours or of `FORMATS` as the local folder of its files, anything else as it is."""
    if Path(path).exists() or not isinstance(path, str):
        return path
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options = {name: settings[name] for name in ("revision", "token", "cache_dir") if name in settings}
    try:
        config = Path(hf_hub_download(path, CONFIG, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return path  # what it is not, the loader of stock models says
    if not network_type(config.parent) and not _is_foreign(config.parent, settings):
        return path
    for name in options:
        settings.pop(name)
    return snapshot_download(path, allow_patterns=_KINDS, **options)


def _is_foreign(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a path holds a format of `FORMATS`: by what was asked for, a file of weights, or its configuration."""
    if "format" in settings or path.is_file():
        return True
    if not (path / CONFIG).is_file():
        return False
    said = read_json(path / CONFIG)
    named = str(said.get("model_type", "")).lower()
    return any(named in each.model_types for each in FORMATS.values()) or {"graph", "noise", "tokens"} <= set(said)
