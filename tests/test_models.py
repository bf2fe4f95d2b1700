"""The transformer: against Llama, its invariances (U1-U9 of the token interface), caches, gradients."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch, pack
from discdiff.models import DiscDiffConfig, DiscDiffModel, KVCache
from discdiff.models.attention import attend_all
from discdiff.models.rotary import AXES, rotary_table, rotate

TEXT, IMAGE, SOUND = Segment("text", "text", (6,)), Segment("image", "image", (3, 4)), Segment("sound", "sound", (5,))
VOCAB = VocabLayout(text_size=40, modalities=(Modality("image", 32), Modality("sound", 16, depth=3)))
MIXED = Layout(VOCAB, (TEXT, IMAGE, SOUND))


def make(seed=0, dtype=torch.float64, std=0.2, **settings):
    """A tiny model with weights large enough that every part of it matters, zero-initialised ones included."""
    shape = {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "vocab": VOCAB, "initializer_range": std}
    model = DiscDiffModel.seeded(DiscDiffConfig(**{**shape, **settings}), seed, dtype).eval()
    return model


def stir(model, seed=1):
    """Noise on every weight, so that zero and identity starts hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


def tokens_of(layout, rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ranges = torch.tensor([count for _, count, _ in layout.alphabets])[layout.tables().alphabet]
    return layout.tables().first + (torch.rand(rows, layout.length, generator=generator) * ranges).long()


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [LlamaModel, Qwen3Model])
def test_text_equals_llama_with_the_same_weights(kind):
    model = make(qk_norm=kind is Qwen3Model, num_heads=3, hidden_size=48)
    shape = {"hidden_size": 48, "intermediate_size": model.config.mlp_size, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "rms_norm_eps": 1e-6, "vocab_size": model.vocab.total}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    config = {LlamaModel: LlamaConfig, Qwen3Model: Qwen3Config}[kind](**shape, **heads, **rope)
    reference = kind(config).double().eval()
    with torch.no_grad():
        reference.embed_tokens.weight.copy_(model.embed.weight)
        reference.norm.weight.copy_(model.norm.weight.uniform_(0.5, 1.5))
        for block, layer in zip(model.blocks, reference.layers, strict=True):
            for part, weight in zip("qkv", block.attention.qkv.weight.chunk(3), strict=True):
                getattr(layer.self_attn, f"{part}_proj").weight.copy_(weight)
            layer.self_attn.o_proj.weight.copy_(block.attention.out.weight)
            if kind is Qwen3Model:
                layer.self_attn.q_norm.weight.copy_(block.attention.query_norm.weight.uniform_(0.5, 1.5))
                layer.self_attn.k_norm.weight.copy_(block.attention.key_norm.weight.uniform_(0.5, 1.5))
            layer.mlp.gate_proj.weight.copy_(block.mlp.gate_up.weight.chunk(2)[0])
            layer.mlp.up_proj.weight.copy_(block.mlp.gate_up.weight.chunk(2)[1])
            layer.mlp.down_proj.weight.copy_(block.mlp.down.weight)
            layer.input_layernorm.weight.copy_(block.attention_norm.weight.uniform_(0.5, 1.5))
            layer.post_attention_layernorm.weight.copy_(block.mlp_norm.weight.uniform_(0.5, 1.5))
    ids = torch.randint(0, 40, (2, 21), generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(2, 1, 21, 21, dtype=torch.float64)
    expected = reference(input_ids=ids, attention_mask=seen).last_hidden_state
    out = model(input_ids=ids, output_logits=True)
    close(out.hidden, expected, 1e-5)
    close(out.logits[..., :40], (expected @ model.head.weight.T)[..., :40], 1e-5)
    assert (out.hidden - model(input_ids=ids.flip(0)).hidden).abs().max() > 0.1  # tokens matter


def test_zero_initialised_parts_change_nothing():
    plain, timed = make(seed=3), make(seed=3, time_conditioning=True)
    timed.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch(MIXED, tokens_of(MIXED))
    close(timed(batch=batch, time=torch.rand(3)).hidden, plain(batch=batch).hidden)
    with torch.no_grad():
        for block in timed.blocks:
            block.modulation.weight.normal_(generator=torch.Generator().manual_seed(0))
    per_row, time = timed(batch=batch, time=torch.tensor([0.1, 0.5, 0.9])).hidden, torch.tensor([[0.1], [0.5], [0.9]])
    assert (per_row - plain(batch=batch).hidden).abs().max() > 0.1
    close(timed(batch=batch, time=time.repeat(1, MIXED.length)).hidden, per_row)


@pytest.mark.parametrize("sites", ["all", "fed"])
def test_two_times_in_a_row_are_thought_of_once(monkeypatch, sites):
    """The noised part's and the given part's time: two conditions a row, hidden states and gradients as of one a slot."""
    model, batch = stir(make(time_conditioning=True)), make_batch(MIXED, tokens_of(MIXED))
    time = torch.where(torch.arange(MIXED.length) < 6, 0.0, torch.tensor([[0.1], [0.5], [0.0]]))
    widths = []
    model.time.register_forward_hook(lambda _, given, out: widths.append(out.shape[1]))
    columns = torch.arange(4, 20) if sites == "fed" else None
    cache = KVCache(model, batch) if sites == "fed" else None

    def outcome(time):
        model.zero_grad()
        hidden = model(batch=batch, time=time, columns=columns, cache=cache).hidden
        hidden.square().sum().backward()
        return [hidden.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]

    few = outcome(time)
    monkeypatch.setattr("discdiff.models.transformer.distinct", lambda time: (time, None))
    for a, b in zip(few, outcome(time), strict=True):
        close(a, b, 1e-9)
    monkeypatch.undo()
    outcome(time + torch.rand(MIXED.length, generator=torch.Generator().manual_seed(0)))
    assert widths == [2, *[len(columns) if columns is not None else MIXED.length] * 2]


def test_resize_keeps_old_logits_and_starts_new_rows_near_the_mean():
    model, batch = make(tie_word_embeddings=False), make_batch(MIXED, tokens_of(MIXED))
    before = model(batch=batch, output_logits=True).logits
    wider = VOCAB.extend(Modality("action", 200))
    layout = Layout(wider, (*MIXED.segments, Segment("action", "action", (2,))))
    with pytest.raises(ValueError, match="resize"):
        model(batch=make_batch(layout, tokens_of(layout)))
    first, size = wider.range("action")
    assert model.resize(wider) is model and model.vocab == wider == model.config.vocab_layout
    after = model(batch=make_batch(Layout(wider, MIXED.segments), batch.tokens), output_logits=True).logits
    assert torch.equal(after[..., :first], before[..., :first]) and after.shape[-1] == wider.total
    rows, old = model.head_weight(first, size), model.head.weight[:first]
    assert rows.std(0).mean() < 0.2 * old.std(0).mean() and len(rows.unique(dim=0)) == size
    close(rows.mean(0), old.mean(0), 0.05)
    assert torch.equal(rows, make(tie_word_embeddings=False).resize(wider).head_weight(first, size))
    with pytest.raises(ValueError, match="not the model's"):
        model.resize(VocabLayout(text_size=41))
    with pytest.raises(ValueError, match="resize"):
        model.resize_token_embeddings(1000)


def test_illegal_logits_are_minus_infinity():
    layout = Layout(VOCAB, (Segment("text", "text", (6,), extras=("EOS",)), IMAGE, SOUND), packed=True)
    logits = stir(make(max_depth=3))(batch=make_batch(layout, tokens_of(layout)), output_logits=True).logits
    tables = layout.tables()
    for position in range(layout.length):
        first, size, extras = layout.alphabets[int(tables.alphabet[position])]
        legal = [*range(first, first + size), *extras]
        assert logits[:, position].isfinite().nonzero()[:, 1].unique().tolist() == sorted(legal)
    inside = Layout(VocabLayout(40, mask_id=7), (TEXT,))
    logits = make(vocab=inside.vocab)(batch=make_batch(inside, tokens_of(inside)), output_logits=True).logits
    assert logits[..., 7].eq(-torch.inf).all() and logits[..., :7].isfinite().all()


def test_attention_depends_on_differences_of_positions_only():
    config, apart = DiscDiffConfig(vocab=VOCAB), Layout(VOCAB, (Segment("text", "text", (9,)), IMAGE))
    alone, cut = Layout(VOCAB, (IMAGE,)), slice(9, None)
    q, k = torch.randn(2, 1, 1, 12, config.head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = []
    for layout, part in ((alone, slice(None)), (apart, cut)):
        cos, sin = (x[part] for x in rotary_table(layout, config.head_dim, 1e4, torch.float64, torch.device("cpu")))
        scores.append(rotate(q, cos, sin) @ rotate(k, cos, sin).mT)
    close(scores[0], scores[1], 1e-11)
    still = q @ k.mT
    assert (scores[0] - still).abs().max() > 0.1
    assert [AXES.count(axis) for axis in range(3)] == [2, 3, 3]


def test_padding_changes_nothing():
    model = stir(make())
    short, long = Layout(VOCAB, (TEXT,)), Layout(VOCAB, (Segment("text", "text", (11,)),))
    ids = tokens_of(short)
    padded = torch.cat([ids, ids.new_full((3, 5), VOCAB.pad)], 1)
    valid = (torch.arange(11) < 6).expand(3, 11)
    expected = model(batch=make_batch(short, ids)).hidden
    out = model(batch=make_batch(long, padded, valid=valid)).hidden
    close(out[:, :6], expected)
    assert out.isfinite().all()
    close(model(input_ids=padded, attention_mask=valid.long()).hidden[:, :6], expected)
    other = padded.clone()
    other[:, 6:] = 3
    close(model(batch=make_batch(long, other, valid=valid)).hidden[:, :6], expected)


@pytest.mark.parametrize("attention", ["full", "causal", "hybrid", "isolated"])
def test_rows_do_not_depend_on_each_other(attention):
    model, layout = stir(make()), Layout(VOCAB, MIXED.segments, attention)
    batch, order = make_batch(layout, tokens_of(layout, 4)), torch.tensor([2, 0, 3, 1])
    out = model(batch=batch).hidden
    close(model(batch=batch.rows(order)).hidden, out[order])
    close(model(batch=batch.rows(order[:1])).hidden, out[order[:1]])
    valid = torch.ones_like(batch.valid)  # the same rule, now as one mask per row
    close(model(batch=make_batch(layout, batch.tokens, valid=valid)).hidden, out)


def test_packed_samples_equal_separate_runs():
    model, layout = stir(make()), Layout(VOCAB, (Segment("text", "text", (12,)),))
    samples = [torch.arange(n) + 2 * n for n in (5, 7, 4, 9)]
    batch = pack(layout, samples, 14)
    out = model(batch=batch).hidden
    found = [
        out[row, batch.sample[row] == j] for row in range(len(out)) for j in range(int(batch.sample[row].max()) + 1)
    ]
    alone = {len(x): model(input_ids=x[None]).hidden[0] for x in samples}
    assert len(found) == len(samples)
    for hidden in found:
        close(hidden, alone[len(hidden)])


def test_packed_depth_starts_as_the_sum_of_its_levels():
    model, layout = make(max_depth=3), Layout(VOCAB, (TEXT, SOUND), packed=True)
    batch = make_batch(layout, tokens_of(layout))
    embedded = model.embed(batch.tokens)
    expected = torch.cat([embedded[:, :6], embedded[:, 6:].unflatten(1, (5, 3)).sum(2)], 1)
    close(model.inputs(model.embed, batch, None), expected)
    hidden, sites = model(batch=batch).hidden, torch.arange(3 * layout.length)
    assert hidden.shape == (3, 11, 48)
    slots = torch.cat([torch.arange(6), 6 + torch.arange(15) // 3])
    close(model.select(hidden, batch, sites).unflatten(0, (3, -1)), hidden[:, slots])
    stir(model)
    every = model.select(hidden, batch, sites)  # more sites than slots: the other way through `unpack`
    close(model.select(hidden, batch, sites[[3, 8, 40]]), every[[3, 8, 40]])
    assert (every[6] - every[7]).abs().max() > 0.01  # levels of one slot now differ
    gone = batch.valid.index_fill(1, torch.tensor([7, 8]), False)  # levels 1, 2 of the first sound slot are absent
    absent = make_batch(layout, batch.tokens, valid=gone)
    filled = absent._replace(tokens=batch.tokens.index_fill(1, torch.tensor([7, 8]), VOCAB.pad))
    close(model(batch=absent).hidden, model(batch=filled).hidden)


def test_one_level_per_slot_packed_equals_flat():
    flat, packed = Layout(VOCAB, (TEXT, IMAGE)), Layout(VOCAB, (TEXT, IMAGE), packed=True)
    ids, model = tokens_of(flat), make(max_depth=3)
    close(model(batch=make_batch(packed, ids)).hidden, model(batch=make_batch(flat, ids)).hidden)


@pytest.mark.parametrize("packed", [False, True])
def test_select_and_loss_agree_with_logits(packed):
    model, layout = stir(make(max_depth=3)), Layout(VOCAB, MIXED.segments, packed=packed)
    batch, target = make_batch(layout, tokens_of(layout)), tokens_of(layout, seed=5)
    labels = torch.where(torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.4, target, -100)
    out = model(batch=batch, labels=labels, output_logits=True)
    expected = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()
    close(out.loss, expected)
    assert float(model(batch=batch, labels=torch.full_like(labels, -100)).loss.detach()) == 0
    first, size = VOCAB.range("image")
    rows = model.head_weight(first, size, (VOCAB.special("EOS"),))
    assert (
        rows.shape == (size + 1, 48)
        and model.head_weight(first, size).data_ptr() == model.head.weight[first].data_ptr()
    )
    site = torch.tensor([layout.length + 8])
    close(model.select(out.hidden, batch, site) @ rows[:size].T, out.logits[1, 8:9, first : first + size])
    shifted = model.select(out.hidden, batch, site, shift=True)
    close(shifted @ rows[:size].T, model.select(out.hidden, batch, site - 1) @ rows[:size].T)
    with pytest.raises(ValueError, match="row 0, position 1 is illegal"):
        model(batch=batch, labels=labels.index_fill(1, torch.tensor([1]), first))


def test_objective_runs_inside_forward():
    model, batch = make(), make_batch(MIXED, tokens_of(MIXED))
    out = model(batch=batch, objective=lambda network, hidden: (hidden.square().sum(), {"same": network is model}))
    assert out.extras == {"same": True} and out.logits is None
    close(out.loss, out.hidden.square().sum())


def feed(model, batch, parts, rows=None):
    """Hidden states, the slots fed part by part through a cache."""
    cache = KVCache(model, batch)
    return torch.cat([model(batch=batch, columns=x, cache=cache, store=True).hidden for x in parts], 1), cache


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_cache_is_exact_for_blocks_and_for_a_prefix(packed):
    model = stir(make(max_depth=3))
    text = Segment("text", "text", (6,), noised=False)
    if packed:
        layout = Layout(VOCAB, (text, SOUND), "prefix", packed=True)
        assert layout.prefix_cacheable()
        parts = torch.arange(11).split([6, 5])
    else:
        layout = Layout(VOCAB, (Segment("text", "text", (12,)),), "block_causal", block=4)
        parts = torch.arange(12).split(4)
    ids = tokens_of(layout, 4)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, 2] = False
    for batch in (make_batch(layout, ids), make_batch(layout, ids, valid=valid)):
        full = model(batch=batch).hidden
        fed, cache = feed(model, batch, parts)
        keep = batch.valid[:, batch.lead]
        close(fed[keep], full[keep])
        assert cache.filled.all()
    kept = cache.keys[0].clone()
    cache.filled[:, parts[-1]] = False
    some, last = torch.tensor([3, 1]), parts[-1]
    again = model(batch=batch.rows(some), columns=last, cache=cache.rows(some)).hidden
    close(again, full[some][:, last])
    assert torch.equal(cache.keys[0], kept) and not cache.filled[:, last].any()  # nothing stored unless asked
    cache.keys[0][:, :, last] = 0
    model(batch=batch.rows(some), columns=last, cache=cache.rows(some), store=True)
    close(cache.keys[0][some], kept[some])
    assert cache.keys[0][0, :, last].eq(0).all() and cache.filled[:, last].any(1).tolist() == [False, True, False, True]
    site = batch.layout.length + torch.tensor([batch.layout.length - 1])
    chosen = model.select(full[:, last], batch, site, columns=last)
    close(chosen, model.select(full, batch, site))
    with pytest.raises(ValueError, match="not among the"):
        model.select(full[:, last], batch, torch.tensor([0]), columns=last)


@pytest.mark.parametrize("attention", ["full", "causal", "hybrid"])
def test_flex_attention_equals_dense(attention):
    layout, generator = Layout(VOCAB, MIXED.segments, attention), torch.Generator().manual_seed(0)
    ids = tokens_of(layout, 2)
    query, key, value = torch.randn(3, 2, 3, layout.length, 16, generator=generator)
    valid = torch.arange(layout.length) < torch.tensor([[20], [layout.length]])
    for batch in (make_batch(layout, ids), make_batch(layout, ids, valid=valid)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not compiled: slow, and said so
            out = attend_all(batch, flex_attention)(0, query, key, value)
        close(out, attend_all(batch)(0, query, key, value), 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled FlexAttention needs a CUDA device")
def test_flex_attention_equals_dense_on_the_gpu():
    layout = Layout(VOCAB, MIXED.segments, "hybrid")
    model = stir(make(dtype=torch.float32)).cuda()
    ids = tokens_of(layout, 2)
    valid = torch.arange(layout.length) < torch.tensor([[20], [layout.length]])
    batch = make_batch(layout, ids, valid=valid).to("cuda")
    dense = model(batch=batch).hidden
    model.set_attn_implementation("flex_attention")
    out = model(batch=batch).hidden
    assert out.isfinite().all()
    close(out[batch.valid], dense[batch.valid], 1e-3)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, batch = stir(make(time_conditioning=True)).train(), make_batch(MIXED, tokens_of(MIXED))
    grads = []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if settings:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # renamed in later versions of transformers
                model.gradient_checkpointing_enable(settings)
        model.zero_grad()
        model(
            batch=batch, time=torch.rand(3, generator=torch.Generator().manual_seed(0)), labels=batch.tokens
        ).loss.backward()
        grads.append([weight.grad.clone() for weight in model.parameters()])
    assert all(block.gradient_checkpointing for block in model.blocks)
    for plain, *others in zip(*grads, strict=True):
        for other in others:
            close(other, plain)


def test_bfloat16_and_autocast_run():
    batch = make_batch(MIXED, tokens_of(MIXED))
    model = make(dtype=torch.bfloat16, std=0.05, qk_norm=True)
    exact = copy.deepcopy(model).float()
    expected = exact(batch=batch, labels=batch.tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(batch=batch, labels=batch.tokens)
    for out in (model(batch=batch, labels=batch.tokens), mixed):
        assert out.loss.dtype == torch.float32 and abs((out.loss - expected.loss).item()) < 0.05
    mixed.loss.backward()
    assert all(weight.grad.dtype == torch.float32 for weight in exact.parameters() if weight.grad is not None)
    with torch.inference_mode():  # tables made in here must serve training later
        fresh = Layout(VOCAB, (Segment("text", "text", (13,)),))
        exact(batch=make_batch(fresh, tokens_of(fresh)))
    exact(batch=make_batch(fresh, tokens_of(fresh)), labels=tokens_of(fresh)).loss.backward()
