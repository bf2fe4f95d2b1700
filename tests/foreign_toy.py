"""Tiny random checkpoints in the exact key layouts of public ones (D = 32, 4 heads, 2 blocks)."""

import json
from collections import OrderedDict

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

D, C, HEADS, BLOCKS, LENGTH = 32, 16, 4, 2, 12
ROWS = {"mdlm": 50, "bd3lm": 50, "udlm": 40, "duo": 41, "sedd": 50, "sedd_uniform": 49}
MASK = 49
DIT = tuple(ROWS)
DECODERS = ("llada", "dream", "sdar", "a2d-llama", "a2d-qwen2", "a2d-qwen3")


def dit_config(member):
    if member.startswith("sedd"):
        graph = {"type": "uniform" if "uniform" in member else "absorb", "file": "data", "report_all": False}
        noise = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 5.0} if "uniform" in member else None
        size = {"hidden_size": D, "cond_dim": C, "length": LENGTH, "n_blocks": BLOCKS, "n_heads": HEADS}
        model = {"name": "toy", "type": "ddit", **size, "scale_by_sigma": "uniform" not in member, "dropout": 0.1}
        log_linear = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
        return {"tokens": 49, "graph": graph, "noise": noise or log_linear, "model": model, "ngpus": 8}
    size = {
        "model_length": LENGTH,
        "hidden_dim": D,
        "cond_dim": C,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "dropout": 0.1,
    }
    config = {"model_type": member, "vocab_size": ROWS[member], **size, "time_conditioning": member in ("udlm", "duo")}
    if member == "bd3lm":
        config |= {"block_size": 4, "cross_attn": True, "adaln": True, "attn_backend": "flex", "causal": False}
        config |= {"var_min": True, "sampling_eps_min": 1e-3, "sampling_eps_max": 0.999}
    if member == "udlm":
        config |= {"cfg": True, "cfg_num_classes": 3}
    return {**config, "architectures": [member.upper()], "torch_dtype": "float32", "transformers_version": "4.38.2"}


def dit_state(member, seed=0, prefix=None, dtype=torch.float32):
    """State dict in the order of the modules; adaLN and head far from their zero start."""
    generator = torch.Generator().manual_seed(seed)
    rows, state = ROWS[member], OrderedDict()

    def add(name, *shape, scale=0.2, shift=0.0):
        state[name] = (shift + scale * torch.randn(shape, generator=generator)).to(dtype)

    def linear(name, out, inner, bias=True):
        add(f"{name}.weight", out, inner)
        if bias:
            add(f"{name}.bias", out)

    add("vocab_embed.embedding", rows, D, scale=1.0)
    linear("sigma_map.mlp.0", C, 256)
    linear("sigma_map.mlp.2", C, C)
    if member == "udlm":
        add("cond_map.embedding_table.weight", 4, C, scale=1.0)
    state["rotary_emb.inv_freq"] = 1.0 / (10000 ** (torch.arange(0, D // HEADS, 2).float() / (D // HEADS)))
    for i in range(BLOCKS):
        add(f"blocks.{i}.norm1.weight", D, shift=1.0)
        linear(f"blocks.{i}.attn_qkv", 3 * D, D, bias=False)
        linear(f"blocks.{i}.attn_out", D, D, bias=False)
        add(f"blocks.{i}.norm2.weight", D, shift=1.0)
        linear(f"blocks.{i}.mlp.0", 4 * D, D)
        linear(f"blocks.{i}.mlp.2", D, 4 * D)
        linear(f"blocks.{i}.adaLN_modulation", 6 * D, C)
    add("output_layer.norm_final.weight", D, shift=1.0)
    linear("output_layer.linear", rows, D)
    linear("output_layer.adaLN_modulation", 2 * D, C)
    prefix = ("" if member.startswith("sedd") else "backbone.") if prefix is None else prefix
    state = OrderedDict((prefix + key, x) for key, x in state.items())
    if member == "bd3lm":
        state["sampling_eps_min"], state["sampling_eps_max"] = torch.tensor(1e-3), torch.tensor(0.999)
    return state


def bare(state):
    """The state dict without prefix, for the restated network."""
    return {key.removeprefix("backbone."): x.float() for key, x in state.items()}


def write(folder, config, state, kind="safetensors"):
    """A checkpoint folder; kind is safetensors, bin, sharded, sharded_bin, or lightning (state is then state and EMA list)."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file(dict(state), folder / "model.safetensors", {"format": "pt"})
    elif kind == "bin":
        torch.save(OrderedDict(state), folder / "pytorch_model.bin")
    elif kind == "lightning":
        plain, ema = state
        averaged = {"decay": 0.9999, "num_updates": 10, "shadow_params": ema}
        torch.save({"epoch": 1, "global_step": 10, "state_dict": plain, "ema": averaged}, folder / "last.ckpt")
        return folder / "last.ckpt"
    else:
        stem, ending = ("model", "safetensors") if kind == "sharded" else ("pytorch_model", "bin")
        parts = [dict(list(state.items())[i::2]) for i in range(2)]
        where = {}
        for i, part in enumerate(parts):
            name = f"{stem}-0000{i + 1}-of-00002.{ending}"
            save_file(part, folder / name, {"format": "pt"}) if kind == "sharded" else torch.save(part, folder / name)
            where |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


def parameters(state):
    """What state.parameters() would list, in order: everything but the buffers."""
    return [(key, x) for key, x in state.items() if "inv_freq" not in key and "sampling_eps" not in key]


def decoder(kind, seed=0, tied=False):
    """(stock model of transformers, foreign config.json, foreign state dict) of a decoder turned diffusion model."""
    shape = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 64, "tie_word_embeddings": tied}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    make, extra = {
        "llada": (LlamaForCausalLM, LlamaConfig(**shape, **rope, rms_norm_eps=1e-5)),
        "dream": (Qwen2ForCausalLM, Qwen2Config(**shape, **rope)),
        "sdar": (Qwen3ForCausalLM, Qwen3Config(**shape, **rope, head_dim=16)),
        "a2d-llama": (LlamaForCausalLM, LlamaConfig(**shape, **rope)),
        "a2d-qwen2": (Qwen2ForCausalLM, Qwen2Config(**shape, **rope)),
        "a2d-qwen3": (Qwen3ForCausalLM, Qwen3Config(**shape, **rope, head_dim=16)),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(extra).eval()
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    state = {key: x.detach().clone() for key, x in model.state_dict().items()}
    if tied:
        del state["lm_head.weight"]
    config = _decoder_config(kind, extra, tied)
    return model, config, _llada_state(state) if kind == "llada" else state


def _decoder_config(kind, config, tied):
    if kind == "llada":
        olmo = {"d_model": D, "n_layers": BLOCKS, "n_heads": HEADS, "n_kv_heads": 2, "mlp_hidden_size": 48}
        olmo |= {"vocab_size": 64, "embedding_size": 64, "max_sequence_length": 64, "weight_tying": tied, "rope": True}
        olmo |= {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "include_bias": False}
        olmo |= {"include_qkv_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "block_group_size": 1}
        return {
            "model_type": "llada",
            "architectures": ["LLaDAModelLM"],
            **olmo,
            "mask_token_id": 60,
            "eos_token_id": 58,
        }
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += (
        "max_position_embeddings",
        "vocab_size",
        "tie_word_embeddings",
        "rms_norm_eps",
        "hidden_act",
        "attention_dropout",
    )
    said = {name: getattr(config, name) for name in names} | {"rope_theta": 500000.0, "rope_scaling": None}
    said |= {"head_dim": 16} if "3" in kind or kind == "sdar" else {}
    own = {"dream": {"model_type": "Dream", "mask_token_id": 60, "pad_token_id": 58, "architectures": ["DreamModel"]}}
    own["sdar"] = {"model_type": "sdar", "block_size": 4, "mask_token_id": 60, "fuse_cross_entropy": True}
    return {**said, **own.get(kind, {"model_type": kind, "mask_token_id": 60}), "torch_dtype": "float32"}


def _llada_state(state):
    """Llama's keys under LLaDA's names."""
    renamed = {
        "model.embed_tokens.weight": "model.transformer.wte.weight",
        "model.norm.weight": "model.transformer.ln_f.weight",
    }
    renamed["lm_head.weight"] = "model.transformer.ff_out.weight"
    inner = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm", "self_attn.q_proj": "q_proj"}
    inner |= {"self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out"}
    inner |= {"mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out"}
    for i in range(BLOCKS):
        pairs = {f"model.layers.{i}.{a}.weight": f"model.transformer.blocks.{i}.{b}.weight" for a, b in inner.items()}
        renamed |= pairs
    return {renamed[key]: x for key, x in state.items()}
