"""The stock transformers models that can be a network of the library: one row per family says how to reach its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discdiff.config import checked
from discdiff.models import loading

_PRIVATE = ("_name_or_path", "transformers_version", "auto_map", "_attn_implementation", "attn_implementation")
_COUNTS = {"hidden_size": 2**20, "num_hidden_layers": 4096, "num_attention_heads": 2**14, "vocab_size": 2**31}
_OPTIONAL = {"intermediate_size": 2**24, "num_key_value_heads": 2**14, "head_dim": 2**16, "n_inner": 2**24}


@dataclass(frozen=True)
class Family:
    """How to run a stock model and reach its parts.

    model: class of transformers; trunk: attribute of what stands below the head; decoder: causal by itself; matrices: of
    one MLP; transform: `(host, hidden) -> hidden` between trunk and output table; bias: path of the head's bias where it
    has a second name; local: the window of a local layer reaches this many slots further than `sliding_window - 1`;
    padded: position ids begin behind `pad_token_id`; unused: beginnings of keys that published files have and the model
    leaves out.
    """

    model: str
    trunk: str
    decoder: bool
    matrices: int
    transform: Callable[[Any, Tensor], Tensor] | None = None
    bias: str = ""
    local: int = 0
    padded: bool = False
    unused: tuple[str, ...] = ()

    def first_position(self, config: Any) -> int:
        """The position id of the first slot of a row."""
        return config.pad_token_id + 1 if self.padded else 0

    def positions(self, config: Any) -> int:
        """Slots that a row may have."""
        return config.max_position_embeddings - self.first_position(config)

    def window(self, config: Any) -> int | None:
        """Largest distance that local layers see, None where no layer is local."""
        types = getattr(config, "layer_types", None) or ()
        return config.sliding_window - 1 + self.local if "sliding_attention" in types else None


def _bert(host: Any, x: Tensor) -> Tensor:
    return host.cls.predictions.transform(x)


def _roberta(host: Any, x: Tensor) -> Tensor:
    return host.lm_head.layer_norm(F.gelu(host.lm_head.dense(x)))


def _modernbert(host: Any, x: Tensor) -> Tensor:
    return host.head(x)


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", "transformer", True, 2),
    "llama": Family("LlamaForCausalLM", "model", True, 3),
    "qwen2": Family("Qwen2ForCausalLM", "model", True, 3),
    "qwen3": Family("Qwen3ForCausalLM", "model", True, 3),
    "bert": Family(
        "BertForMaskedLM",
        "bert",
        False,
        2,
        _bert,
        "cls.predictions.bias",
        unused=("bert.pooler.", "cls.seq_relationship."),
    ),
    "roberta": Family(
        "RobertaForMaskedLM", "roberta", False, 2, _roberta, "lm_head.bias", padded=True, unused=("roberta.pooler.",)
    ),
    "modernbert": Family("ModernBertForMaskedLM", "model", False, 3, _modernbert, local=1),
}


def family_of(model_type: Any) -> Family:
    """The row of an architecture. Raises ValueError for one that is not supported."""
    known = isinstance(model_type, str) and model_type in FAMILIES
    checked("model_type", model_type, known, f"supported are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def host_config(values: Mapping[str, Any]) -> Any:
    """The configuration of transformers in a JSON dictionary. Raises ValueError for what cannot be."""
    family = family_of(values.get("model_type"))
    kind = stock_class(family).config_class
    try:
        config = kind.from_dict({k: v for k, v in values.items() if k != "auto_map"})
    except Exception as error:  # of any type: the validation of transformers raises its own
        raise ValueError(f"host is no configuration of a {family.model}: {error}") from error
    for name, most in _COUNTS.items():
        _check(name, getattr(config, name, None), most)
    for name, most in _OPTIONAL.items():
        if getattr(config, name, None) is not None:
            _check(name, getattr(config, name), most)
    _check("max_position_embeddings", config.max_position_embeddings, 2**31)
    if not family.decoder and getattr(config, "is_decoder", False):
        raise ValueError(f"host.is_decoder is True: a {family.model} is run as an encoder, set it to False")
    if family.padded:
        _check("pad_token_id", config.pad_token_id, config.max_position_embeddings - 2, 0)
    return config


def host_size(config: Any, rows: int) -> int:
    """Weights of a host whose tables have `rows`, small vectors left out."""
    family, width, heads = FAMILIES[config.model_type], config.hidden_size, config.num_attention_heads
    dim = getattr(config, "head_dim", None) or width // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    block = width * dim * 2 * (heads + keys) + family.matrices * width * inner
    return rows * width * (1 if config.tie_word_embeddings else 2) + config.num_hidden_layers * block


@torch.no_grad()
def with_rows(host: Any, family: Family, rows: int, used: int) -> None:
    """Cut the tables of a stock model, or make them longer: means of the first `used` rows plus a little keyed noise."""
    made: dict[int, nn.Parameter] = {}
    tables = [host.get_input_embeddings(), host.get_output_embeddings()]
    old_bias = tables[-1].bias
    for table in tables:
        old = table.weight
        if id(old) not in made:
            more = rows - len(old)
            new = old[:rows].clone() if more <= 0 else torch.cat([old, loading.new_rows(old[:used], more, len(made))])
            made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
        table.weight = made[id(old)]
        setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", rows)
    if old_bias is not None:
        set_bias(host, family, longer(old_bias, rows, used))
    host.config.vocab_size = rows


def longer(old: Tensor, rows: int, used: int) -> nn.Parameter:
    """A bias cut to `rows`, or with the mean of its first `used` entries behind it."""
    kept = old.detach()[:rows]
    more = kept.new_zeros(0) if len(kept) == rows else old.detach()[:used].double().mean().to(old.dtype)
    return nn.Parameter(torch.cat([kept, more.expand(rows - len(kept))]), requires_grad=old.requires_grad)


def set_bias(host: Any, family: Family, bias: nn.Parameter) -> None:
    """Give the head of a stock model this bias, under both of its names."""
    host.get_output_embeddings().bias = bias
    if family.bias:
        owner, _, name = family.bias.rpartition(".")
        setattr(host.get_submodule(owner), name, bias)


def as_values(config: Any) -> dict[str, Any]:
    """A configuration of transformers as JSON without what belongs to this machine or version."""
    if not hasattr(config, "to_json_string"):
        raise ValueError(f"config is {config!r}: give a model of transformers, a folder or a hub name")
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: x for name, x in values.items() if name not in _PRIVATE}


def stock_class(family: Family) -> Any:
    """The class of transformers."""
    import transformers

    return getattr(transformers, family.model)


def _check(name: str, value: Any, most: int, least: int = 1) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    checked(f"host.{name}", value, good, f"give an integer from {least} to {most}")
