"""Weights, optimizer and random state as named tensors and JSON, and back; sharded (FSDP2) tensors are stored whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from discdiff.manifest import write_json
from discdiff.models import Network
from discdiff.training.checkpoint import CheckpointError


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks (a collective call), any other as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def placed(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor with the device, dtype and sharding of `like`."""
    x = x.to(device=like.device, dtype=like.dtype)
    if hasattr(like, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(x, like.device_mesh, like.placements)  # type: ignore[attr-defined]
    return x


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Named tensors as safetensors."""
    save_file({name: x.detach().contiguous() for name, x in tensors.items()}, path, metadata={"format": "pt"})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors."""
    return {name: whole(x.detach()) for name, x in model.state_dict(keep_vars=True).items()}


def save_weights(model: Any, tensors: dict[str, Tensor], folder: Path, original_format: bool) -> None:
    """`save_pretrained` with these tensors, or `model.safetensors` for a plain module, where tied ones are stored once.

    original_format: for use rather than to resume from: key names of the published checkpoint that a stock model came
    from, a manifest and a model card.
    """
    if hasattr(model, "save_pretrained"):
        options = {"save_original_format": original_format} if isinstance(model, PreTrainedModel) else {}
        sealed = {"sealed": original_format} if isinstance(model, Network) else {}
        model.save_pretrained(folder, state_dict=tensors, **options, **sealed)
        return
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[int, str] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        first.setdefault(id(x), name)
    save_tensors(folder / "model.safetensors", {name: tensors[name] for name in first.values()})


@torch.no_grad()
def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Weights of a checkpoint into the model. Raises CheckpointError unless names and shapes agree exactly."""
    stored: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        stored |= load_file(file)
    own = model.state_dict(keep_vars=True)
    held = {id(own[name]) for name in stored if name in own}  # a tied weight is stored under one of its names
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = [name for name, x in own.items() if id(x) not in held and name not in ignored]
    wrong = [name for name, x in stored.items() if name not in own or own[name].shape != x.shape]
    if missing or wrong:
        raise CheckpointError(
            f"{folder} is of another model: missing {missing[:4]}, unknown or of another shape {wrong[:4]}"
        )
    for name, x in stored.items():
        own[name].copy_(placed(x, own[name]))


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors named `PARAMETER/KEY`, JSON of the rest) of an optimizer."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    names = _names(optimizer, model)
    state = optimizer.state_dict()
    for number, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{names[number]}/{key}"] = whole(value.detach())
            else:
                rest.setdefault(names[number], {})[key] = value
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    plain = [{k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()} for group in groups]
    return tensors, {"groups": plain, "rest": rest}


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, folder: str | Path) -> None:
    """Inverse of `optimizer_state`. Raises CheckpointError where the parameters or their groups differ."""
    tensors = load_file(Path(folder) / "optimizer.safetensors")
    data = json.loads((Path(folder) / "optimizer.json").read_text(encoding="utf-8"))
    names = _names(optimizer, model)
    grouped = [[names[i] for i in group["params"]] for group in optimizer.state_dict()["param_groups"]]
    if grouped != [group["params"] for group in data["groups"]]:
        raise CheckpointError(f"{folder} has the optimizer state of other parameters or other groups of them")
    number = {name: i for i, name in enumerate(names)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {number[name]: dict(entry) for name, entry in data["rest"].items()}
    for key, x in tensors.items():
        name, _, kind = key.rpartition("/")
        p = parameters[number[name]]
        state.setdefault(number[name], {})[kind] = placed(x, p) if x.shape == p.shape else x
    groups = [
        {
            **{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()},
            "params": [number[n] for n in group["params"]],
        }
        for group in data["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Name of each parameter in the optimizer's own numbering."""
    named = {id(p): name for name, p in model.named_parameters()}
    return [named[id(p)] for group in optimizer.param_groups for p in group["params"]]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """This process's generators of torch (dropout draws from them; the library's own draws need none), (1, n) uint8."""
    states = {"cpu": torch.random.get_rng_state()[None]}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)[None]
    return states


def load_random_state(device: torch.device, folder: str | Path, process: int) -> bool:
    """Set the generators as process number `process` had them; False if there were fewer processes."""
    states = load_file(Path(folder) / "rng_state.safetensors")
    if process >= len(states["cpu"]):
        return False
    torch.random.set_rng_state(states["cpu"][process].clone())  # a view into the stack makes torch crash
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][process].clone(), device)
    return True


def save_states(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], data: Mapping[str, Any]) -> None:
    """One safetensors file per entry of `tensors`, one JSON file per entry of `data`."""
    for name, named in tensors.items():
        save_tensors(folder / f"{name}.safetensors", named)
    for name, value in data.items():
        write_json(folder / f"{name}.json", value)
