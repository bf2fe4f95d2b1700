"""The public formats by name: how each is recognised, loaded and written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.checkpoints import decoders, dit
from discdiff.checkpoints.files import Source
from discdiff.models import Network


class Format(NamedTuple):
    """model_types: what its config.json calls itself, in lower case; settings: what a caller may say in its place.

    load: (source, settings, dtype or None, ema) -> network. export: (our configuration, our folder) -> (config.json, weights).
    """

    model_types: tuple[str, ...]
    settings: tuple[str, ...]
    load: Callable[[Source, Mapping[str, Any], torch.dtype | None, bool], Network]
    export: Callable[[Any, Source], tuple[dict[str, Any], dict[str, Tensor]]]


def _dit(member: str) -> Format:
    def load(source: Source, settings: Mapping[str, Any], dtype: torch.dtype | None, ema: bool) -> Network:
        return dit.load(source, member, settings, dtype, ema)

    return Format((member,), dit.SETTINGS, load, dit.export)


def _decoder(name: str) -> Format:
    def load(source: Source, settings: Mapping[str, Any], dtype: torch.dtype | None, ema: bool) -> Network:
        return decoders.load(source, name, settings, dtype)

    return Format((name,), decoders.SETTINGS, load, decoders.export)


FORMATS: dict[str, Format] = {
    **{name: _dit(name) for name in dit.MEMBERS},
    **{name: _decoder(name) for name in decoders.FAMILIES},
}


def recognise(source: Source, name: str | None = None) -> str:
    """The format of a checkpoint. Raises ValueError for an unknown one."""
    known = ", ".join(FORMATS)
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}: known are {known}")
        return name
    said = str(source.config.get("model_type", "")).lower()
    found = [name for name, each in FORMATS.items() if said in each.model_types]
    if not said and {"graph", "noise", "tokens", "model"} <= set(source.config):
        found = ["sedd"]  # its configuration has no model_type
    if len(found) == 1:
        return found[0]
    if said.startswith("discdiff"):
        raise ValueError(f"{source.path} is a model of this library: load it with from_pretrained")
    keys = ", ".join(list(source.shapes)[:8])
    raise ValueError(
        f"{source.path} is of no known format (model_type {said or 'none'!r}; first keys: {keys}): give format=, one of {known}"
    )
