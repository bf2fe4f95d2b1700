"""Stock models as networks: the same numbers, who sees whom, padding, packing, annealing, errors."""

import pytest
import torch
import transformers
from hosted_toy import (
    CONFIGS,
    DECODERS,
    ENCODERS,
    LENGTH,
    POSITIONS,
    ROWS,
    hosted,
    layout,
    logits,
    row_logits,
    stock,
    tokens,
)

import discdiff as dd
from discdiff.models.hosted import HostedModel


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "qwen2-local"])
def test_logits_are_those_of_the_stock_model_with_a_full_mask(name):
    ids, host = tokens(), stock(name)
    zero = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64)
    with torch.no_grad():
        wanted = host(input_ids=ids, **({"attention_mask": zero} if name in DECODERS else {})).logits
        causal = host(input_ids=ids).logits
    model = HostedModel.from_host(host)
    assert (logits(model) - wanted).abs().max() < 1e-5
    if name in DECODERS:
        assert (logits(model) - causal).abs().max() > 1e-2, "control: the causal mask differs"
    own = model(input_ids=ids, output_logits=True).logits
    assert (own[..., :ROWS] - wanted).abs().max() < 1e-5
    assert own[..., ROWS:].max() == -torch.inf, "only ids of the tokenizer are legal"


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_openness_0_is_the_autoregressive_model_bit_for_bit(name, dtype):
    host = stock(name, dtype=dtype)
    with torch.no_grad():
        wanted = host(input_ids=tokens()).logits
    model = HostedModel.from_host(host)
    opened = logits(model)
    model.openness = 0.0
    assert torch.equal(logits(model), wanted)
    model.openness = 1.0
    assert torch.equal(logits(model), opened) and not torch.equal(opened, wanted)
    batch = dd.make_batch(layout(model, attention="causal"), tokens())
    assert (row_logits(model, batch) - wanted).abs().max() < 1e-4, "a causal layout is the same function"


@pytest.mark.parametrize("name", ["gpt2", "qwen2-local"])
def test_annealing_opens_pairs_by_key_and_never_padding(name):
    model, ids = hosted(name), tokens()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[:, -3:] = False
    moved = ids.clone()
    moved[:, -3:] = 5
    for r in (0.0, 0.3, 1.0):
        model.openness = r
        assert torch.equal(logits(model, ids, valid=valid)[:, :-3], logits(model, moved, valid=valid)[:, :-3]), r
    model.openness = 0.3
    first = logits(model)
    assert torch.equal(first, logits(model)), "keyed"
    assert torch.equal(first[1:2], logits(model, ids[1:2])), "the same in every row"
    left = torch.cat([ids[:, -3:], ids[:, :-3]], 1)
    shifted = logits(model, left, valid=valid.flip(1))[:, 3:]
    assert (shifted - logits(model, ids, valid=valid)[:, :-3]).abs().max() < 1e-9
    model.openness_seed = 1
    assert not torch.equal(first, logits(model))


def test_the_share_of_open_pairs_is_r():
    model = hosted("llama")
    place = torch.arange(400)[None]
    for r in (0.1, 0.7):
        model.openness = r
        share = model._opened(place).double().mean()
        assert abs(share - r) < 5 * (r * (1 - r)) ** 0.5 / 400


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_side_and_packing_change_nothing(name):
    model, ids = hosted(name), tokens(2)
    alone = logits(model, ids[:, :7])
    right = torch.cat([ids[:, :7], ids[:, :5] * 0 + 9], 1)
    valid = torch.arange(LENGTH)[None].expand(2, -1) < 7
    assert (logits(model, right, valid=valid)[:, :7] - alone).abs().max() < 1e-9
    assert (logits(model, right.roll(5, 1), valid=valid.roll(5, 1))[:, 5:] - alone).abs().max() < 1e-9
    parts = [ids[0, :7], ids[1, :5]]
    packed = row_logits(model, dd.layout.batch.pack(layout(model), parts, LENGTH + 2))
    assert (packed[:, :7] - alone[:1]).abs().max() < 1e-9
    assert (packed[:, 7:12] - logits(model, ids[1:, :5])).abs().max() < 1e-9
    assert (packed[:, 7:12] - logits(model, torch.cat(parts)[None])[:, 7:]).abs().max() > 1e-3, (
        "control: one row of both"
    )


@pytest.mark.parametrize("name", ["modernbert", "qwen2-local"])
def test_local_layers_stay_local(name):
    changes = {"layer_types": ["sliding_attention"] * 2}
    host = stock(name, **changes, **({"max_window_layers": 0} if name != "modernbert" else {}))
    model, reach = HostedModel.from_host(host), 2 * 2  # two layers that see two slots to each side
    ids = tokens(1, LENGTH)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % ROWS
    moved = (logits(model, ids) != logits(model, other)).any(-1)[0]
    assert not moved[: LENGTH - 1 - reach].any() and moved[LENGTH - 1 - reach :].all()


@pytest.mark.parametrize("name", ["gpt2", "modernbert"])
def test_block_causal_layouts_and_doubled_rows(name):
    model, ids = hosted(name), tokens(2)
    lay = layout(model, attention="block_causal", block=4)
    other = ids.clone()
    other[:, 8:] = (ids[:, 8:] + 1) % ROWS
    one, two = (row_logits(model, dd.make_batch(lay, x)) for x in (ids, other))
    assert torch.equal(one[:, :8], two[:, :8]) and not torch.equal(one[:, 8], two[:, 8])
    pair = dd.make_batch(layout(model).doubled(4), torch.cat([ids, ids], 1))
    both = row_logits(model, pair)
    assert (both[:, LENGTH:] - one).abs().max() < 1e-9, "the clean copy has the positions of the row"
    assert (both[:, :LENGTH] - one).abs().max() < 1e-9, "a block equal to the clean one sees the same"


def test_shift_reads_the_slot_before():
    plain, shifted = hosted("qwen3"), hosted("qwen3", shift=True)
    one, two = logits(plain), logits(shifted)
    assert torch.equal(two[:, 1:], one[:, :-1]) and torch.equal(two[:, 0], one[:, 0])


def test_eager_attention_gives_the_same():
    host = stock("gpt2")
    one = logits(HostedModel.from_host(host))
    config = transformers.GPT2Config(**CONFIGS["gpt2"][1], attn_implementation="eager")
    eager = transformers.GPT2LMHeadModel(config).double().eval()
    eager.load_state_dict(stock("gpt2").state_dict())
    model = HostedModel.from_host(eager)
    assert model.host.config._attn_implementation == "eager" and (logits(model) - one).abs().max() < 1e-9


def test_clear_errors(tmp_path):
    with pytest.raises(ValueError, match=r"'opt'.*gpt2, llama, qwen2"):
        shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8}
        HostedModel.from_host(transformers.OPTForCausalLM(transformers.OPTConfig(**shape, word_embed_proj_dim=8)))
    for wrong in (-1, ROWS, True):
        with pytest.raises(ValueError, match="mask_token_id is"):
            hosted("gpt2", mask_token_id=wrong)
    with pytest.raises(ValueError, match="vocab_size 20 does not reach"):
        HostedModel.from_host(stock("gpt2", vocab_size=400), mask_token_id=390, vocab_size=20)
    with pytest.raises(ValueError, match=f"max_length is 41.*to {POSITIONS}"):
        hosted("llama", max_length=41)
    with pytest.raises(ValueError, match=f"41 network slots, max_length is {POSITIONS}"):
        logits(hosted("llama"), torch.zeros(1, 41, dtype=torch.int64))
    with pytest.raises(ValueError, match="never causal"):
        hosted("bert").openness = 0.5
    with pytest.raises(ValueError, match="openness is 1.5"):
        hosted("gpt2").openness = 1.5
    with pytest.raises(ValueError, match="GPT2LMHeadModel, which has the head"):
        HostedModel.from_host(stock("gpt2").transformer)
    with pytest.raises(ValueError, match="is_decoder"):
        HostedModel.from_host(stock("bert", is_decoder=True))
    with pytest.raises(ValueError, match="'flex_attention'.*'sdpa' or 'eager'"):
        host = stock("gpt2")
        host.config._attn_implementation_internal = "flex_attention"
        HostedModel.from_host(host)
    with pytest.raises(ValueError, match="trust_remote_code"):
        HostedModel.from_host(str(tmp_path), trust_remote_code=True)
    with pytest.raises(ValueError, match="no cache"):
        model = hosted("gpt2")
        model.hidden(dd.make_batch(layout(model), tokens()), columns=torch.arange(2))
    assert set(ENCODERS) == {"bert", "roberta", "modernbert"}
