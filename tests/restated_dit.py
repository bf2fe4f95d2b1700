"""The adaLN-DiT of public checkpoints, restated from its key table: plain functions of a state dict, the oracle of the tests.

Nothing here is shared with discdiff.models: keys are the foreign ones, attention is written out, positions are 0..L-1.
"""

import math

import torch


def linear(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def silu(x):
    return x / (1 + torch.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x, weight):
    x = x.float()
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight


def condition(w, sigma, label=None):
    """(batch, C) of sigma (batch,)."""
    frequency = torch.tensor([math.exp(-math.log(1e4) * i / 128) for i in range(128)])
    angle = sigma[:, None].float() * frequency
    features = torch.cat([torch.cos(angle), torch.sin(angle)], 1)
    c = silu(linear(silu(linear(features, w, "sigma_map.mlp.0")), w, "sigma_map.mlp.2"))
    return c if label is None else c + silu(w["cond_map.embedding_table.weight"][label])


def rotated(x, positions, inv_freq):
    """x (batch, length, heads, d): pair (i, i + d/2) turned by position * inv_freq[i]."""
    out, half = x.clone(), x.shape[-1] // 2
    for i in range(half):
        angle = (positions * inv_freq[i])[None, :, None]
        a, b = x[..., i], x[..., i + half]
        out[..., i] = a * torch.cos(angle) - b * torch.sin(angle)
        out[..., i + half] = b * torch.cos(angle) + a * torch.sin(angle)
    return out


def attention(x, w, name, heads, positions, allowed):
    rows, length, width = x.shape
    stacked = linear(x, w, f"{name}.attn_qkv")
    q, k, v = (stacked[..., i * width : (i + 1) * width].reshape(rows, length, heads, -1) for i in range(3))
    q, k = (rotated(part, positions, w["rotary_emb.inv_freq"]) for part in (q, k))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(width // heads)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(rows, length, width)
    return linear(mixed, w, f"{name}.attn_out")


def dit(w, ids, sigma, heads, label=None, positions=None, allowed=None):
    """Raw logits (batch, length, V) of ids (batch, length) at sigma (batch,); allowed (length, length) bool, None = all."""
    positions = torch.arange(ids.shape[1]) if positions is None else positions
    c = condition(w, sigma, label)[:, None]
    x = w["vocab_embed.embedding"][ids]
    number = 0
    while f"blocks.{number}.norm1.weight" in w:
        name = f"blocks.{number}"
        parts = linear(c, w, f"{name}.adaLN_modulation").chunk(6, -1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        y = norm(x, w[f"{name}.norm1.weight"]) * (1 + scale_attn) + shift_attn
        x = x + gate_attn * attention(y, w, name, heads, positions, allowed)
        y = norm(x, w[f"{name}.norm2.weight"]) * (1 + scale_mlp) + shift_mlp
        x = x + gate_mlp * linear(gelu_tanh(linear(y, w, f"{name}.mlp.0")), w, f"{name}.mlp.2")
        number += 1
    shift, scale = linear(c, w, "output_layer.adaLN_modulation").chunk(2, -1)
    return linear(norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift, w, "output_layer.linear")


def sedd_log_score(w, ids, sigma, heads, scale_by_sigma):
    """SEDD's output: log concrete scores (batch, length, V), 0 at the input token."""
    out = dit(w, ids, sigma, heads)
    if scale_by_sigma:
        out = out - torch.log(torch.expm1(sigma))[:, None, None] - math.log(out.shape[-1] - 1)
    return out.scatter(-1, ids[..., None], 0.0)


def doubled_mask(length, block):
    """BD3LM's training mask over [x_t ; x_0], (2 length, 2 length) bool, entry by entry from its three rules."""
    allowed = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    for q in range(2 * length):
        for k in range(2 * length):
            block_q, block_k, clean_q, clean_k = q % length // block, k % length // block, q >= length, k >= length
            same_copy = clean_q == clean_k and block_q == block_k
            earlier = not clean_q and clean_k and block_q > block_k
            allowed[q, k] = same_copy or earlier or (clean_q and clean_k and block_q >= block_k)
    return allowed
