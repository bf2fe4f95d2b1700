"""The model card: README.md beside saved weights, written from the configuration, never over one that was edited."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

CARD = "README.md"
_MARK = "<!-- written by discdiff; saving again replaces this file until it is edited: {} -->"


def versions() -> dict[str, str]:
    """Of the libraries that decide the numbers."""
    named = {m.__name__: str(m.__version__) for m in (torch, transformers, safetensors)}
    return {"python": platform.python_version(), **named}


def card(model: Any) -> str:
    """Markdown that says what a network is: process, prediction, layout, vocabulary, how to sample, library versions."""
    config = model.config
    count = sum(p.numel() for p in model.parameters())
    name = type(model).__name__
    lines = {
        "Network": f"{name}, {count:,} weights ({str(model.dtype).removeprefix('torch.')})",
        "Process": _settings(config.process) if config.process else "not recorded",
        "Schedule": _schedule(config.process),
        "Prediction": _PREDICTIONS[config.prediction] + (", read from the slot before (shift)" if config.shift else ""),
        "Noise level": "an input" if config.time_conditioning else "not an input",
        "Layout": _layout(config.layout),
        "Vocabulary": _vocabulary(config.vocab_layout),
        "Longest row": f"{config.max_length} slots",
    }
    body = f"""# {name}

A discrete diffusion model, saved by [discdiff](https://pypi.org/project/discdiff/).

| | |
|---|---|
{chr(10).join(f"| {key} | {value} |" for key, value in lines.items())}

## Use

```python
from discdiff.models import load_network

model = load_network("path/to/this/folder")
tokens, info = model.generate(rows, "ancestral", steps=64)  # rows (batch, length) int64, masks where to write
```

The process above is read from config.json; `discdiff.PRESETS` lists the other samplers. `discdiff check` compares this
folder with its manifest.json.

## Written with

{", ".join(f"{key} {value}" for key, value in versions().items())}
"""
    return f"---\nlibrary_name: discdiff\ntags:\n- discrete-diffusion\n---\n{_MARK.format(_digest(body))}\n\n{body}"


def write_card(model: Any, folder: Path, present: Path) -> None:
    """Put a card into `folder`, unless the one in `present` was written or changed by hand."""
    old = present / CARD
    if not old.exists() or _is_ours(old):
        (folder / CARD).write_text(card(model), encoding="utf-8")


def _is_ours(file: Path) -> bool:
    """Whether the text is what `card` wrote, unchanged."""
    try:
        head, mark, body = file.read_text(encoding="utf-8").partition(" -->\n\n")
    except (OSError, ValueError):
        return False
    return bool(mark) and f"{head} -->".endswith(_MARK.format(_digest(body)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_PREDICTIONS = {
    "own": "clean tokens given the whole row, p(x0_i \\| x_t)",
    "cavity": "clean tokens given the rest of the row, p(x0_i \\| x_t without i)",
    "score": "log concrete scores, log p_t(y) / p_t(x_t), read by `denoisers.LogScore`",
}


def _settings(data: Any) -> str:
    """Settings as saved, in the form in which Python would build them."""
    if isinstance(data, Mapping) and "type" in data:
        inside = ", ".join(f"{key}={_settings(value)}" for key, value in data.items() if key != "type")
        return f"{data['type']}({inside})"
    if isinstance(data, Mapping):
        return "{" + ", ".join(f"{key}: {_settings(value)}" for key, value in data.items()) + "}"
    return str(data).replace("|", "\\|")


def _schedule(process: Mapping[str, Any] | None) -> str:
    found = (process or {}).get("schedule")
    return _settings(found) if found else "not recorded"


def _layout(layout: Mapping[str, Any] | None) -> str:
    segments = (layout or {}).get("segments")
    if not isinstance(segments, list):
        return "not recorded"
    return ", ".join(_settings(segment) for segment in segments)


def _vocabulary(vocab: Any) -> str:
    parts = [f"{vocab.text_size} text ids", *(f"{m.name} {m.codebook} x {m.depth}" for m in vocab.modalities)]
    return f"{', '.join(parts)}; mask {vocab.mask}; {vocab.total} rows in all"
