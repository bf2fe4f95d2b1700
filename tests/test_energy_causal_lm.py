"""Conditionals of Hugging Face causal language models as energies: padding, beginnings, ids, memory."""

import pytest
import torch
from energy_toy import state_of
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import discdiff.energy.autoregressive as module
from discdiff.energy.autoregressive import AutoregressiveEnergy, causal_lm_log_probs
from discdiff.energy.base import Candidates, energies
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=39,
            eos_token_id=39,
            initializer_range=0.5,
        )
    ).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=38,
            eos_token_id=[39, 37],
            initializer_range=0.5,
        )
    ).eval()


PLAIN = Layout(VocabLayout(30), (Segment("text", "text", (8,), extras=("EOS",)),))


def plain(model, ids):
    """log p(ids[i] | ids[:i]) for i >= 1 by one full softmax."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logits[i, token]) for i, token in enumerate(ids[1:])]


@pytest.mark.parametrize("make", [gpt2, llama])
@torch.no_grad()
def test_causal_lm_equals_the_full_softmax(make, monkeypatch):
    model, eos, pad = make(), PLAIN.vocab.special("EOS"), PLAIN.vocab.pad
    bos, end = (39, 39) if make is gpt2 else (38, 39)
    rows = [[3, 1, 4, 1, 5, eos], [9, 2, 6, 5], [7]]
    expected = [plain(model, [bos, *(end if i == eos else i for i in row)]) for row in rows]
    found = {}
    for side in ("left", "right", "between"):
        tokens, valid = torch.full((3, 8), pad), torch.zeros(3, 8, dtype=torch.bool)
        for row, ids in enumerate(rows):
            places = {"left": range(8 - len(ids), 8), "right": range(len(ids)), "between": [0, 1, 3, 5, 6, 7]}[side]
            for place, i in zip(places, ids):
                tokens[row, place], valid[row, place] = i, True
        batch = make_batch(PLAIN, tokens, valid=valid)
        log_probs = causal_lm_log_probs(model)
        found[side] = log_probs(batch)
        assert bool((found[side][~valid] == 0).all()) and found[side].dtype == torch.float64
        flat = torch.tensor([x for row in expected for x in row], dtype=torch.float64)
        assert torch.allclose(found[side][valid], flat, atol=1e-5)
        assert torch.equal(found[side][valid], found["left"][found["left"] != 0])
    monkeypatch.setattr(module, "_LOGITS_BYTES", 1)
    monkeypatch.setattr(module, "_PIECE_BYTES", 4 * 40 * 3)
    assert torch.allclose(causal_lm_log_probs(model)(batch), found["between"], atol=1e-6)


@torch.no_grad()
def test_beginnings_of_rows():
    model, bos = gpt2(), PLAIN.vocab.special("BOS")
    layout = Layout(PLAIN.vocab, (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (3,))))
    own = make_batch(layout, torch.tensor([[bos, 5, 6, 7]]))
    bare = Layout(PLAIN.vocab, (Segment("text", "text", (3,)),))
    front = make_batch(bare, torch.tensor([[5, 6, 7]]))
    expected = torch.tensor([plain(model, [39, 5, 6, 7])], dtype=torch.float64)
    assert torch.allclose(causal_lm_log_probs(model)(own)[:, 1:], expected, atol=1e-5)
    assert torch.allclose(causal_lm_log_probs(model)(front), expected, atol=1e-5)
    other = torch.tensor([plain(model, [2, 5, 6, 7])], dtype=torch.float64)
    assert torch.allclose(causal_lm_log_probs(model, bos=2)(front), other, atol=1e-5)
    both = torch.tensor([plain(model, [2, 39, 5, 6, 7])[1:]], dtype=torch.float64)  # BOS is no 2: it is one more token
    assert torch.allclose(causal_lm_log_probs(model, bos=2)(own)[:, 1:], both, atol=1e-5)
    drawn = make_batch(bare, torch.tensor([[2, 6, 7]]))  # drawn, so no beginning, in this candidate or any other
    twice = torch.tensor([plain(model, [2, 2, 6, 7])], dtype=torch.float64)
    assert torch.allclose(causal_lm_log_probs(model, bos=2)(drawn), twice, atol=1e-5)
    known = torch.tensor([[True, False, False]])
    once = causal_lm_log_probs(model, bos=2)(make_batch(bare, drawn.tokens, given=known))
    assert once[0, 0] == 0 and torch.allclose(once[0, 1:], torch.tensor(plain(model, [2, 6, 7])).double(), atol=1e-5)
    model.config.bos_token_id = None
    none = causal_lm_log_probs(model)(front)
    assert none[0, 0] == 0 and torch.allclose(none[0, 1:], torch.tensor(plain(model, [5, 6, 7])).double(), atol=1e-5)


@torch.no_grad()
def test_ids_of_another_modality_and_their_law():
    """Image codes that a language model knows under other ids; coAR over two of them sums to what it gives those ids."""
    vocab = VocabLayout(0, (Modality("image", 4),))
    layout = Layout(vocab, (Segment("image", "image", (2, 2)),))
    model, first = llama(), vocab.range("image")[0]
    ids = {first + code: 30 - code for code in range(4)}
    table = torch.full((vocab.total,), -1)
    table[list(ids)] = torch.tensor(list(ids.values()))
    batch = make_batch(layout, first + torch.tensor([[0, 3, 1, 2], [1, 1, 0, 2]]))
    found = causal_lm_log_probs(model, ids)(batch)
    expected = [plain(model, [38, *(ids[i] for i in row)]) for row in batch.tokens.tolist()]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    assert torch.equal(causal_lm_log_probs(model, table)(batch), found)
    with pytest.raises(ValueError, match=f"id {first} at row 0, position 0"):
        causal_lm_log_probs(model)(batch)
    hidden = batch.tokens.clone()
    hidden[:, 2:] = vocab.mask
    state = state_of(make_batch(layout, hidden))
    whole = batch.tokens[:, None].repeat(1, 16, 1)
    whole[..., 2:] = first + torch.cartesian_prod(torch.arange(4), torch.arange(4))
    drawn = hidden == vocab.mask
    candidates = Candidates(whole, torch.where(drawn[:, None], -1.0, 0.0).double().expand(whole.shape), drawn)
    energy = energies(AutoregressiveEnergy(causal_lm_log_probs(model, ids)), candidates, state, state.time)
    mass = (-2 - energy).exp()
    logits = model(input_ids=torch.tensor([[38, *(ids[i] for i in batch.tokens[0, :2].tolist())]])).logits[0, -1]
    third = logits.double().softmax(-1)[[30, 29, 28, 27]]
    assert bool((mass.sum(1) < 1).all()) and bool((mass[0].view(4, 4).sum(1) < third).all())


def test_bad_input():
    lm, long = gpt2(), Layout(VocabLayout(30), (Segment("text", "text", (17,)),))
    row = torch.zeros(1, 17, dtype=torch.int64)
    short = make_batch(PLAIN, row[:, :8])
    outside = Layout(VocabLayout(50), (Segment("text", "text", (2,)),))
    for make, message in (
        (lambda: causal_lm_log_probs(gpt2().train())(short), "eval"),
        (lambda: causal_lm_log_probs(lm, bos=40), "bos 40"),
        (lambda: causal_lm_log_probs(lm)(make_batch(long, row)), "18 tokens, the LM's context is 16"),
        (lambda: causal_lm_log_probs(lm)(make_batch(outside, torch.tensor([[3, 41]]))), "id 41 at row 0, position 1"),
        (lambda: causal_lm_log_probs(lm, {1: 2})(short), "id 0 at row 0, position 0"),
        (lambda: causal_lm_log_probs(lm, {1: 99})(short), "1 to 99"),
        (lambda: causal_lm_log_probs(lm, {9999: 1})(short), "ids maps 9999"),
        (lambda: causal_lm_log_probs(lm, torch.zeros(3))(short), "integers of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
