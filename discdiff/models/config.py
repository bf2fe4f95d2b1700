"""Configurations: what every network of the library says of itself, and the shape of its own transformer as data."""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from discdiff.config import checked
from discdiff.layout import VocabLayout
from discdiff.models.told import told

POOLS = 75  # modality embeddings: text, and as many modalities as a VocabLayout can hold
DEPTHS = 64  # depth embeddings: levels that a modality may have
TIME_FEATURES = 256
PLACE_FEATURES = 48  # sines and cosines of three coordinates at eight wavelengths
_LARGEST = 2**40  # parameters; no model of this kind has that many
PREDICTIONS = ("own", "cavity", "score")
_COUNTS = {"hidden_size": 2**20, "num_layers": 4096, "num_heads": 2**14, "max_depth": DEPTHS}
_OPEN_UNIT = "a number above 0 and below 1"
_NUMBERS = {
    "mlp_ratio": (lambda x: 0 < x <= 64, "a number above 0, at most 64; 8/3 is usual with SwiGLU"),
    "rope_theta": (lambda x: 1 <= x < math.inf, "a finite number of at least 1, such as 10000"),
    "dropout": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "norm_eps": (lambda x: 0 < x < 1, _OPEN_UNIT + ", such as 1e-6"),
    "initializer_range": (lambda x: 0 < x < 1, _OPEN_UNIT + ", such as 0.02"),
}


class NetworkConfig(PreTrainedConfig):
    """What the library has to know of any network.

    max_length: network slots a row may have. vocab: a `VocabLayout` or its JSON dictionary. layout, process: JSON
    dictionaries of what the network was trained on. prediction: what it was trained to predict, "own" p(x0_i | x_t),
    "cavity" p(x0_i | x_t without i) or "score" log p_t(y) / p_t(x_t). shift: the state of slot i - 1 predicts slot i, as in
    autoregressive models and what was adapted from them. time_conditioning: it is given the noise level. origin: where
    converted weights came from, which the way back needs.

    Raises ValueError, naming field, value and remedy, for an unknown key, a wrong type and an impossible value.
    """

    max_length: int = 4096
    vocab: dict[str, Any] | None = None
    layout: dict[str, Any] | None = None
    process: dict[str, Any] | None = None
    prediction: str = "own"
    shift: bool = False
    time_conditioning: bool = False
    origin: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key in kwargs:
            if key not in _inherited():
                own = [f.name for f in fields(type(self))]
                near = difflib.get_close_matches(key, own, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = ", ".join(own_fields(type(self)))
                raise ValueError(f"unknown key {key!r} of {type(self).__name__}{hint} Its own are {known}")
        self.check()
        super().__post_init__(**kwargs)

    @property
    def vocab_layout(self) -> VocabLayout:
        """`vocab` as a VocabLayout."""
        return VocabLayout.from_json(self.vocab or {})

    @property
    def parameters(self) -> int:
        """Number of weights, small vectors left out."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many weights it has: define parameters")

    def check(self) -> None:
        """Raise ValueError for a value that cannot be; `__init__` calls it, and so does the model."""
        check_count("max_length", self.max_length, 2**31)
        check_switch("shift", self.shift)
        check_switch("time_conditioning", self.time_conditioning)
        checked("prediction", self.prediction, self.prediction in PREDICTIONS, f"choose from {', '.join(PREDICTIONS)}")
        for name in ("vocab", "layout", "process", "origin"):
            setattr(self, name, as_json(name, getattr(self, name)))
        self.vocab = json.loads(self._checked_vocab().to_json())

    def _checked_vocab(self) -> VocabLayout:
        try:
            vocab = self.vocab_layout
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"vocab is {self.vocab!r}: give a VocabLayout or its JSON dictionary ({error})") from error
        deepest = max((m.depth for m in vocab.modalities), default=1)
        checked("vocab", self.vocab, deepest <= DEPTHS, f"a modality may have at most {DEPTHS} levels, not {deepest}")
        ids = [x or 0 for x in (vocab.mask_id, vocab.bos_id, vocab.eos_id)]
        numbers = [vocab.text_size, vocab.multiple, *ids, *(m.codebook for m in vocab.modalities)]
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        checked("vocab", self.vocab, whole, "sizes and ids of a vocabulary are integers")
        return vocab


class DiscDiffConfig(NetworkConfig):
    """Shape of a `DiscDiffModel`.

    features: what it is told that is no token, by the name it has in `TokenBatch.features`, each the fields of a `Told`.
    mlp_ratio: hidden units of the SwiGLU per unit of width, rounded to a multiple of 32. max_depth: levels a packed slot
    may have, 1 = none.

    Raises ValueError as `NetworkConfig` does, and for an impossible number, a head dimension that is odd or no integer, and
    sizes beyond any machine.
    """

    model_type = "discdiff"
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    mlp_ratio: float = 8 / 3
    rope_theta: float = 10000.0
    max_depth: int = 1
    features: dict[str, Any] | None = None
    qk_norm: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Hidden units of the SwiGLU."""
        return max(32, round(self.hidden_size * self.mlp_ratio / 32) * 32)

    @property
    def parameters(self) -> int:
        """Number of weights, small vectors left out."""
        width, tables = self.hidden_size, self.vocab_layout.total * (1 if self.tie_word_embeddings else 2)
        block = 4 * width**2 + 3 * width * self.mlp_size + 4 * width**2 * self.time_conditioning
        pack = 2 * self.max_depth * width**2 if self.max_depth > 1 else 0
        return (tables + POOLS + DEPTHS) * width + self.num_layers * block + pack

    def check(self) -> None:
        """Raise ValueError for a value that cannot be."""
        super().check()
        for name, most in _COUNTS.items():
            check_count(name, getattr(self, name), most)
        for name, (fits, remedy) in _NUMBERS.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            checked(name, value, is_number and fits(value), f"give {remedy}")
        self.features = as_json("features", self.features)
        told(self.features)
        check_switch("qk_norm", self.qk_norm)
        check_switch("tie_word_embeddings", self.tie_word_embeddings)
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_heads {self.num_heads}: heads of "
                f"{self.hidden_size / self.num_heads:g} do not rotate, give a hidden_size that is an even multiple of num_heads"
            )
        if self.parameters > _LARGEST:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, num_layers {self.num_layers} and the vocabulary has "
                f"{self.vocab_layout.total} ids: {self.parameters:.1e} weights fit on no machine, make one of them smaller"
            )


def check_memory(config: NetworkConfig, itemsize: int) -> None:
    """Raise ValueError when the weights alone exceed the memory of this machine."""
    need, have = config.parameters * itemsize, _physical_memory()
    if need > have:
        raise ValueError(
            f"{config.parameters:.3g} weights of this {type(config).__name__} take {need / 2**30:.0f} GiB, "
            f"this machine has {have / 2**30:.0f} GiB of memory: take a smaller model or dtype, or a larger machine"
        )


def _physical_memory() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**46  # unknown: only what no machine has is refused


def check_count(name: str, value: Any, most: int) -> None:
    """Raise ValueError for what is no integer from 1 to `most`."""
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    checked(name, value, good, f"give an integer from 1 to {most}")


def check_switch(name: str, value: Any) -> None:
    """Raise ValueError for what is neither True nor False."""
    checked(name, value, isinstance(value, bool), "give True or False")


def as_json(name: str, value: Any) -> dict[str, Any] | None:
    """The value as a JSON dictionary or None; a VocabLayout as its own."""
    if isinstance(value, VocabLayout):
        value = json.loads(value.to_json())
    checked(name, value, value is None or isinstance(value, dict), "give a JSON dictionary or None")
    try:
        return json.loads(json.dumps(value))  # tuples become lists now, so that a saved configuration equals this one
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}: it must be JSON, {error}") from error


@functools.cache
def _inherited() -> frozenset[str]:
    """Keys that transformers itself puts into configurations: its fields, private notes, and what Trainer writes."""
    base = PreTrainedConfig()
    loading = ("torch_dtype", "num_labels", "attn_implementation", "experts_implementation", "per_layer_config")
    trainer = ("use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "quantization_config", "name_or_path")
    return frozenset((*(f.name for f in fields(base)), *vars(base), *base.to_dict(), *loading, *trainer))


def own_fields(config: type) -> list[str]:
    """Names of the fields that the library adds to those of transformers."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    return [f.name for f in fields(config) if f.name not in inherited]
