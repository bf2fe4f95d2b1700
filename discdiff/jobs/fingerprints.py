"""What tells one job's settings, network and rows from another's, as JSON data."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from discdiff.config import to_dict
from discdiff.layout import TokenBatch


def plain(value: Any) -> Any:
    """Settings as JSON data; networks by their weights, functions by their name."""

    def name(part: Any) -> Any:
        if isinstance(part, torch.nn.Module | Tensor):
            return network(part)
        if isinstance(part, functools.partial):
            return {"function": part.func, "args": to_dict(part.args), **to_dict(part.keywords)}
        if hasattr(part, "__qualname__"):
            return part.__qualname__
        return {"type": type(part).__qualname__, **{k: to_dict(v) for k, v in getattr(part, "__dict__", {}).items()}}

    return json.loads(json.dumps(to_dict(value), default=name))


def network(model: Any) -> Any:
    """What tells one network from another: SHA-256 of its weights, its settings and the kind of device it is on."""
    if isinstance(model, Tensor):
        return digest({"tensor": model})
    if not isinstance(model, torch.nn.Module):
        return type(model).__qualname__
    config = getattr(model, "config", None)
    shown = {k: v for k, v in config.to_dict().items() if not k.startswith("_")} if config is not None else {}
    device = next((x.device.type for x in model.parameters()), "cpu")
    said = json.dumps(shown, default=str, sort_keys=True)
    return {"weights": digest(dict(model.state_dict())), "config": digest({"": said}), "device": device}


def digest(parts: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name, part in parts.items():
        found.update(name.encode())
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            found.update(digest(part).encode())
        else:
            found.update(json.dumps(plain(part), sort_keys=True).encode())
    return found.hexdigest()


def source(rows: Any) -> str:
    """Of a batch its contents; a function cannot be told from another."""
    return digest(rows._asdict()) if isinstance(rows, TokenBatch) else "function"
