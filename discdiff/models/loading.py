"""Weights from a folder, all of them or an error; and tables that grow with the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from discdiff.layout import VocabLayout
from discdiff.layout.vocab import SPECIALS
from discdiff.models.config import check_memory
from discdiff.noise import LATENT, Noise

if TYPE_CHECKING:
    from discdiff.models.network import Network

_PLACE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_NOISE = 0.1  # of the spread of the old rows: new ids start apart, but close to a typical one


def load(cls: type[Network], read: Callable[..., Any], path: Any, args: Any, dtype: Any, kwargs: dict[str, Any]) -> Any:
    """`read`, the from_pretrained of transformers, with everything that it leaves at random values made an error."""
    if kwargs.pop("ignore_mismatched_sizes", False):
        raise ValueError(
            "ignore_mismatched_sizes=True leaves weights at random values: use resize for a new vocabulary"
        )
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("use_safetensors=False reads pickles, which can run code: convert the weights to safetensors")
    dtype = kwargs.pop("torch_dtype", dtype)
    with_info = kwargs.pop("output_loading_info", False)
    config = kwargs.pop("config", None)
    if config is None:
        place = {name: kwargs[name] for name in _PLACE if name in kwargs}
        config, kwargs = cls.config_class.from_pretrained(path, return_unused_kwargs=True, **kwargs)
        kwargs.update(place)
    if not isinstance(config, cls.config_class):
        raise ValueError(f"config is {config!r}: give a {cls.config_class.__name__}")
    config.check()
    kind = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype
    if kwargs.get("device_map") is None:
        check_memory(config, kind.itemsize)
    # Mismatches are let through here because they are refused below, together with all that is missing or superfluous.
    options = {**kwargs, "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = read(path, *args, config=config, dtype=dtype, **options)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        what = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys)}" for kind, keys in wrong.items())
        raise ValueError(
            f"the weights in {path} are not those of this configuration: {what}. Load the one saved with them"
        )
    return (model, info) if with_info else model


def grow(model: Network, vocab: VocabLayout) -> None:
    """Tables for a vocabulary with modalities appended; new rows are the mean of the old plus a little keyed noise."""
    if not _extends(vocab, model.vocab):
        raise ValueError(vocab_message(model.vocab, vocab))
    used = model.vocab.text_size + SPECIALS + sum(m.size for m in model.vocab.modalities)
    grown: dict[int, nn.Parameter] = {}  # a tied head is the embedding
    for table in model.tables:
        old = table.weight
        if id(old) not in grown:
            rows = _new_rows(old.detach()[:used], vocab.total - used, len(grown))
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


def _new_rows(old: Tensor, count: int, seed: int) -> Tensor:
    wide = old.double()
    noise = Noise.seeded(seed, torch.ones(1, count, dtype=torch.bool, device=old.device)).normal(LATENT, old.shape[1])
    return (wide.mean(0) + _NOISE * wide.std(0, correction=0) * noise[0]).to(old.dtype)
