"""Weights from a folder, all of them or an error; and tables that grow with the vocabulary."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from discdiff.config import checked, read_json
from discdiff.layout import VocabLayout
from discdiff.layout.vocab import SPECIALS
from discdiff.manifest import sealed, verify
from discdiff.models.config import check_memory
from discdiff.noise import LATENT, Noise

if TYPE_CHECKING:
    from discdiff.models.network import Network

_PLACE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_HASHED = 2**30  # bytes; larger files are hashed only when asked, at about 1 s per GB
_NOISE = 0.1  # of the spread of the old rows: new ids start apart, but close to a typical one

_LINE = 64  # bytes to whose multiples memory is allocated


def load(cls: type[Network], read: Callable[..., Any], path: Any, args: Any, dtype: Any, kwargs: dict[str, Any]) -> Any:
    """`read`, the from_pretrained of transformers, with everything that it leaves at random values made an error."""
    if kwargs.pop("ignore_mismatched_sizes", False):
        raise ValueError(
            "ignore_mismatched_sizes=True leaves weights at random values: use resize for a new vocabulary"
        )
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False reads pickles, which can run code: convert the weights to safetensors")
    check_folder(path, kwargs)
    dtype = kwargs.pop("torch_dtype", dtype)
    with_info = kwargs.pop("output_loading_info", False)
    config = kwargs.pop("config", None)
    if config is None:
        config, kwargs = _config(cls, path, kwargs)
    if not isinstance(config, cls.config_class):
        raise ValueError(f"config is {config!r}: give a {cls.config_class.__name__}")
    config.check()
    kind = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype
    if kwargs.get("device_map") is None:
        check_memory(config, kind.itemsize)
    # Mismatches are let through here because they are refused below, together with all that is missing or superfluous.
    options = {**kwargs, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        model, info = read(path, *args, config=config, dtype=dtype, **options)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any type: safetensors has its own, parsers raise what they happen to
        raise ValueError(f"the weights in {path} cannot be loaded: {type(error).__name__}: {error}") from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        what = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys)}" for kind, keys in wrong.items())
        raise ValueError(
            f"the weights in {path} are not those of this configuration: {what}. Load the one saved with them"
        )
    _align(model)
    return (model, info) if with_info else model


def _align(model: torch.nn.Module) -> None:
    """Weights that lie in a file's memory begin anywhere: where a CPU then takes another path, the last bit of a result differs
    from that of the model that was saved.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % _LINE:
            weight.data = weight.data.clone()


def _config(cls: type[Network], path: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(configuration under `path`, options that are none of its fields). Raises ValueError naming file and field."""
    file = Path(path, options.get("subfolder") or "", "config.json")
    data = read_json(file) if file.is_file() else {}
    kind, stored = data.get("model_type"), data.get("dtype")
    checked(f"dtype in {file}", stored, stored is None or isinstance(stored, str), "give the name of a torch dtype")
    if kind not in (None, cls.config_class.model_type):
        raise ValueError(f"{file} has model_type {kind!r}, {cls.__name__} reads {cls.config_class.model_type!r}")
    try:
        config, rest = cls.config_class.from_pretrained(path, return_unused_kwargs=True, **options)
    except OSError:
        raise
    except Exception as error:  # of any type: the validation of transformers raises its own
        raise ValueError(f"{file}: {error}") from error
    return config, rest | {name: options[name] for name in _PLACE if name in options}


def check_folder(path: Any, options: dict[str, Any]) -> None:
    """What can be said of a local folder before its files are read."""
    hashes = options.pop("check_hashes", None)
    if not isinstance(path, str | os.PathLike):
        return
    folder = Path(path, options.get("subfolder") or "")
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds adapter_config.json, which leads to another model: load that, then its adapters"
        )
    if sealed(folder):
        verify(folder, hashes is not False, None if hashes else _HASHED)
    for file in folder.glob("model*.safetensors"):
        _check_header(file)


def _check_header(file: Path) -> None:
    """Raise ValueError, naming file and tensor, for what is no safetensors file or holds integers as weights."""
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, not a dict
                kind = opened.get_slice(name).get_dtype()
                if name.endswith((".weight", ".bias")) and not kind.startswith(("F", "BF")):
                    raise ValueError(f"{file}: {name} is of type {kind}, weights are floating point numbers")
    except SafetensorError as error:
        raise ValueError(f"{file} is no valid safetensors file: {error}") from error


def grow(model: Network, vocab: VocabLayout) -> None:
    """Tables for a vocabulary with modalities appended; new rows are the mean of the old plus a little keyed noise."""
    if not _extends(vocab, model.vocab):
        raise ValueError(vocab_message(model.vocab, vocab))
    used = model.vocab.text_size + SPECIALS + sum(m.size for m in model.vocab.modalities)
    grown: dict[int, nn.Parameter] = {}  # a tied head is the embedding
    for table in model.tables:
        old = table.weight
        if id(old) not in grown:
            rows = new_rows(old.detach()[:used], vocab.total - used, len(grown))
            grown[id(old)] = nn.Parameter(torch.cat([old.detach()[:used], rows]), requires_grad=old.requires_grad)
        table.weight = grown[id(old)]
    for table in model.tables:
        size = "num_embeddings" if isinstance(table, nn.Embedding) else "out_features"
        setattr(table, size, vocab.total)
    model.vocab = vocab
    model.config.vocab = json.loads(vocab.to_json())


def vocab_message(own: VocabLayout, other: VocabLayout) -> str:
    """Why `other` does not go with a model of `own`, and what helps."""
    if _extends(other, own):
        names = ", ".join(m.name for m in other.modalities[len(own.modalities) :])
        return f"the vocabulary has new modalities ({names}), the model has not: call model.resize(layout.vocab) first"
    return f"the vocabulary {other} is not the model's {own}: build the layout from model.vocab, or extend that"


def _extends(vocab: VocabLayout, old: VocabLayout) -> bool:
    return replace(vocab, modalities=vocab.modalities[: len(old.modalities)]) == old


def new_rows(old: Tensor, count: int, seed: int) -> Tensor:
    wide = old.double()
    noise = Noise.seeded(seed, torch.ones(1, count, dtype=torch.bool, device=old.device)).normal(LATENT, old.shape[1])
    return (wide.mean(0) + _NOISE * wide.std(0, correction=0) * noise[0]).to(old.dtype)
