"""LLaDA, Dream, SDAR and A2D: stock decoders under other names, attending both ways, and back without a changed bit."""

import json

import pytest
import torch
from foreign_toy import DECODERS, decoder, write
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from discdiff.checkpoints import convert, load_foreign
from discdiff.layout import Layout, Segment, make_batch
from discdiff.models import HostedModel, load_network

IDS = torch.randint(0, 58, (3, 12), generator=torch.Generator().manual_seed(0))


def stock_logits(model, ids, allowed=None):
    """Logits of the stock model where everything sees everything, or as `allowed` (length, length) says."""
    length = ids.shape[1]
    mask = torch.zeros(1, 1, length, length)
    if allowed is not None:
        mask = mask.masked_fill(~allowed, torch.finfo(torch.float32).min)
    return model(input_ids=ids, attention_mask=mask.expand(len(ids), -1, -1, -1)).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_logits_are_those_of_the_stock_model(kind, tied, tmp_path):
    model, config, state = decoder(kind, tied=tied)
    found = load_foreign(write(tmp_path, config, state))
    logits = found(input_ids=IDS, output_logits=True).logits[..., :60]
    expected = stock_logits(model, IDS)[..., :60]
    if kind == "dream":  # the slot before predicts; the first predicts itself
        expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    causal = model(input_ids=IDS).logits[..., :60]
    assert (logits[:, 2] - causal[:, 1 if kind == "dream" else 2]).abs().max() > 0.01
    assert found.config.shift is (kind == "dream") and found.vocab.mask_id == 60
    banned = found(input_ids=IDS, output_logits=True).logits
    assert banned[..., 60].max() == -torch.inf and banned[..., found.vocab.text_size :].max() == -torch.inf


def test_sdar_attends_by_blocks(tmp_path):
    model, config, state = decoder("sdar")
    found = load_foreign(write(tmp_path, config, state))
    assert found.config.layout["attention"] == "block_causal" and found.config.layout["block"] == 4
    layout = Layout(found.vocab, (Segment("text", "text", (12,)),), attention="block_causal", block=4)
    logits = found(batch=make_batch(layout, IDS), output_logits=True).logits[..., :60]
    block = torch.arange(12) // 4
    expected = stock_logits(model, IDS, block[:, None] >= block[None])[..., :60]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (logits - stock_logits(model, IDS)[..., :60]).abs().max() > 0.01


def test_rows_of_another_length_keep_the_attention(tmp_path):
    _, config, state = decoder("sdar")
    found = load_foreign(write(tmp_path, config, state))
    ids = IDS.masked_fill(torch.arange(12) >= 4, found.vocab.mask)
    layout = Layout(found.vocab, (Segment("text", "text", (12,)),), attention="block_causal", block=4)
    given = ids != found.vocab.mask
    expected = found.generate(make_batch(layout, ids, given=given), "llada", steps=8)[0]
    assert torch.equal(found.generate(ids, "llada", steps=8)[0], expected)
    with pytest.raises(ValueError, match="block 4 must divide the 10 positions"):
        found.generate(ids[:, :10])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_there_and_back_bit_for_bit(kind, tied, dtype, tmp_path):
    _, config, state = decoder(kind, tied=tied)
    state = {key: x.to(dtype) for key, x in state.items()}
    source = write(tmp_path / "source", config, state, "sharded" if tied else "safetensors")
    convert(source, tmp_path / "ours")
    ours = load_network(tmp_path / "ours")
    direct = load_foreign(source)
    assert torch.equal(ours(input_ids=IDS).hidden, direct(input_ids=IDS).hidden)
    convert(tmp_path / "ours", tmp_path / "back")
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert set(again) == set(state)
    assert all(x.dtype == dtype and torch.equal(x, state[key]) for key, x in again.items())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config


@pytest.mark.parametrize("what", ["dtypes", "head", "rows"])
def test_uneven_checkpoints_come_back_as_they_were(what, tmp_path):
    _, config, state = decoder("a2d-qwen3", tied=what == "head")
    if what == "dtypes":
        state = {key: x.bfloat16() if "proj" in key else x for key, x in state.items()}
    elif what == "head":  # tied, and written all the same
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    else:  # far more rows than the tokenizer has ids
        config["vocab_size"] = 700
        state |= {
            key: torch.arange(700 * 32).view(700, 32) / 7.0 for key in ("model.embed_tokens.weight", "lm_head.weight")
        }
    convert(write(tmp_path / "source", config, state), tmp_path / "ours", text_size=61)
    convert(tmp_path / "ours", tmp_path / "back")
    again = load_file(tmp_path / "back" / "model.safetensors")
    assert set(again) == set(state)
    assert all(x.dtype == state[key].dtype and torch.equal(x, state[key]) for key, x in again.items())


def test_ids_that_the_tokenizer_does_not_define_are_banned(tmp_path):
    _, config, state = decoder("dream")
    added = [{"id": 60, "content": "<|mask|>"}]
    vocab = {f"t{i}": i for i in range(57)}
    folder = write(tmp_path, config, state)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    found = load_foreign(folder)
    assert found.vocab.text_size == 61
    logits = found(input_ids=IDS, output_logits=True).logits
    assert logits[..., 60:].max() == -torch.inf and logits[..., :60].isfinite().all()
    assert load_foreign(folder, text_size=62).vocab.text_size == 62


@pytest.mark.parametrize(
    ("kind", "change", "drop", "said"),
    [
        ("llada", {"block_group_size": 2}, None, "block_group_size is 2, not 1"),
        ("llada", {"include_qkv_bias": True}, None, "include_qkv_bias is True"),
        ("llada", {"rope_theta": None}, None, "rope_theta is missing"),
        ("llada", {"n_layers": 3}, None, "missing: model.transformer.blocks.2"),
        ("llada", {"n_layers": 10**9}, None, "makes no llada"),
        ("llada", {"mask_token_id": None}, None, "mask_token_id is None"),
        (
            "llada",
            {},
            "model.transformer.blocks.1.ff_norm.weight",
            "missing: model.transformer.blocks.1.ff_norm.weight",
        ),
        ("dream", {"hidden_size": "32"}, None, "makes no dream"),
        ("dream", {"use_sliding_window": True}, None, "use_sliding_window is True"),
        ("dream", {}, "model.layers.0.self_attn.q_proj.bias", "missing: model.layers.0.self_attn.q_proj.bias"),
        ("sdar", {"block_size": 0}, None, "block_size is 0"),
        ("sdar", {"block_size": None}, None, "block_size is None"),
        ("a2d-qwen3", {"mask_token_id": 64}, None, "mask_token_id is 64"),
    ],
)
def test_what_does_not_fit_is_refused(kind, change, drop, said, tmp_path):
    _, config, state = decoder(kind)
    state.pop(drop, None)
    with pytest.raises(ValueError, match=said):
        load_foreign(write(tmp_path, {**config, **change}, state))


def test_fused_blocks_are_refused_by_name(tmp_path):
    _, config, state = decoder("llada")
    key = "model.transformer.blocks.0.att_proj.weight"
    with pytest.raises(ValueError, match="fused or grouped blocks .*att_proj"):
        load_foreign(write(tmp_path, config, {**state, key: torch.zeros(64, 32)}))
    grouped = {k.replace("transformer.blocks.", "transformer.block_groups.0."): x for k, x in state.items()}
    with pytest.raises(ValueError, match="fused or grouped blocks .*block_groups"):
        load_foreign(write(tmp_path, config, grouped))


def test_end_tokens_are_the_checkpoints_or_those_asked_for(tmp_path):
    _, config, state = decoder("dream")
    folder = write(tmp_path, {**config, "bos_token_id": 56, "eos_token_id": [57, 55]}, state)
    vocab = load_foreign(folder).vocab
    assert (vocab.special("BOS"), vocab.special("EOS")) == (56, 57)
    vocab = load_foreign(folder, eos_id=43, bos_id=42, text_size=50).vocab
    assert (vocab.special("BOS"), vocab.special("EOS")) == (42, 43)
    for wrong in (64, 60, -1, "end"):  # beyond the text, the mask, no id
        with pytest.raises(ValueError, match=f"eos_id is {wrong!r}: give a text id"):
            load_foreign(folder, eos_id=wrong)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps({**config, "bos_token_id": 60, "eos_token_id": 500}))
    vocab = load_foreign(folder).vocab  # what config.json says beside the text is no end of it
    assert vocab.bos_id is None and vocab.eos_id is None


@pytest.mark.parametrize("kind", DECODERS)
def test_what_was_said_otherwise_is_written_back(kind, tmp_path):
    _, config, state = decoder(kind)
    told = {"mask_token_id": 59, "rope_theta": 1000.0, "bos_id": 1, "eos_id": 2}
    told |= {"block_size": 2} if kind == "sdar" else {}
    convert(write(tmp_path / "source", config, state), tmp_path / "ours", **told)
    convert(tmp_path / "ours", tmp_path / "back")
    again, ours = load_foreign(tmp_path / "back"), load_network(tmp_path / "ours")
    assert again.vocab == ours.vocab and (again.vocab.mask, again.vocab.bos_id, again.vocab.eos_id) == (59, 1, 2)
    assert again.config.layout == ours.config.layout
    assert torch.equal(again(input_ids=IDS).hidden, ours(input_ids=IDS).hidden)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("dream", {"shift": False}, "shift is False: a dream has True"),
        ("llada", {"shift": True}, "shift is True: a llada has False"),
        ("sdar", {"layout": None}, "attention is 'full': that of a sdar is 'block_causal'"),
    ],
)
def test_what_the_original_cannot_say_is_not_written(kind, change, said, tmp_path):
    _, config, state = decoder(kind)
    model = load_foreign(write(tmp_path / "source", config, state))
    for name, value in change.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=said):
        convert(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("shift", "mask", "said"), [(True, None, "mask id is 67"), (False, 5, "shift is False"), (True, 5, "")]
)
def test_a_stock_model_that_learned_a_mask_is_not_cut(shift, mask, said, tmp_path):
    host = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    HostedModel.from_host(host, mask_token_id=mask, shift=shift).save_pretrained(tmp_path / "ours")
    if not said:
        assert convert(tmp_path / "ours", tmp_path / "back").exists()
        return
    with pytest.raises(ValueError, match=said):
        convert(tmp_path / "ours", tmp_path / "back")
