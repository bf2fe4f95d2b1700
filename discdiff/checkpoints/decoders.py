"""LLaDA, Dream, SDAR and A2D: stock decoders of transformers under other names, looking both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from discdiff.checkpoints.files import Source, check_keys, dtype_name, narrowed, tokenizer_size, weights
from discdiff.config import checked, to_dict
from discdiff.layout import Layout, Segment
from discdiff.models.config import as_json, check_count

SETTINGS = ("mask_token_id", "text_size", "block_size", "shift", "bos_id", "eos_id", "rope_theta")
_LLADA = (
    ("model.transformer.wte", "model.embed_tokens"),
    ("model.transformer.ln_f", "model.norm"),
    ("model.transformer.ff_out", "lm_head"),
    *(
        (f"model.transformer.blocks.#.{theirs}", f"model.layers.#.{stock}")
        for theirs, stock in (
            ("attn_norm", "input_layernorm"),
            ("ff_norm", "post_attention_layernorm"),
            *((f"{part}_proj", f"self_attn.{part}_proj") for part in "qkv"),
            ("attn_out", "self_attn.o_proj"),
            ("ff_proj", "mlp.gate_proj"),
            ("up_proj", "mlp.up_proj"),
            ("ff_out", "mlp.down_proj"),
        )
    ),
)
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OTHERS = (
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "head_dim", "attention_bias"),
    *("mlp_bias", "tie_word_embeddings", "attention_dropout", "initializer_range"),
)


@dataclass(frozen=True)
class Family:
    """A stock model, how its configuration is said, its keys' other names, and whether the slot before predicts."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    translate: Callable[[Mapping[str, Any]], dict[str, Any]]
    renamed: tuple[tuple[str, str], ...] = ()
    shift: bool = False
    blocks: bool = False


def _stock(said: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a stock configuration from one that uses its names."""
    missing = [name for name in (*_SIZES, "rms_norm_eps", "rope_theta") if name not in _theta(said)]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    if said.get("use_sliding_window"):
        raise ValueError("use_sliding_window is True in config.json: a network that sees everything has no window")
    return {name: said[name] for name in (*_SIZES, *_OTHERS) if name in said} | {"rope_parameters": _rope(_theta(said))}


def _llada(said: Mapping[str, Any]) -> dict[str, Any]:
    """Options of Llama's configuration from LLaDA's, an OLMo-like one."""
    only = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False}
    only |= {"include_bias": False, "include_qkv_bias": False, "block_group_size": 1, "attention_layer_norm": False}
    only |= {"scale_logits": False, "input_emb_norm": False, "clip_qkv": None, "layer_norm_with_affine": True}
    wrong = [f"{name} is {said[name]!r}, not {x!r}" for name, x in only.items() if said.get(name, x) != x]
    needed = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "rms_norm_eps", "rope_theta", "max_sequence_length")
    wrong += [f"{name} is missing" for name in (*needed, "vocab_size") if said.get(name) is None]
    if wrong:
        raise ValueError(f"config.json is not that of a LLaDA made of Llama blocks: {'; '.join(wrong)}")
    return {
        "vocab_size": said.get("embedding_size") or said["vocab_size"],
        "hidden_size": said["d_model"],
        "intermediate_size": said["mlp_hidden_size"],
        "num_hidden_layers": said["n_layers"],
        "num_attention_heads": said["n_heads"],
        "num_key_value_heads": said.get("n_kv_heads") or said["n_heads"],
        "max_position_embeddings": said["max_sequence_length"],
        "rms_norm_eps": said["rms_norm_eps"],
        "tie_word_embeddings": bool(said.get("weight_tying", False)),
        "rope_parameters": _rope(said),
    }


def _theta(said: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its rotary base on top, where transformers 5 does not write it any more."""
    nested = said.get("rope_parameters")
    return {**nested, **said} if isinstance(nested, dict) else dict(said)


def _rope(said: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(said.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.get("rope_type") or said.get("rope_type") or "default"
    return {**scaling, "rope_type": kind, "rope_theta": float(said["rope_theta"])}


FAMILIES = {
    "llada": Family(LlamaConfig, LlamaForCausalLM, _llada, _LLADA),
    "dream": Family(Qwen2Config, Qwen2ForCausalLM, _stock, shift=True),
    "sdar": Family(Qwen3Config, Qwen3ForCausalLM, _stock, blocks=True),
    "a2d-llama": Family(LlamaConfig, LlamaForCausalLM, _stock),
    "a2d-qwen2": Family(Qwen2Config, Qwen2ForCausalLM, _stock),
    "a2d-qwen3": Family(Qwen3Config, Qwen3ForCausalLM, _stock),
}
_MASKS = {("llada", 126464): 126336}  # of a published table whose configuration may not say it


def stock(
    source: Source, name: str, said: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[PreTrainedModel, dict[str, str]]:
    """The stock model with the checkpoint's weights, all of them or a ValueError, and the dtypes they came in by key."""
    family = FAMILIES[name]
    fused = [key for key in source.shapes if ".att_proj." in key or ".block_groups." in key]
    if fused:
        raise ValueError(
            f"{source.path} has fused or grouped blocks ({', '.join(fused[:4])}): only LLaDA's separate q, k and v "
            "(block_type llama, block_group_size 1) are known"
        )
    try:
        options = family.translate(said)
        if options["num_hidden_layers"] > len(source.shapes):  # its configuration alone would list every layer
            raise ValueError(f"{options['num_hidden_layers']} layers, {len(source.shapes)} tensors")
        config = family.config(**options)
        with torch.device("meta"):
            model = family.model(config)
    except Exception as error:  # transformers lets whatever a strange value provokes come through
        raise ValueError(f"config.json of {source.path} makes no {name}: {error}") from error
    tied = bool(config.tie_word_embeddings)
    own = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    head = theirs("lm_head.weight", name)
    check_keys(source, {theirs(key, name): shape for key, shape in own.items()}, (head,) if tied else ())
    present = {theirs(key, name): key for key in own if theirs(key, name) in source.shapes}
    found = weights(source, source.read, present)
    dtypes = {theirs(key, name): dtype_name(x) for key, x in found.items()}
    if tied:
        embedding = found["model.embed_tokens.weight"]
        if not torch.equal(found.setdefault("lm_head.weight", embedding), embedding):
            raise ValueError(f"{source.path} says tied embeddings, but {head} differs from the embedding")
    found = {key: x if dtype is None else x.to(dtype) for key, x in found.items()}
    model.load_state_dict(found, strict=True, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # not in checkpoints, so still on meta
    return model.eval(), dtypes


def theirs(key: str, name: str) -> str:
    """A stock model's key under the name that the format has for it."""
    table = {stock: other for other, stock in FAMILIES[name].renamed}
    stem, dot, kind = key.rpartition(".")
    number = re.search(r"\.(\d+)\.", stem)
    pattern = stem if number is None else stem.replace(number.group(), ".#.", 1)
    found = table.get(pattern, pattern)
    return (found if number is None else found.replace(".#.", number.group(), 1)) + dot + kind


def load(source: Source, name: str, settings: Mapping[str, Any], dtype: torch.dtype | None) -> Any:
    """The checkpoint as a `HostedModel`."""
    from discdiff.models.hosted import HostedModel

    said = {**source.config, **settings}
    (host, dtypes), shift = stock(source, name, said, dtype), said.get("shift", FAMILIES[name].shift)
    rows = host.config.vocab_size
    mask = _mask(said, name, rows)
    if not isinstance(mask, int) or isinstance(mask, bool) or not 0 <= mask < rows:
        raise ValueError(f"mask_token_id is {mask!r} in {source.path} with {rows} ids: pass mask_token_id=...")
    size = max(min(said.get("text_size") or tokenizer_size(source.folder) or rows, rows), mask + 1)
    ends: Any = _ends(said, settings, size, mask)
    model = HostedModel.from_host(host, mask_token_id=mask, vocab_size=size, shift=shift, tokenizer=ends)
    model.config.origin = {
        "format": name,
        "rows": rows,
        "config": source.config,
        "head": theirs("lm_head.weight", name) in dtypes,
    }
    if len(set(dtypes.values())) > 1:
        model.config.origin["dtypes"] = dtypes
    if FAMILIES[name].blocks:
        block: Any = said.get("block_size")
        length = model.config.max_length
        check_count("block_size", block, length)
        text = Segment("text", "text", (length - length % block,))
        layout = Layout(model.vocab, (text,), attention="block_causal", block=block)
        model.config.layout = as_json("layout", to_dict(layout))
    return model.eval()


def _mask(said: Mapping[str, Any], name: str, rows: int) -> Any:
    """The mask id that a configuration says, or that a published table is known to have."""
    return said.get("mask_token_id", said.get("mask_id", _MASKS.get((name, rows))))


class _Ends(NamedTuple):
    """The two ids that `HostedModel.from_host` reads from a tokenizer whose size and mask it is told."""

    bos_token_id: int | None
    eos_token_id: int | None


def _ends(said: Mapping[str, Any], settings: Mapping[str, Any], size: int, mask: int) -> _Ends:
    """Begin and end token: what was asked for, or a ValueError; else what config.json says, where that is a text id."""
    found: list[int | None] = []
    for name, theirs in (("bos_id", "bos_token_id"), ("eos_id", "eos_token_id")):
        value = settings.get(name, said.get(theirs))
        value = value[0] if isinstance(value, list) and value else value  # several ends: the first is the one written
        legal = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size and value != mask
        checked(name, value, legal or name not in settings, f"give a text id (< {size}) that is not the mask {mask}")
        found.append(value if legal else None)
    return _Ends(*found)


def export(config: Any, source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights in the original layout, from a folder of ours."""
    from discdiff.models.hosted import HostedModel

    origin = config.origin or {}
    said = _told(config)
    dtypes = origin.get("dtypes", {})  # of a checkpoint of several: read in the widest, then each as it came
    model = HostedModel.from_pretrained(source.path, dtype=torch.float32 if dtypes else "auto")
    if model.vocab.modalities:
        raise ValueError(f"{source.path} has modalities beside text: {origin['format']} has no room for them")
    host = model.to_host()
    out = {theirs(key, origin["format"]): x.contiguous() for key, x in host.state_dict().items()}
    out = {key: narrowed(x, dtypes.get(key)) for key, x in out.items()}
    head = theirs("lm_head.weight", origin["format"])
    if host.config.tie_word_embeddings and not origin.get("head", False):
        del out[head]
    elif host.config.tie_word_embeddings:
        out[head] = out[head].clone()  # a file holds each key's own bytes
    return said, out


def _told(config: Any) -> dict[str, Any]:
    """config.json of the original with what the model has otherwise now; ValueError for what it has no place for."""
    name, said = config.origin["format"], dict(config.origin["config"])
    vocab, layout = config.vocab_layout, config.layout
    rows, family = config.host_config.vocab_size, FAMILIES[name]
    shift, attention = said.get("shift", family.shift), "block_causal" if family.blocks else "full"
    own = (layout or {}).get("attention", "full")
    remedy = "which its config.json cannot say otherwise: keep the folder of ours"
    checked("shift", config.shift, config.shift == shift, f"a {name} has {shift}, {remedy}")
    checked("attention", own, own == attention, f"that of a {name} is {attention!r}, {remedy}")
    checked(
        "mask id", vocab.mask, vocab.mask < rows, f"its row would be lost, {name} has {rows}: keep the folder of ours"
    )
    theta = config.host["rope_parameters"]["rope_theta"]
    if theta != _theta(said).get("rope_theta"):
        nested = said.get("rope_parameters")
        said |= {"rope_theta": theta, **({"rope_parameters": nested | {"rope_theta": theta}} if nested else {})}
    said |= {"mask_token_id": vocab.mask} if vocab.mask != _mask(said, name, rows) else {}
    said |= {"block_size": layout["block"]} if family.blocks and layout["block"] != said.get("block_size") else {}
    for token, end in zip(_Ends._fields, (vocab.bos_id, vocab.eos_id)):
        known = said.get(token)
        if end is not None and end != (known[0] if isinstance(known, list) and known else known):
            said[token] = end
    return said
