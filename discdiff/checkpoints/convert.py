"""load_foreign and convert: public checkpoints in, our folders out, and back, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from discdiff.checkpoints.files import CONFIG, open_source
from discdiff.checkpoints.formats import FORMATS, recognise
from discdiff.config import checked
from discdiff.models import DitConfig, HostedConfig, HostedModel, Network

TARGETS = ("ours", "original")
_BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"),
)


def load_foreign(
    path: str | Path,
    format: str | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    ema: bool = True,
    **settings: Any,
) -> Network:
    """The network of a public checkpoint (a folder or a file of weights), in `dtype`; None keeps that of each tensor.

    format: a name of `FORMATS`, needed where config.json does not tell. ema: averaged weights, where a training
    checkpoint has them. settings: what config.json does not say or says wrongly, such as mask_token_id. No code of the
    checkpoint is run, nothing is left at random values. Raises ValueError for an unknown format or setting, and for keys
    that are missing, superfluous or of another shape, all of them listed.
    """
    source = open_source(path)
    name = recognise(source, format)
    chosen = FORMATS[name]
    unknown = [key for key in settings if key not in chosen.settings]
    if unknown:
        raise ValueError(f"unknown settings {unknown} of the format {name}: known are {', '.join(chosen.settings)}")
    return chosen.load(source, {key: x for key, x in settings.items() if x is not None}, dtype, ema)


def convert(
    src: str | Path,
    dst: str | Path,
    to: str | None = None,
    format: str | None = None,
    ema: bool = True,
    **settings: Any,
) -> Path:
    """A public checkpoint to a folder of ours ("ours"), or such a folder back to the original layout ("original").

    to: the direction, by default the one that `src` is not in. Every tensor keeps its dtype and its bits; tokenizer files
    go along. The folder appears complete or not at all. Raises ValueError as `load_foreign` does, where `dst` exists,
    and where the original layout has no place for what the model is now, such as its shift.
    """
    source, dst = open_source(src), Path(dst)
    is_ours = str(source.config.get("model_type", "")).startswith("discdiff")
    to = ("original" if is_ours else "ours") if to is None else to
    if to not in TARGETS or is_ours is (to == "ours"):
        raise ValueError(
            f"to is {to!r}: {src} is {'ours' if is_ours else 'foreign'}, convert it to the other of {TARGETS}"
        )
    if dst.exists():
        raise ValueError(f"{dst} exists: name a new folder")
    work = dst.with_name(f".{dst.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        for name in _BESIDE:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, work / name)
        if to == "ours":
            load_foreign(src, format, dtype=None, ema=ema, **settings).save_pretrained(work)
        else:
            _export(source.folder, work, format)
        os.replace(work, dst)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return dst


def _export(folder: Path, work: Path, format: str | None) -> None:
    source = open_source(folder)
    config = _config_of(source.config)
    origin = getattr(config, "origin", None) or {}
    name = origin.get("format")
    if not origin and format is None and isinstance(config, HostedConfig):  # a stock model, under its own keys
        _check_stock(config)
        HostedModel.from_pretrained(folder, dtype="auto").to_host().save_pretrained(work)
        return
    if name not in FORMATS or format not in (None, name):
        raise ValueError(f"{folder} was converted from {name or 'nothing'}, not {format or 'a known format'}")
    said, weights = FORMATS[name].export(config, source)
    save_file(weights, work / "model.safetensors", {"format": "pt"})
    (work / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _check_stock(config: HostedConfig) -> None:
    """Raise ValueError for what a stock model cannot say: a mask without a row, another slot that predicts."""
    rows, mask, natural = config.host_config.vocab_size, config.vocab_layout.mask, config.family.decoder
    remedy = f"a {config.family.model} has no place to say so, keep the folder of ours"
    checked("mask id", mask, mask < rows, f"the host has {rows} rows, so what the mask learned would be lost: {remedy}")
    checked("shift", config.shift, config.shift == natural, remedy)


def _config_of(said: dict[str, Any]) -> Any:
    """The configuration of a folder of ours."""
    kinds = {kind.model_type: kind for kind in (DitConfig, HostedConfig)}
    if said.get("model_type") not in kinds:
        raise ValueError(f"a {said.get('model_type')!r} has no original layout: {', '.join(kinds)} have")
    return kinds[said["model_type"]].from_dict(said)
