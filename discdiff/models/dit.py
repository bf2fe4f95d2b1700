"""DitModel: the transformer of MDLM, SEDD, BD3LM, UDLM and Duo, whose every layer is modulated by the noise level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from discdiff.config import checked, from_dict
from discdiff.layout import TokenBatch
from discdiff.models.attention import FLEX, Attend, attend_all, attend_columns, compiled_flex
from discdiff.models.blocks import RMSNorm, Shared, initialise, linear
from discdiff.models.cache import KVCache
from discdiff.models.config import TIME_FEATURES, NetworkConfig, check_count, check_memory, check_switch
from discdiff.models.network import Network
from discdiff.models.rotary import rotary, rotate
from discdiff.models.transformer import at_slots
from discdiff.processes import TYPES, Absorbing, PerSegment, Process

THETA = 10000.0
LABEL = "label"
TAIL = 8  # columns of the head behind the width: zeros, then the bias; a multiple of 8, as matrix units like it
_LEAST_ALPHA = 1e-9  # sigma = -log alpha stays finite where a schedule ends at 0
_EPS = 1e-5
_COUNTS = {"hidden_size": 2**20, "cond_size": 2**20, "num_layers": 4096, "num_heads": 2**14}


class DitConfig(NetworkConfig):
    """Shape of a `DitModel`.

    cond_size: width of the condition. num_classes: class labels the network knows, 0 = none; the label num_classes means
    "no class". scale_by_sigma: of a network with prediction "score", see `denoisers.LogScore`.

    Raises ValueError as `NetworkConfig` does, and for sizes that do not rotate or a process without one schedule.
    """

    model_type = "discdiff_dit"
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}

    hidden_size: int = 768
    cond_size: int = 128
    num_layers: int = 12
    num_heads: int = 12
    dropout: float = 0.1
    num_classes: int = 0
    scale_by_sigma: bool = False
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def parameters(self) -> int:
        """Number of weights, small vectors left out."""
        width, cond, rows = self.hidden_size, self.cond_size, self.vocab_layout.total
        block = 12 * width**2 + 6 * cond * width
        extra = cond * (TIME_FEATURES + cond + self.num_classes + 2 * width)
        return rows * (2 * width + TAIL) + self.num_layers * block + extra

    def check(self) -> None:
        """Raise ValueError for a value that cannot be."""
        super().check()
        for name, most in _COUNTS.items():
            check_count(name, getattr(self, name), most)
        for name in ("scale_by_sigma", "tie_word_embeddings"):
            check_switch(name, getattr(self, name))
        is_number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        checked("dropout", self.dropout, is_number and 0 <= self.dropout < 1, "give a number from 0 to below 1")
        spread = self.initializer_range
        checked("initializer_range", spread, isinstance(spread, float) and 0 < spread < 1, "give a number such as 0.02")
        classes = self.num_classes
        is_count = isinstance(classes, int) and not isinstance(classes, bool) and 0 <= classes < 2**31
        checked("num_classes", classes, is_count, "give a whole number, 0 for a network without labels")
        checked(
            "tie_word_embeddings", self.tie_word_embeddings, not self.tie_word_embeddings, "its head has a bias: False"
        )
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_heads {self.num_heads}: give a hidden_size that is an even "
                "multiple of num_heads"
            )
        if self.time_conditioning and isinstance(process_of(self), PerSegment):
            raise ValueError("process is PerSegment: this network is given one sigma, train it with one process")


def process_of(config: NetworkConfig) -> Process:
    """The process of a configuration, absorbing where it names none."""
    with torch.device("cpu"):  # schedules check themselves, which the meta device of a loading model cannot
        return from_dict(config.process, TYPES) if config.process else Absorbing()


class LayerNorm(RMSNorm):
    """`(x - mean) / sqrt(var + eps) * weight`, without bias, in float32 or wider."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.layer_norm(wide, self.weight.shape, self.weight.to(wide.dtype), None, self.eps).to(x.dtype)


class SigmaCondition(nn.Module):
    """`silu(mlp(features of sigma))`: cosines, then sines at frequencies 10000^(-i / 128) (DiT, arXiv 2212.09748)."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.first = linear(TIME_FEATURES, config.cond_size, bias=True)
        self.second = linear(config.cond_size, config.cond_size, bias=True)

    def forward(self, sigma: Tensor) -> Tensor:
        """(batch, slots, cond) of sigma (batch, slots) float64."""
        half = TIME_FEATURES // 2
        frequency = torch.exp(-math.log(1e4) / half * torch.arange(half, dtype=torch.float64, device=sigma.device))
        angle = sigma[..., None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], -1).to(self.first.weight.dtype)
        return F.silu(self.second(F.silu(self.first(features))))


class DitAttention(nn.Module):
    """Multi-head attention; queries, keys and values come from one matrix, in this order."""

    def __init__(self, config: DitConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.num_heads, layer
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size)
        self.out = linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        query, key = (rotate(part, shared.cos, shared.sin) for part in (query, key))
        return self.out(rearrange(shared.attend(self, query, key, value), "b h s d -> b s (h d)"))


class DitBlock(GradientCheckpointingLayer):
    """`x + gate * f(norm(x) * (1 + scale) + shift)` for attention, then for the MLP; all six from the condition."""

    def __init__(self, config: DitConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_norm, self.mlp_norm = LayerNorm(width, _EPS), LayerNorm(width, _EPS)
        self.attention = DitAttention(config, layer)
        self.mlp_first = linear(width, 4 * width, bias=True)
        self.mlp_second = linear(4 * width, width, bias=True)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = linear(config.cond_size, 6 * width, 0.0, bias=True)

    def forward(self, x: Tensor, condition: Tensor, shared: Shared) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, -1)
        x = x + gate * self.dropout(self.attention(self.attention_norm(x) * (1 + scale) + shift, shared))
        inner = self.mlp_first(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)
        return x + mlp_gate * self.dropout(self.mlp_second(F.gelu(inner, approximate="tanh")))


class DitModel(Network):
    """The adaLN transformer of SEDD (arXiv 2310.16834) and MDLM (2406.07524) over token batches.

    The condition is sigma = -log alpha(t) of the configuration's process, 0 where time_conditioning is False, plus a class:
    `batch.features["label"]` (batch,) int64, "no class" where absent. Hidden states are `hidden_size + 8` wide and end in
    a one; the last column of the head is its bias.
    """

    config_class = DitConfig
    caches = True
    _supports_flex_attn = True
    _no_split_modules = ["DitBlock"]

    def __init__(self, config: DitConfig) -> None:
        config.check()
        if torch.get_default_device().type == "cpu":
            check_memory(config, torch.get_default_dtype().itemsize)
        super().__init__(config)
        if config._attn_implementation not in ("sdpa", FLEX):
            raise ValueError(f"attn_implementation is {config._attn_implementation!r}: choose 'sdpa' or '{FLEX}'")
        self.vocab, self.process = config.vocab_layout, process_of(config)
        self.embed = nn.Embedding(self.vocab.total, config.hidden_size)
        self.sigma = SigmaCondition(config)
        self.label = nn.Embedding(config.num_classes + 1, config.cond_size) if config.num_classes else None
        self.blocks = nn.ModuleList(DitBlock(config, layer) for layer in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, _EPS)
        self.modulation = linear(config.cond_size, 2 * config.hidden_size, 0.0, bias=True)
        self.head = linear(config.hidden_size + TAIL, self.vocab.total, 0.0)
        self.post_init()

    def hidden(
        self,
        batch: TokenBatch,
        time: Tensor | float | None = None,
        columns: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """(batch, slots, hidden_size + 8) after the last modulation; `forward` without its checks and extras."""
        lead = batch.lead if columns is None else batch.lead[columns]
        slot = (batch.slot[:1] if batch.unrestricted else batch.slot)[:, lead]
        x, condition = self.embed(batch.tokens[:, lead]), self._condition(batch, time, lead)
        cos, sin = rotary(batch, slot, self.config.head_dim, THETA, x.dtype)
        shared = Shared(cos, sin, self._attend(batch, columns, cache, store))
        for block in self.blocks:
            x = block(x, condition, shared)
        if cache is not None and columns is not None and store:
            cache.mark(columns)
        shift, scale = self.modulation(condition).chunk(2, -1)
        x = self.norm(x) * (1 + scale) + shift
        tail = torch.arange(TAIL, device=x.device) == TAIL - 1
        return torch.cat([x, tail.to(x.dtype).expand(*x.shape[:-1], TAIL)], -1)

    def select(
        self, hidden: Tensor, batch: TokenBatch, index: Tensor, shift: bool = False, columns: Tensor | None = None
    ) -> Tensor:
        """As `Network.select`; columns: the network slots that were fed, when not all, nan where others are asked for."""
        if columns is not None:
            every = hidden.new_full((len(hidden), len(batch.lead), hidden.shape[-1]), torch.nan)
            hidden = every.index_copy(1, columns, hidden)
        return super().select(hidden, batch, index, shift)

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.initializer_range)

    def _condition(self, batch: TokenBatch, time: Tensor | float | None, lead: Tensor) -> Tensor:
        """(1 or batch, 1 or slots, cond): as small as it can be, since it is broadcast."""
        if time is None or not self.config.time_conditioning:
            sigma = torch.zeros(1, 1, dtype=torch.float64, device=batch.tokens.device)
        else:
            value = at_slots(time, batch.tokens, lead)
            sigma = -self.process.marginal(value.double(), 2).keep.clamp(min=_LEAST_ALPHA).log()
        condition = self.sigma(sigma)
        if self.label is None:
            if LABEL in batch.features:
                raise ValueError(f"features hold {LABEL!r}, but this network has num_classes=0: drop it")
            return condition
        label = batch.features.get(LABEL, batch.tokens.new_full((1,), self.config.num_classes))
        if label.device.type == "cpu" and not 0 <= int(label.min()) <= int(label.max()) <= self.config.num_classes:
            raise ValueError(
                f"labels {label.tolist()} leave 0..{self.config.num_classes}, of which the last is no class"
            )
        return condition + F.silu(self.label(label))[:, None]

    def _attend(self, batch: TokenBatch, columns: Tensor | None, cache: KVCache | None, store: bool) -> Attend:
        if cache is not None and columns is not None:
            return attend_columns(batch, columns, cache, store)
        is_flex = self.config._attn_implementation == FLEX and batch.tokens.is_cuda and self.config.head_dim >= 16
        return attend_all(batch, compiled_flex() if is_flex and self.dtype != torch.float64 else None)
