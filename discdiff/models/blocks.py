"""The transformer block: RMSNorm, attention with rotary positions, SwiGLU; pre-norm, with optional time modulation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from discdiff.models.attention import Attend
from discdiff.models.config import DiscDiffConfig
from discdiff.models.rotary import rotate


class Shared(NamedTuple):
    """What all blocks of one forward pass share; late (batch, slots): where the second of a row's two conditions holds."""

    cos: Tensor
    sin: Tensor
    attend: Attend
    late: Tensor | None = None


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467), in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one matrix, in this order."""

    def __init__(self, config: DiscDiffConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = config.num_heads, layer
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size)
        self.out = linear(config.hidden_size, config.hidden_size, _residual(config))
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        query = rotate(self.query_norm(query), shared.cos, shared.sin)
        key = rotate(self.key_norm(key), shared.cos, shared.sin)
        return self.out(rearrange(shared.attend(self, query, key, value), "b h s d -> b s (h d)"))


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (arXiv 2002.05202); gate and up come from one matrix, in this order."""

    def __init__(self, config: DiscDiffConfig) -> None:
        super().__init__()
        self.gate_up = linear(config.hidden_size, 2 * config.mlp_size)
        self.down = linear(config.mlp_size, config.hidden_size, _residual(config))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(GradientCheckpointingLayer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    With time, each normed input is scaled and shifted by a linear map of the condition that starts at zero (adaLN-zero,
    arXiv 2212.09748).
    """

    def __init__(self, config: DiscDiffConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = (
            linear(config.hidden_size, 4 * config.hidden_size, 0.0, bias=True) if config.time_conditioning else None
        )

    def forward(self, x: Tensor, condition: Tensor | None, shared: Shared) -> Tensor:
        # Tensors that need gradients come as arguments of their own: reentrant checkpointing sees no others.
        changes: Any = [None] * 4
        if condition is not None and self.modulation is not None:
            changes = self.modulation(condition)
            if shared.late is not None:
                changes = torch.where(shared.late[..., None], changes[:, 1:], changes[:, :1])
            changes = changes.chunk(4, -1)
        x = x + self.dropout(self.attention(_modulate(self.attention_norm(x), *changes[:2]), shared))
        return x + self.dropout(self.mlp(_modulate(self.mlp_norm(x), *changes[2:])))


def linear(inputs: int, outputs: int, start: float | str = 1.0, bias: bool = False) -> nn.Linear:
    """A linear map and how it starts: normal with `start` times the initial range, or "identity"."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.start = start  # type: ignore[assignment]
    return layer


def initialise(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """First weights of one module: ones for norms, else what its `start` says; biases are zero."""
    start: Any = getattr(module, "start", 1.0)
    if isinstance(module, RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, nn.Linear | nn.Embedding) and start == "identity":
        rows, columns = module.weight.shape
        eye = torch.eye(min(rows, columns), dtype=module.weight.dtype, device=module.weight.device)
        with torch.no_grad():
            module.weight.copy_(eye.repeat(rows // len(eye), columns // len(eye)))
    elif isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=start * std, generator=generator)
    elif isinstance(module, nn.Conv2d):  # variance kept: what comes in is a picture, not an embedding
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _residual(config: DiscDiffConfig) -> float:
    return (2 * config.num_layers) ** -0.5  # so that the stream's variance does not grow with depth (GPT-2)


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift
