"""MDLM, SEDD, BD3LM, UDLM and Duo: one transformer under five configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from discdiff.checkpoints.files import Source, check_keys, dtype_name, narrowed, weights
from discdiff.config import checked, to_dict
from discdiff.layout import Layout, Segment, VocabLayout
from discdiff.models.config import check_count, check_memory
from discdiff.models.dit import TAIL, THETA, DitConfig, DitModel
from discdiff.models.loading import new_rows
from discdiff.processes import Absorbing, Process, Uniform
from discdiff.schedules import Geometric, Linear, Schedule

MEMBERS = ("mdlm", "sedd", "bd3lm", "udlm", "duo")
SETTINGS = (
    *("mask_token_id", "time_conditioning", "model_length", "block_size", "dropout", "cfg", "cfg_num_classes"),
    *("bos_id", "eos_id", "n_heads"),
)
PREFIX = "backbone."
_GPT2_WITH_MASK = 50258  # rows of a GPT-2 vocabulary with one more for the mask, its last
_FREQUENCY = "rotary_emb.inv_freq"
_BLOCK = (
    ("norm1.weight", "attention_norm.weight"),
    ("attn_qkv.weight", "attention.qkv.weight"),
    ("attn_out.weight", "attention.out.weight"),
    ("norm2.weight", "mlp_norm.weight"),
    ("mlp.0.weight", "mlp_first.weight"),
    ("mlp.0.bias", "mlp_first.bias"),
    ("mlp.2.weight", "mlp_second.weight"),
    ("mlp.2.bias", "mlp_second.bias"),
    ("adaLN_modulation.weight", "modulation.weight"),
    ("adaLN_modulation.bias", "modulation.bias"),
)
_EMBED, _HEAD, _HEAD_BIAS = "vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"


def names(layers: int, classes: int) -> dict[str, str]:
    """Foreign key -> ours, in the order of the network's parameters(); the head's weight and bias are one table of ours."""
    front = {_EMBED: "embed.weight"}
    front |= {
        f"sigma_map.mlp.{i}.{x}": f"sigma.{n}.{x}" for i, n in ((0, "first"), (2, "second")) for x in ("weight", "bias")
    }
    front |= {"cond_map.embedding_table.weight": "label.weight"} if classes else {}
    blocks = {f"blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(layers) for a, b in _BLOCK}
    back = {"output_layer.norm_final.weight": "norm.weight", _HEAD: "head.weight", _HEAD_BIAS: "head.weight"}
    back |= {f"output_layer.adaLN_modulation.{x}": f"modulation.{x}" for x in ("weight", "bias")}
    return {**front, **blocks, **back}


def shapes(config: DitConfig, rows: int) -> dict[str, tuple[int, ...]]:
    """Foreign key -> shape, buffers left out."""
    width, cond = config.hidden_size, config.cond_size
    found = {
        "vocab_embed.embedding": (rows, width),
        "sigma_map.mlp.0.weight": (cond, 256),
        "sigma_map.mlp.2.weight": (cond, cond),
        "cond_map.embedding_table.weight": (config.num_classes + 1, cond),
        "output_layer.norm_final.weight": (width,),
        _HEAD: (rows, width),
        _HEAD_BIAS: (rows,),
        "output_layer.adaLN_modulation.weight": (2 * width, cond),
        "output_layer.adaLN_modulation.bias": (2 * width,),
        "sigma_map.mlp.0.bias": (cond,),
        "sigma_map.mlp.2.bias": (cond,),
    }
    block = {
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "attn_qkv.weight": (3 * width, width),
        "attn_out.weight": (width, width),
        "mlp.0.weight": (4 * width, width),
        "mlp.0.bias": (4 * width,),
        "mlp.2.weight": (width, 4 * width),
        "mlp.2.bias": (width,),
        "adaLN_modulation.weight": (6 * width, cond),
        "adaLN_modulation.bias": (6 * width,),
    }
    found |= {f"blocks.{i}.{name}": shape for i in range(config.num_layers) for name, shape in block.items()}
    return {key: found[key] for key in names(config.num_layers, config.num_classes)}


def load(source: Source, member: str, overrides: Mapping[str, Any], dtype: torch.dtype | None, ema: bool) -> DitModel:
    """The network of a foreign checkpoint, all of it or a ValueError."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in source.shapes) else ""
    usual = _flat(source, member, prefix)
    said = {**usual, **overrides}
    try:
        config, rows = _config(said, member)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"config.json of {source.path} is not that of {member}: {type(error).__name__} {error}"
        ) from error
    check_memory(config, 2 if dtype is None else dtype.itemsize)
    buffers: dict[str, tuple[int, ...]] = {_FREQUENCY: (config.head_dim // 2,)}
    buffers |= {name: () for name in ("sampling_eps_min", "sampling_eps_max") if member == "bd3lm"}
    places = {key: prefix + key if key == _FREQUENCY else key for key in buffers}
    expected = {prefix + key: shape for key, shape in shapes(config, rows).items()}
    check_keys(source, expected | {places[key]: shape for key, shape in buffers.items()}, tuple(places.values()))
    read = _averaged(source, expected) if source.ema is not None and ema else source.read
    kept = {place: source.read(place) for place in places.values() if place in source.shapes}
    _check_frequencies(source, kept.get(places[_FREQUENCY]), config)
    config.origin = {
        "format": member,
        "prefix": prefix,
        "rows": rows,
        "config": _told(source.config, member, usual, overrides) or said,
        "buffers": {key: {"dtype": dtype_name(x), "values": x.tolist()} for key, x in kept.items()},
    }
    found = weights(source, read, {prefix + key: key for key in names(config.num_layers, config.num_classes)})
    config.origin["head"] = [dtype_name(found[key]) for key in (_HEAD, _HEAD_BIAS)]  # one table of ours, in the wider
    with torch.device("meta"):
        model = DitModel(config)
    own = _to_ours(found, model.vocab.total)
    model.load_state_dict(
        {key: x if dtype is None else x.to(dtype) for key, x in own.items()}, strict=True, assign=True
    )
    return model.eval()


def export(config: DitConfig, source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights in the original layout, from a folder of ours."""
    origin = config.origin
    if origin is None or origin.get("format") not in MEMBERS:
        raise ValueError(
            f"{source.path} was not converted from one of {', '.join(MEMBERS)}: there is no original layout"
        )
    if config.vocab_layout.modalities:
        raise ValueError(
            f"{source.path} has modalities beside text, for which the layout of {origin['format']} has no room"
        )
    prefix, rows, width = origin["prefix"], origin["rows"], config.hidden_size
    if origin["format"] == "sedd":
        own_mask, mask = rows - 1, config.vocab_layout.mask_id
        checked(
            "mask_token_id", mask, mask in (None, own_mask), f"SEDD's is its last id {own_mask}, it has no other place"
        )
        checked("time_conditioning", config.time_conditioning, config.time_conditioning, "SEDD always has it")
    own = names(config.num_layers, config.num_classes)
    head = source.read("head.weight")
    out = {
        prefix + key: source.read(mine)[: rows if key == _EMBED else None].contiguous()
        for key, mine in own.items()
        if key not in (_HEAD, _HEAD_BIAS)
    }
    for key, part, dtype in zip(
        (_HEAD, _HEAD_BIAS), (head[:rows, :width], head[:rows, -1]), _apart(origin), strict=True
    ):
        out[prefix + key] = narrowed(part.contiguous(), dtype)
    for key, kept in origin["buffers"].items():
        out[key] = torch.tensor(kept["values"], dtype=getattr(torch, kept["dtype"]))
    return origin["config"], out


def _told(
    config: dict[str, Any], member: str, usual: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json with what was said in its place; a mask that it leaves to the tokenizer stays unsaid."""
    told = {key: x for key, x in overrides.items() if usual.get(key) != x}
    if usual["vocab_size"] != _GPT2_WITH_MASK and not {"mask_token_id", "mask_index"} & set(usual):
        told.pop("mask_token_id", None)
    if member != "sedd" or not config:
        return {**config, **told} if config else {}
    places = {"n_heads": "n_heads", "model_length": "length", "dropout": "dropout"}
    return {**config, "model": config["model"] | {places[key]: x for key, x in told.items() if key in places}}


def _apart(origin: Mapping[str, Any]) -> list[str | None]:
    """Dtypes of the head's weight and bias, where they came with two."""
    found = origin.get("head") or []
    return [*found] if len(set(found)) == 2 else [None, None]


def _to_ours(foreign: dict[str, Tensor], total: int) -> dict[str, Tensor]:
    renamed = names(sum(key.endswith("norm1.weight") for key in foreign), "cond_map.embedding_table.weight" in foreign)
    own = {renamed[key]: x for key, x in foreign.items() if key not in (_HEAD, _HEAD_BIAS)}
    weight, bias = foreign[_HEAD], foreign[_HEAD_BIAS]
    own["head.weight"] = torch.cat([weight, weight.new_zeros(len(weight), TAIL - 1), bias[:, None]], 1)
    for seed, key in enumerate(("embed.weight", "head.weight")):
        missing = total - len(own[key])
        own[key] = torch.cat([own[key], new_rows(own[key], missing, seed)]) if missing else own[key]
    return own


def _averaged(source: Source, expected: Mapping[str, tuple[int, ...]]) -> Any:
    """A reader of the averaged weights, a list in the order of parameters()."""
    found = source.ema or []
    wrong = [key for key, x in zip(expected, found) if expected[key] != tuple(x.shape)]
    if len(found) != len(expected) or wrong:
        raise ValueError(
            f"{source.path}: ema.shadow_params has {len(found)} tensors for {len(expected)} parameters; of another shape: "
            f"{', '.join(wrong) or 'none'}. Pass ema=False for the weights without averaging"
        )
    return dict(zip(expected, found)).__getitem__


def _check_frequencies(source: Source, found: Tensor | None, config: DitConfig) -> None:
    expected = THETA ** (-torch.arange(config.head_dim // 2).double() / (config.head_dim // 2))
    if found is not None and not torch.allclose(found.double(), expected, rtol=1e-2, atol=0):
        raise ValueError(f"{source.path}: {_FREQUENCY} is not that of base {THETA:g}, the one this network rotates by")


def _config(said: Mapping[str, Any], member: str) -> tuple[DitConfig, int]:
    """Our configuration, and the number of rows of the foreign tables."""
    for key, only in (("causal", False), ("adaln", True), ("causal_attention", False)):
        if said.get(key, only) != only:
            raise ValueError(f"{key} is {said[key]!r} in this {member} checkpoint: only {only} is a diffusion network")
    rows = said["vocab_size"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 2:
        raise ValueError(f"vocab_size is {rows!r} in this {member} checkpoint: a whole number is expected")
    process, prediction = _process(said, member)
    mask = _mask(said, member, rows) if isinstance(process, Absorbing) else None
    ends = {name: said[name] for name in ("bos_id", "eos_id") if said.get(name) is not None}
    vocab = VocabLayout(rows, mask_id=mask, **ends)
    layout = None
    if member == "bd3lm":
        check_count("block_size", said["block_size"], said["model_length"])
        text = Segment("text", "text", (said["model_length"],))
        layout = to_dict(Layout(vocab, (text,), attention="block_causal", block=said["block_size"]))
    classes = said.get("cfg_num_classes", 0) if said.get("cfg", False) else 0
    config = DitConfig(
        vocab=vocab,  # type: ignore[arg-type]
        hidden_size=said["hidden_dim"],
        cond_size=said["cond_dim"],
        num_layers=said["n_blocks"],
        num_heads=said["n_heads"],
        dropout=said["dropout"],
        max_length=said["model_length"] * (2 if member == "bd3lm" else 1),
        num_classes=classes,
        time_conditioning=said["time_conditioning"],
        scale_by_sigma=said.get("scale_by_sigma", False),
        prediction=prediction,
        process=to_dict(process),
        layout=layout,
    )
    return config, rows


def _process(said: Mapping[str, Any], member: str) -> tuple[Process, str]:
    """The process and what the network predicts of it."""
    log_linear = Linear(end=1e-3)
    if member == "sedd":
        kind, noise = said["graph"], said["noise"]
        schedules: dict[Any, Schedule] = {"loglinear": log_linear}
        if noise["type"] == "geometric":
            schedules["geometric"] = Geometric(noise["sigma_min"], noise["sigma_max"])
        if kind not in ("absorb", "uniform") or noise["type"] not in schedules:
            raise ValueError(f"graph {kind!r} with noise {noise['type']!r}: absorb or uniform, loglinear or geometric")
        schedule = schedules[noise["type"]]
        # at a mask the score of a clean token is a / (1 - a) times its probability: its log is a logit of x0 (RADD)
        return (Absorbing(schedule), "own") if kind == "absorb" else (Uniform(schedule), "score")
    if member in ("udlm", "duo"):
        return Uniform(log_linear), "cavity"  # both train the plug-in posterior, exact for the cavity prediction
    return Absorbing(log_linear if said["time_conditioning"] else Linear()), "own"  # without time any schedule will do


def _mask(said: Mapping[str, Any], member: str, rows: int) -> int:
    known = rows - 1 if member == "sedd" or rows == _GPT2_WITH_MASK else None
    found = said.get("mask_token_id", said.get("mask_index", known))
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < rows:
        raise ValueError(
            f"mask_token_id is {found!r} in this {member} checkpoint of {rows} ids: pass mask_token_id=... (GPT-2 with an "
            f"added mask: {rows - 1}; BERT: 103)"
        )
    return found


def _flat(source: Source, member: str, prefix: str) -> dict[str, Any]:
    """The configuration under the names of UDLM's, which the others share or are given here."""
    timed = member in ("udlm", "duo", "sedd")
    usual = {"dropout": 0.1, "time_conditioning": timed, "model_length": 1024, "cond_dim": 128}
    said = dict(source.config)
    if member == "sedd" and said:
        said = _sedd(said, source)
    if not said:
        said = _from_shapes(source, prefix)
        if member == "sedd":
            raise ValueError(f"{source.path} has no config.json beside it: SEDD's says graph, noise and scale_by_sigma")
        said |= {"block_size": None} if member == "bd3lm" else {}
    said = {**usual, **said}
    missing = [name for name in ("vocab_size", "hidden_dim", "n_blocks", "n_heads") if name not in said]
    if missing:
        raise ValueError(f"config.json of {source.path} lacks {', '.join(missing)}, which {member} has")
    return said


def _sedd(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    try:
        model, graph, tokens = config["model"], config["graph"]["type"], config["tokens"]
        return {
            "graph": graph,
            "noise": dict(config["noise"]),
            "vocab_size": tokens + 1 if graph == "absorb" else tokens,
            "hidden_dim": model["hidden_size"],
            "cond_dim": model["cond_dim"],
            "n_blocks": model["n_blocks"],
            "n_heads": model["n_heads"],
            "dropout": model["dropout"],
            "model_length": model["length"],
            "scale_by_sigma": model["scale_by_sigma"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json of {source.path} is not SEDD's: {type(error).__name__} {error}") from error


def _from_shapes(source: Source, prefix: str) -> dict[str, Any]:
    """Sizes of a network that comes without a configuration, as Lightning checkpoints do."""
    found = source.shapes
    try:
        rows, width = found[prefix + _EMBED]
        cond = found[f"{prefix}sigma_map.mlp.2.weight"][0]
        half = math.prod(found[prefix + _FREQUENCY])
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{source.path} has no config.json, and no usable {error} to tell its size from") from error
    layers = sum(key.startswith(f"{prefix}blocks.") and key.endswith(".norm1.weight") for key in found)
    sizes = {
        "vocab_size": rows,
        "hidden_dim": width,
        "cond_dim": cond,
        "n_blocks": layers,
        "n_heads": width // (2 * half or 1),
    }
    labels = found.get(f"{prefix}cond_map.embedding_table.weight")
    return {**sizes, **({"cfg": True, "cfg_num_classes": labels[0] - 1} if labels else {})}
