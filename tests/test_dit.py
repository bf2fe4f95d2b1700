"""DitModel: against the restated network, time per row and position, layouts, saving, growing, gradients."""

import pytest
import torch
from foreign_toy import HEADS, MASK, bare, dit_config, dit_state, write
from restated_dit import dit, doubled_mask

from discdiff import Ancestral, BlockCached, Blocks, Linear, ModelDenoiser, Uniform, sample
from discdiff.checkpoints import load_foreign
from discdiff.config import to_dict
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch, pack
from discdiff.models import KVCache, load_network
from discdiff.models.dit import TAIL, DitConfig, DitModel

TINY = {"hidden_size": 16, "cond_size": 8, "num_layers": 2, "num_heads": 2, "vocab": VocabLayout(20, multiple=8)}


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    """(network, state dict) of a toy UDLM with labels."""
    state = dit_state("udlm")
    folder = write(tmp_path_factory.mktemp("dit") / "udlm", dit_config("udlm"), state)
    return load_foreign(folder), bare(state)


def ids_of(rows, count=3, length=12, seed=0):
    return torch.randint(0, rows, (count, length), generator=torch.Generator().manual_seed(seed))


def text(model, ids, label=None, **parts):
    layout = Layout(model.vocab, (Segment("text", "text", (ids.shape[1],)),))
    return make_batch(layout, ids, features={} if label is None else {"label": label}, **parts)


def tiny(**settings):
    """A random tiny model, every weight moved from its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DitModel(DitConfig(**{**TINY, "dropout": 0.0, **settings})).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, 0.0, 0.3)
    return model


def test_time_and_label_of_each_row(uniform):
    model, state = uniform
    ids, time, label = ids_of(40), torch.tensor([0.1, 0.5, 0.95]), torch.tensor([0, 2, 3])
    sigma = -torch.log1p(-(1 - 1e-3) * time.double())
    expected = dit(state, ids, sigma, HEADS, label)
    out = model(batch=text(model, ids, label), time=time, output_logits=True)
    torch.testing.assert_close(out.logits[..., :40], expected, rtol=0, atol=1e-5)
    assert out.logits[..., 40:].max() == -torch.inf and out.hidden.shape[-1] == model.config.hidden_size + TAIL
    assert (out.hidden[..., -1] == 1).all()
    none = model(batch=text(model, ids), time=time, output_logits=True).logits[..., :40]
    torch.testing.assert_close(none, dit(state, ids, sigma, HEADS, torch.full((3,), 3)), rtol=0, atol=1e-5)
    for wrong in (time.flip(0), torch.tensor(0.5)):
        assert (
            model(batch=text(model, ids, label), time=wrong, output_logits=True).logits[..., :40] - expected
        ).abs().max() > 0.01
    with pytest.raises(ValueError, match="time is None"):
        model(batch=text(model, ids))
    with pytest.raises(ValueError, match="label"):
        model(batch=text(model, ids, torch.tensor([0, 1, 4])), time=0.5)
    with pytest.raises(ValueError, match="num_classes=0"):
        tiny()(batch=text(tiny(), ids_of(20), label))


def test_time_of_each_position():
    model = tiny(time_conditioning=True, process=to_dict(Uniform(Linear(end=1e-3))))
    ids = ids_of(20)
    same = model(batch=text(model, ids), time=torch.full((3, 12), 0.4)).hidden
    torch.testing.assert_close(same, model(batch=text(model, ids), time=0.4).hidden)
    mixed = torch.full((3, 12), 0.4)
    mixed[:, 6:] = 0.9
    hidden = model(batch=text(model, ids), time=mixed).hidden
    assert (hidden - same).abs().amax((0, 2))[[0, 11]].min() > 1e-3
    assert model(batch=text(model, ids), time=1.0).hidden.isfinite().all()


def test_sigma_stays_finite_where_nothing_is_left():
    model = tiny(time_conditioning=True)  # the linear schedule ends at alpha = 0
    assert model(batch=text(model, ids_of(20)), time=1.0).hidden.isfinite().all()


@pytest.mark.parametrize("block", [None, 3])
def test_packed_padded_and_block_causal_rows(block, tmp_path):
    state = dit_state("mdlm")
    model, state = (
        load_foreign(write(tmp_path, dit_config("mdlm"), state), mask_token_id=MASK, model_length=24),
        bare(state),
    )
    ids = ids_of(49, 1, 12)
    zero = torch.zeros(1)
    if block is None:
        layout = Layout(model.vocab, (Segment("text", "text", (12,)),))
        batch = pack(layout, [ids[0, :5], ids[0, 5:]], 12)
        logits = model(batch=batch, output_logits=True).logits[..., :49]
        for part in (ids[:, :5], ids[:, 5:]):
            sample = int((torch.tensor([5, 7]) == part.shape[1]).nonzero()[0])
            found = logits[:, batch.sample[0] == sample]
            torch.testing.assert_close(found, dit(state, part, zero, HEADS)[..., :49], rtol=0, atol=1e-5)
        valid = torch.arange(12)[None] < 8
        padded = model(batch=text(model, ids, valid=valid), output_logits=True).logits[:, :8, :49]
        torch.testing.assert_close(padded, dit(state, ids[:, :8], zero, HEADS)[..., :49], rtol=0, atol=1e-5)
        return
    layout = Layout(model.vocab, (Segment("text", "text", (12,)),)).doubled(block)
    twice = torch.cat([ids_of(49, 1, 12, 3), ids], 1)
    places = torch.arange(12).repeat(2)
    expected = dit(state, twice, zero, HEADS, None, places, doubled_mask(12, block))
    out = model(batch=make_batch(layout, twice, check=False), output_logits=True)
    torch.testing.assert_close(out.logits[:, :12, :49], expected[:, :12, :49], rtol=0, atol=1e-5)
    full = dit(state, twice, zero, HEADS, None, places)
    assert (out.logits[:, :12, :49] - full[:, :12, :49]).abs().max() > 0.01


@pytest.mark.parametrize("timed", [False, True])
def test_cached_blocks_change_no_token(timed):
    model = tiny(time_conditioning=timed).double()
    layout = Layout(model.vocab, (Segment("text", "text", (12,)),), attention="block_causal", block=4)
    batch = make_batch(layout, torch.full((5, 12), model.vocab.mask))
    plain, cached = (
        sample(kind(ModelDenoiser(model)), Ancestral(), batch, 9, seed=3, clock=Blocks(4))
        for kind in (lambda x: x, BlockCached)
    )
    assert torch.equal(plain[0].tokens, cached[0].tokens) and len(plain[0].tokens.unique(dim=0)) == 5
    assert cached[1].fed < plain[1].fed
    cache, first = KVCache(model, batch), torch.arange(4)
    hidden = model(batch=batch, time=0.5, columns=first, cache=cache, store=True).hidden
    full, site = model(batch=batch, time=0.5).hidden, torch.tensor([2, 13])
    torch.testing.assert_close(model.select(hidden, batch, site, columns=first), model.select(full, batch, site))
    assert model.select(hidden, batch, torch.tensor([5]), columns=first).isnan().all()


def test_saving_growing_and_casting(tmp_path):
    model = tiny(num_classes=2, time_conditioning=True)
    ids = ids_of(20)
    expected = model(batch=text(model, ids), time=0.3, output_logits=True).logits
    model.save_pretrained(tmp_path)
    again = load_network(tmp_path)
    assert isinstance(again, DitModel) and again.config.to_diff_dict() == model.config.to_diff_dict()
    assert torch.equal(again(batch=text(again, ids), time=0.3, output_logits=True).logits, expected)
    again.resize(again.vocab.extend(Modality("image", 30)))
    grown = again(batch=text(again, ids), time=0.3, output_logits=True).logits
    assert torch.equal(grown[..., :20], expected[..., :20]) and grown.shape[-1] > expected.shape[-1]
    picture = Layout(again.vocab, (Segment("text", "text", (12,)), Segment("image", "image", (2, 2))))
    batch = make_batch(picture, torch.cat([ids, picture.vocab.range("image")[0] + ids_of(30, 3, 4)], 1))
    assert again(batch=batch, time=0.3).hidden.shape == (3, 16, 16 + TAIL)
    half = again.bfloat16()(batch=batch, time=0.3, output_logits=True)
    assert half.hidden.dtype == torch.bfloat16 and half.logits.dtype == torch.float32


def test_it_trains_and_checkpointing_changes_no_gradient():
    model = tiny(time_conditioning=True, dropout=0.0).train()
    batch, gradients = text(model, ids_of(20)), []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(batch=batch, time=torch.tensor([0.2, 0.5, 0.8]), labels=batch.tokens).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(grad.abs().sum() > 0 for grad in gradients[0])
    assert gradients[0][-1][:, -TAIL:-1].abs().max() == 0  # the columns between weight and bias stay at rest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": 15}, "even multiple"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"cond_size": "8"}, "cond_size is '8'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"prediction": "sore"}, "prediction is 'sore'"),
        ({"tie_word_embeddings": True}, "its head has a bias"),
        ({"origin": {1, 2}}, "origin is"),
        ({"hiden_size": 16}, "did you mean 'hidden_size'"),
        (
            {"time_conditioning": True, "process": {"type": "PerSegment", "parts": {"a": {"type": "Uniform"}}}},
            "PerSegment",
        ),
    ],
)
def test_impossible_configurations(settings, said):
    with pytest.raises(ValueError, match=said):
        DitConfig(**{**TINY, **settings})
