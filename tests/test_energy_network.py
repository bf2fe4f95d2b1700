"""EnergyModel: its start from the denoiser, weights on disk, what must not matter, and how candidates are scored."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import MIXED, VOCAB, make, stir, tokens_of
from transformers import AutoModel

from discdiff.clocks import Windows
from discdiff.denoisers import ModelDenoiser
from discdiff.energy import (
    Candidates,
    EnergyConfig,
    EnergyModel,
    EnergyResampled,
    LearnedEnergy,
    NoiseContrastive,
    contrastive,
    energies,
)
from discdiff.kernels import Ancestral
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.maskers import FixedCount
from discdiff.models import DiscDiffModel
from discdiff.noise import Noise
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing, PerSegment, Uniform, vq_paper
from discdiff.sampling import sample
from discdiff.schedules import Linear
from discdiff.training.optimizers import blocks_of
from discdiff.types import State

CODES = VocabLayout(text_size=8, modalities=(Modality("audio", 16, depth=2),))
PACKED = Layout(CODES, (Segment("audio", "audio", (5,)),), packed=True)
CHANCE = 2 * math.log(2)


def energy_of(dtype=torch.float64, **settings):
    """An energy whose every weight matters."""
    return stir(EnergyModel.from_denoiser(make(dtype=dtype, **settings))).eval()


def noise_of(batch, epoch=0):
    rows = torch.arange(len(batch.tokens))
    return Noise.training(0, torch.full_like(rows, epoch), rows, batch.valid)


def state_of(batch, time=0.5):
    when = torch.full(batch.tokens.shape, time, dtype=torch.float64)
    rows = torch.arange(len(batch.tokens))
    return State(batch.tokens, batch.given, batch.valid, ~batch.free, when, rows, batch, {}, {})


def test_what_is_known_is_carried_over():
    layout = Layout(VOCAB, (Segment("prompt", "text", (2,), noised=False), *MIXED.segments))
    tokens = tokens_of(layout, rows=16)
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, 4:7] = True
    batch = make_batch(
        layout, tokens, given=given, valid=torch.arange(layout.length).expand_as(tokens) < layout.length - 2
    )
    model = make()
    parts = PerSegment({"text": Absorbing(), "image": Uniform(), "sound": vq_paper()})
    late = Windows({"image": (1.0, 0.6)})
    for elbo in (
        Elbo(),
        Elbo(masker=FixedCount(Linear(), elbo=True)),
        Elbo(parts),
        Elbo(clock=late),
        Elbo(parts, clock=late),
    ):
        time = torch.full((16,), 0.5)
        noisy, clean, when = NoiseContrastive(model, elbo, 3).pairs(batch, noise_of(batch), time)
        again = elbo.corrupt(batch, noise_of(batch), elbo.time_min + (1 - elbo.time_min) * time.double())
        assert torch.equal(noisy.tokens, again[0]) and torch.equal(when.expand(tokens.shape), again[1])
        assert (noisy.tokens != tokens)[batch.free].any() and torch.equal(clean[:, 0], tokens)
        moved = (clean != tokens[:, None]).any(1)
        assert (
            not moved[~batch.free].any()
            and moved.any()
            and (clean != layout.vocab.mask)[batch.valid[:, None].expand(clean.shape)].all()
        )
        names = batch.alphabet.segment
        masks = noisy.tokens == layout.vocab.mask
        if elbo.process == Absorbing():
            assert not moved[~masks].any() and moved[masks].float().mean() > 0.8
        else:  # the image's noise is not to be seen, so that all of it is drawn, unless its time is over
            image, is_over = names == layout.names.index("image"), elbo.clock == late
            assert not moved[(names == layout.names.index("text")) & ~masks].any()
            assert (
                moved[image & batch.free].any() is not is_over and bool(moved[image & batch.free].any()) is not is_over
            )
        make_batch(layout, clean[:, 1], given=given, valid=batch.valid)  # every id is legal where it stands
    _, clean, _ = NoiseContrastive(model, Elbo(time_min=0.0)).pairs(batch, noise_of(batch), torch.zeros(16))
    assert torch.equal(clean[:, 0], clean[:, 1])  # nothing hidden: no network call, nothing to tell apart


@pytest.mark.parametrize(
    "settings", [{}, {"time_conditioning": True}, {"tie_word_embeddings": False}, {"max_depth": 3}]
)
def test_a_new_energy_is_zero_and_every_weight_learns(settings):
    denoiser = stir(make(**settings))
    before = {name: x.clone() for name, x in denoiser.state_dict().items()}
    energy = EnergyModel.from_denoiser(denoiser)
    batch, clean = make_batch(MIXED, tokens_of(MIXED)), tokens_of(MIXED, seed=1)
    assert torch.equal(energy(batch, clean, 0.3).energy, torch.zeros(3, dtype=torch.float64))
    twin = energy.trunk.hidden(batch, 0.3, inputs=energy.trunk.inputs(energy.trunk.embed, batch, None))
    assert torch.equal(twin, denoiser.hidden(batch, 0.3))
    embedded = denoiser.inputs(denoiser.embed, batch, None)
    torch.testing.assert_close(
        energy.fuse(torch.cat([embedded, embedded], -1) / 2), embedded
    )  # the denoiser's own input
    goal = NoiseContrastive(denoiser, Elbo(Uniform()))
    loss, metrics = goal(energy, batch, noise_of(batch), torch.full((3,), 0.7))
    assert float(loss.detach()) == pytest.approx(CHANCE, abs=1e-12) and float(metrics["accuracy"]) == 0.5
    loss.backward()
    assert energy.last.weight.grad.abs().max() > 0
    stir(energy).zero_grad()
    if settings.get("max_depth"):
        batch = make_batch(Layout(VOCAB, MIXED.segments, packed=True), batch.tokens)
    goal(energy, batch, noise_of(batch), torch.full((3,), 0.7))[0].backward()
    for name, weight in energy.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name
    assert all(torch.equal(x, before[name]) for name, x in denoiser.state_dict().items())
    assert all(weight.grad is None for weight in denoiser.parameters())
    assert len(blocks_of(energy, "compile is True")) == 2 and energy.config.layout == denoiser.config.layout


def test_first_weights_depend_on_the_seed_only():
    state, denoiser = torch.get_rng_state(), make()
    a, b, c = (EnergyModel.from_denoiser(denoiser, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state) and not a.training
    assert torch.equal(a.first.weight, b.first.weight) and not torch.equal(a.first.weight, c.first.weight)
    assert a.trunk.embed.weight.data_ptr() != denoiser.embed.weight.data_ptr() and a.dtype == torch.float64


def test_save_and_load_are_exact(tmp_path):
    settings = {"layout": {"a": [1]}, "process": {"type": "Absorbing"}, "prediction": "cavity"}
    model = energy_of(torch.float32, time_conditioning=True, max_depth=3, tie_word_embeddings=False, **settings)
    batch, clean = make_batch(MIXED, tokens_of(MIXED)), tokens_of(MIXED, seed=1)
    expected = model(batch, clean, 0.3).energy
    assert expected.unique().numel() == 3
    model.save_pretrained(tmp_path)
    for kind in (EnergyModel, AutoModel):
        again = kind.from_pretrained(tmp_path)
        assert isinstance(again, EnergyModel) and not again.training
        assert torch.equal(again(batch, clean, 0.3).energy, expected)
        assert again.config.to_diff_dict() == model.config.to_diff_dict() and again.config.prediction == "cavity"
    half = EnergyModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(batch, clean, 0.3).energy.dtype == torch.float32


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_incomplete_weights_are_refused(tmp_path, damage):
    energy_of(torch.float32).save_pretrained(tmp_path, sealed=False)  # with a manifest the file alone is refused
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if damage == "unexpected":
        weights["fuse.bias"] = torch.zeros(2)
    elif damage == "mismatched":
        weights["fuse.weight"] = weights["fuse.weight"][:-1].contiguous()
    else:
        del weights["fuse.weight"]
    save_file(weights, file, {"format": "pt"})
    for kind in (EnergyModel, AutoModel):
        with pytest.raises(ValueError, match=f"{damage} keys: .*fuse"):
            kind.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pickles"):
        EnergyModel.from_pretrained(tmp_path, use_safetensors=False)


def test_denoisers_and_energies_are_not_mixed_up(tmp_path):
    make(dtype=torch.float32).save_pretrained(tmp_path / "denoiser")
    energy_of(torch.float32).save_pretrained(tmp_path / "energy")
    with pytest.raises(ValueError, match="has model_type .discdiff., EnergyModel reads"):
        EnergyModel.from_pretrained(tmp_path / "denoiser")
    with pytest.raises(ValueError, match="has model_type .discdiff_energy., DiscDiffModel reads"):
        DiscDiffModel.from_pretrained(tmp_path / "energy")


def test_rows_padding_and_order_change_nothing():
    layout, vocab = Layout(VOCAB, (Segment("text", "text", (6,)),)), VOCAB
    model = energy_of(torch.float32)
    noisy, clean = tokens_of(layout, 5), tokens_of(layout, 5, seed=1)
    noisy[:, ::2] = vocab.mask
    whole = model(make_batch(layout, noisy), clean).energy
    assert whole.std() > 1e-2
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        model(make_batch(layout, noisy[order]), clean[order]).energy, whole[order], rtol=0, atol=1e-5
    )
    for row in range(5):
        alone = model(make_batch(layout, noisy[row : row + 1]), clean[row : row + 1]).energy
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-5)
    wide = Layout(VOCAB, (Segment("text", "text", (9,)),))
    slot, junk = torch.arange(6).expand(5, 6), tokens_of(wide, 5, seed=2)
    for first in (0, 3, 1):  # padded right, left and on both sides, with anything in the padding
        place = slice(first, first + 6)
        tokens, found, valid, slots = (
            junk.clone(),
            junk.flip(0),
            torch.zeros(5, 9, dtype=torch.bool),
            torch.zeros_like(junk),
        )
        tokens[:, place], found[:, place], valid[:, place], slots[:, place] = noisy, clean, True, slot
        energy = model(make_batch(wide, tokens, valid=valid, slot=slots), found).energy
        torch.testing.assert_close(energy, whole, rtol=0, atol=1e-5)
    changed = model(make_batch(layout, noisy), clean.clone().index_fill_(1, torch.tensor([2]), 1)).energy
    assert (changed - whole).abs().max() > 1e-3  # candidates matter, and so does x_t
    assert (model(make_batch(layout, clean), clean).energy - whole).abs().max() > 1e-3


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_candidates_are_scored_row_by_row(monkeypatch, time_conditioning):
    model, layout = energy_of(time_conditioning=time_conditioning), MIXED
    noisy = tokens_of(layout).masked_fill(torch.rand(3, layout.length) < 0.5, layout.vocab.mask)
    state = state_of(make_batch(layout, noisy))
    closed = torch.zeros_like(noisy, dtype=torch.bool)
    closed[1, -2:] = True
    state, t = state.close(closed), torch.rand(3, layout.length, dtype=torch.float64)
    for k in (1, 3, 4):  # with k = 3 = rows, a transposed answer has the right shape
        tokens = tokens_of(layout, 3 * k, seed=k).view(3, k, -1)
        candidates = Candidates(tokens, torch.zeros(tokens.shape, dtype=torch.float64), state.free)
        expected = torch.empty(3, k, dtype=torch.float64)
        for row in range(3):
            batch = state.batch._replace(tokens=state.tokens, valid=state.valid).rows(torch.tensor([row]))
            for j in range(k):
                expected[row, j] = model(batch, tokens[row, j : j + 1], t[row : row + 1]).energy.item()
        for positions in (1 << 15, 5 * layout.length, 1):
            monkeypatch.setattr(contrastive, "_POSITIONS", positions)
            found = energies(2 * LearnedEnergy(model), candidates, state, t)
            torch.testing.assert_close(found, 2 * expected, rtol=0, atol=1e-10)
        assert k == 1 or (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3
        assert k != 3 or (expected - expected.T).abs().max() > 1e-3
    assert not found.requires_grad


def test_packed_codes():
    denoiser = stir(make(vocab=CODES, max_depth=2))
    batch = make_batch(PACKED, tokens_of(PACKED, 4))
    goal = NoiseContrastive(denoiser, Elbo(Uniform()), negatives=2)
    model = EnergyModel.from_denoiser(denoiser)
    start = goal(model, batch, noise_of(batch), torch.rand(4))[0].detach()
    assert model.trunk.outputs is None and float(start) == pytest.approx(CHANCE)
    fit = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        loss, metrics = goal(model, batch, noise_of(batch), torch.full((4,), 0.9))
        fit.zero_grad()
        loss.backward()
        fit.step()
    assert loss < 0.2 * CHANCE and metrics["row_loss"].shape == (4,) and metrics["accuracy"] == 1
    kernel = Ancestral(Uniform(), proposal=EnergyResampled(LearnedEnergy(model), k=3))
    _, info = sample(ModelDenoiser(denoiser), kernel, make_batch(PACKED, batch.tokens), 2, seed=0)
    assert info.energy_rows == 2 * 4 * 3


def test_wrong_input_is_refused():
    batch, clean = make_batch(MIXED, tokens_of(MIXED)), tokens_of(MIXED, seed=1)
    model, other = energy_of(), Layout(VocabLayout(text_size=4), (Segment("text", "text", (5,)),))
    small = make_batch(other, tokens_of(other))
    cases = [
        ((batch, clean[:2]), r"clean is torch.int64 \(2, 33\): .*\(3, 33\)"),
        ((batch, clean[:, :5]), r"clean is torch.int64 \(3, 5\)"),
        ((batch, clean.float()), "torch.float32"),
        ((batch, None), "clean is NoneType"),
        ((batch, clean + 10**6), "clean reaches"),
        ((small, tokens_of(other)), "vocabulary"),
        ((make_batch(Layout(VOCAB, MIXED.segments, packed=True), batch.tokens), clean), "packs 3 levels"),
    ]
    for arguments, said in cases:
        with pytest.raises(ValueError, match=said):
            model(*arguments)
    timed = energy_of(time_conditioning=True)
    for time, said in ((None, "time is None"), (torch.rand(3, 5), r"time has shape \(3, 5\)")):
        with pytest.raises(ValueError, match=said):
            timed(batch, clean, time)
    for wrong in (model, "model"):
        with pytest.raises(ValueError, match="give a DiscDiffModel"):
            EnergyModel.from_denoiser(wrong)
    with pytest.raises(ValueError, match="no head"):
        EnergyConfig(tie_word_embeddings=False)
    with pytest.raises(ValueError, match="unknown key 'hiden_size'"):
        EnergyConfig(hiden_size=3)
    for negatives in (0, 1.5, True):
        with pytest.raises(ValueError, match="negatives is"):
            NoiseContrastive(make(), negatives=negatives)
    with pytest.raises(ValueError, match="give a DiscDiffModel or a denoiser"):
        NoiseContrastive("model")
    goal = NoiseContrastive(make().train())
    with pytest.raises(ValueError, match="training mode"):
        goal(model, batch, noise_of(batch), torch.rand(3))
    candidates = Candidates(clean[:, None], torch.zeros(3, 1, MIXED.length), batch.free)
    with pytest.raises(ValueError, match="training mode"):
        LearnedEnergy(energy_of().train())(candidates, state_of(batch), torch.rand(3, MIXED.length))
