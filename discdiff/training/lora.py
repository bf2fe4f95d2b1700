"""LoRA on any network of the library, by peft: small trainable matrices beside frozen ones (arXiv 2106.09685)."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from discdiff.config import checked, read_json
from discdiff.manifest import check_room, not_written, sha256, sync, write_json

WEIGHTS, SETTINGS = "lora.safetensors", "lora.json"


@dataclass(frozen=True)
class Lora:
    """W + (alpha / rank) B A beside every chosen linear map, B = 0 at first. alpha 0 is twice the rank.

    targets: endings of module names; () is every linear map but the tables of the vocabulary. Raises ValueError for
    numbers out of range.
    """

    rank: int = 8
    alpha: float = 0.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        checked("rank", self.rank, self.rank >= 1, "at least 1")
        checked("alpha", self.alpha, self.alpha >= 0, "0 (twice the rank) or more")
        checked("dropout", self.dropout, 0 <= self.dropout < 1, "a share in [0, 1)")


def add_lora(model: Any, lora: Lora, seed: int = 0) -> list[str]:
    """Freeze a network and put adapters into it, in place; the names of the maps that have one.

    The output is what it was, bit for bit, until a step is taken. Raises ValueError where peft is missing, nothing is
    chosen, or the network has adapters already.
    """
    peft = _peft()
    checked("model", type(model).__name__, not _layers(model), "it has adapters already: merge_lora first")
    names = _chosen(model, lora.targets)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha or 2 * lora.rank, lora_dropout=lora.dropout, target_modules=names
    )
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; its A are drawn anew by our own
        peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _layers(model):
        for part in layer.lora_A.values():
            start = torch.empty(part.weight.shape)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            part.weight.data.copy_(start)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return names


def merge_lora(model: Any) -> None:
    """Add the adapters to the weights they stand beside and remove them, in place; everything is trainable again."""
    for name, layer in _layers(model):
        layer.merge()
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, layer.base_layer)
    model.requires_grad_(True)


def save_lora(model: Any, lora: Lora, folder: str | Path) -> None:
    """The adapters alone: lora.safetensors, and lora.json with their SHA-256, so that a mixture of two is never taken.

    Raises OSError naming path and bytes where they do not fit or cannot be written; what was there is then whole, or refused.
    """
    path, weights = Path(folder), _weights(model)
    size = sum(x.nbytes for x in weights.values())
    check_room(path, size, "make room, or choose another folder")
    temporary = {name: path / f".tmp-{name}-{os.getpid()}" for name in (WEIGHTS, SETTINGS)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in weights.items()}, temporary[WEIGHTS])
        sync(temporary[WEIGHTS])
        write_json(temporary[SETTINGS], {**asdict(lora), "sha256": sha256(temporary[WEIGHTS])})
        for name, file in temporary.items():
            file.replace(path / name)
        sync(path)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error, size) from error
    finally:
        for file in temporary.values():
            with contextlib.suppress(OSError):
                file.unlink()


def load_lora(model: Any, folder: str | Path) -> Lora:
    """Put saved adapters into the network that they were trained on. Raises ValueError where they are damaged or do not fit."""
    path = Path(folder)
    try:
        said = read_json(path / SETTINGS)
        expected = said.pop("sha256", None)  # absent in older ones
        if expected not in (None, sha256(path / WEIGHTS)):
            raise ValueError(f"{WEIGHTS} does not have the SHA-256 of its {SETTINGS}")
        lora, stored = Lora(**said), load_file(path / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"no adapters in {str(folder)!r} ({error}): give a folder that save_lora wrote") from error
    add_lora(model, lora)
    own = _weights(model)
    wrong = sorted({*stored} ^ {*own} | {n for n in {*stored} & {*own} if stored[n].shape != own[n].shape})
    if wrong:
        merge_lora(model)
        raise ValueError(f"the adapters in {str(folder)!r} are of another network: {', '.join(wrong[:8])} do not fit")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])
    return lora


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in model.named_parameters() if "lora_" in name}


def _chosen(model: Any, targets: Sequence[str]) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    tables = {id(table) for table in model.tables}
    every = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and id(m) not in tables}
    names = [n for n in every if not targets or n.endswith(tuple(targets))]
    endings = sorted({n.rpartition(".")[2] for n in every})
    checked("targets", tuple(targets), bool(names), f"no linear map ends like that; there are {', '.join(endings)}")
    return names


def _layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"LoRA needs peft ({error}): pip install 'discdiff[train]'") from error
    return peft
