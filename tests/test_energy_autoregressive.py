"""Autoregressive energies: their partition function by enumeration, and the conditionals of our own causal networks."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from energy_toy import MASK, TOY, every_candidate, exact_law, random_law, state_of, toy_log_probs

import discdiff.energy.autoregressive as module
from discdiff.config import to_dict
from discdiff.energy.autoregressive import AutoregressiveEnergy, model_log_probs
from discdiff.energy.base import Candidates, energies
from discdiff.energy.resampled import EnergyResampled
from discdiff.kernels import Ancestral
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.models import DiscDiffConfig, DiscDiffModel
from discdiff.noise import Noise
from discdiff.objectives import Autoregressive
from discdiff.sampling import sample
from discdiff.testing import noise_floor, total_variation


@pytest.mark.parametrize("law", [exact_law, random_law])
def test_partition_function_of_every_masked_state(law):
    """T13: Z = 1 for coAR and P(observed) for AR, whatever the proposal; with the sign turned round it is neither."""
    for size in range(1, 5):
        for unknown in itertools.combinations(range(4), size):
            state, candidates = every_candidate(list(unknown), law)
            proposed = candidates.log_prob.sum(-1)
            observed = torch.tensor([float(TOY.p[_agree(row)].sum()) for row in state.tokens], dtype=torch.float64)
            co, full = (
                energies(AutoregressiveEnergy(toy_log_probs, c), candidates, state, state.time) for c in (True, False)
            )
            assert float((proposed - co).exp().sum(1).sub(1).abs().max()) < 1e-12
            assert float(((proposed - full).exp().sum(1) / observed - 1).abs().max()) < 1e-12
            if len(unknown) == 4:  # nothing is known: the corrected law is the joint itself
                assert torch.allclose((proposed - full).exp()[0], TOY.p, rtol=0, atol=1e-14) and torch.equal(co, full)
            else:
                if unknown != (3,):  # there the exact proposal is the autoregressive law
                    assert float((proposed + co).exp().sum(1).sub(1).abs().max()) > 0.01
                apart = float((co - full).std(1).max())
                known_first = unknown[0] > max(set(range(4)) - set(unknown))
                assert apart < 1e-12 if known_first else apart > 0.01, "only AR hears the known tokens behind"


def _agree(row):
    return ((TOY.table == row) | (row == MASK)).all(1)


def test_one_step_with_many_candidates_reaches_the_joint():
    found = {}
    for k in (1, 4, 64):
        kernel = Ancestral(proposal=EnergyResampled(AutoregressiveEnergy(toy_log_probs), k))
        state, _ = sample(TOY.denoiser(kernel.process), kernel, TOY.batch(4000), 1, seed=3)
        found[k] = total_variation(TOY.law(state.tokens), TOY.p) / noise_floor(TOY.p, 4000)
    assert found[1] > 1.5 * found[4] > 3 * found[64] and found[64] < 1.6


def test_positions_whose_clock_has_not_begun_are_absent():
    tokens = torch.tensor([[0, 1, MASK, 2], [2, 1, MASK, MASK]])
    batch = make_batch(TOY.layout, torch.tensor([[0, MASK, MASK, MASK], [2, MASK, MASK, MASK]]))
    drawn = torch.tensor([[False, True, False, True], [False, True, False, False]])
    log_prob = torch.where(drawn, -1.5, 0.0).double()[:, None].repeat(1, 2, 1)
    candidates, seen = Candidates(tokens[:, None].repeat(1, 2, 1), log_prob, drawn), []

    def log_probs(batch):
        seen.append(batch)
        return torch.tensor([-1.0, -2.0, -4.0, -8.0]).expand(batch.tokens.shape)

    energy = AutoregressiveEnergy(log_probs)
    assert energy(candidates, state_of(batch), batch.tokens.double()).tolist() == [[7.0, 7.0], [0.5, 0.5]]
    assert torch.equal(seen[0].valid, (tokens != MASK).repeat_interleave(2, 0)) and not seen[0].unrestricted
    full = replace(energy, carry_over=False)(candidates, state_of(batch), batch.tokens.double())
    assert full.tolist() == [[8.0, 8.0], [1.5, 1.5]]


def test_a_first_token_without_a_conditional_keeps_the_proposals_law():
    state, candidates = every_candidate([0, 1, 2, 3], exact_law)

    def log_probs(batch):
        return torch.cat([torch.zeros(len(batch.tokens), 1), toy_log_probs(batch)[:, 1:]], 1)

    proposed = candidates.log_prob.sum(-1)
    corrected = (proposed - AutoregressiveEnergy(log_probs)(candidates, state, state.time)).exp()[0].view(3, 3, 3, 3)
    assert float(corrected.sum() - 1) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(corrected.sum((1, 2, 3)), candidates.log_prob[0, ::27, 0].exp())
    certain = AutoregressiveEnergy(lambda batch: toy_log_probs(batch).index_fill(1, torch.tensor([2]), 0.0))
    dropped = certain(candidates, state, state.time) - AutoregressiveEnergy(toy_log_probs)(
        candidates, state, state.time
    )
    found = toy_log_probs(state.batch._replace(tokens=candidates.tokens[0]))[:, 2]
    assert torch.allclose(dropped[0], found)  # elsewhere 0 is certainty


TEXT = Layout(
    VocabLayout(20),
    (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (9,), extras=("EOS",))),
)


def own_model(layout=TEXT, dtype=torch.float32):
    causal = replace(layout, attention="causal")
    config = DiscDiffConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        initializer_range=0.3,
        vocab=json.loads(layout.vocab.to_json()),
        layout=to_dict(causal),
    )
    return DiscDiffModel.seeded(config, 0, dtype).eval(), causal


def rows_of(layout, rows=7, seed=0):
    """Legal random rows, EOS included, and a BOS in front."""
    generator, vocab = torch.Generator().manual_seed(seed), layout.vocab
    columns = []
    for segment in layout.segments:
        for slot in range(segment.slots * layout.depth(segment)):
            if segment.modality == "special":
                columns.append(torch.full((rows,), vocab.special("BOS")))
                continue
            first, size = vocab.range(segment.modality, slot % layout.depth(segment))
            symbol = torch.randint(size + len(segment.extras), (rows,), generator=generator)
            extra = vocab.special(segment.extras[0]) if segment.extras else -1
            columns.append(torch.where(symbol < size, first + symbol, extra))
    return torch.stack(columns, 1)


def test_own_model_gives_the_nats_it_is_trained_on(monkeypatch):
    model, causal = own_model()
    batch = make_batch(causal, rows_of(TEXT))
    found = model_log_probs(model)(batch)
    nats = Autoregressive()(model, batch, Noise.seeded(0, batch.valid), None)[1]["nats"]
    assert found.dtype == torch.float64 and torch.allclose(-found.sum(1), nats, atol=1e-5)
    legal = [*range(20), TEXT.vocab.special("EOS")]
    at = model(batch=batch).hidden[:, :-1] @ model.head.weight[legal].T
    place = torch.where(batch.tokens[:, 1:] < 20, batch.tokens[:, 1:], 20)
    direct = at.log_softmax(-1).gather(-1, place[..., None])[..., 0]
    assert torch.allclose(found[:, 1:], direct.double(), atol=1e-5)
    assert bool((found[:, 0] == 0).all()) and bool((found[:, 1:] < 0).all())
    monkeypatch.setattr(module, "_POSITIONS", 25)  # two rows at a time
    assert torch.allclose(model_log_probs(model)(batch), found, atol=1e-6)
    assert torch.allclose(model_log_probs(model)(batch._replace(layout=TEXT)), found, atol=1e-6)


def test_own_model_with_padding_prompts_and_masks():
    model, causal = own_model()
    tokens, valid = rows_of(TEXT), torch.ones(7, 10, dtype=torch.bool)
    valid[2, 6:] = False
    given = torch.zeros_like(valid)
    given[:, 3] = True
    tokens[0, 3] = TEXT.vocab.special("SEP")  # illegal to draw, so nothing is known of it
    tokens[1, 9] = TEXT.vocab.mask
    found = model_log_probs(model)(make_batch(causal, tokens, valid=valid, given=given))
    assert bool((found[~valid] == 0).all()) and found[0, 3] == 0 and found[1, 9] == 0
    assert bool((found[3:, 3] < 0).all()), "given tokens have their conditionals, for the full form"
    free = make_batch(causal, tokens[2:3], valid=valid[2:3])
    nats = Autoregressive()(model, free, Noise.seeded(0, free.valid), None)[1]["nats"]
    assert torch.allclose(found[2].sum(), -nats[0], atol=1e-5)


def test_image_codes_in_a_mixed_layout():
    """The corrected law of three image codes beside a caption, by enumeration, is the causal model's own conditional."""
    vocab = VocabLayout(6, (Modality("image", 4),))
    layout = Layout(
        vocab,
        (
            Segment("bos", "special", (1,), noised=False),
            Segment("text", "text", (2,), extras=("EOS",)),
            Segment("image", "image", (2, 2)),
        ),
    )
    model, causal = own_model(layout, torch.float64)
    tokens = rows_of(layout, 3)
    unknown = [4, 5, 6]
    fill = torch.cartesian_prod(*[torch.arange(4)] * 3) + vocab.range("image")[0]
    whole = tokens[:, None].repeat(1, 64, 1)
    whole[..., unknown] = fill
    tokens[:, unknown] = vocab.mask
    state = state_of(make_batch(layout, tokens))
    drawn = tokens == vocab.mask
    proposed = torch.where(drawn[:, None], torch.tensor(0.25).double().log(), 0.0).expand(whole.shape)
    candidates = Candidates(whole, proposed, drawn)
    co = energies(AutoregressiveEnergy(model_log_probs(model)), candidates, state, state.time)
    full = energies(AutoregressiveEnergy(model_log_probs(model), False), candidates, state, state.time)
    assert torch.allclose((proposed.sum(-1) - co).exp().sum(1), torch.ones(3, dtype=torch.float64), atol=1e-12)
    rows = make_batch(causal, whole.flatten(0, 1))
    nats = Autoregressive()(model, rows, Noise.seeded(0, rows.valid), None)[1]["nats"].view(3, 64)
    assert torch.allclose(proposed.sum(-1) - full, -nats, atol=1e-12)
    assert torch.allclose((proposed.sum(-1) - co).exp(), (-nats).softmax(1), atol=1e-12)
    assert float((full - co).std(1).max()) < 1e-12 < float(co.std(1).min()), "what is known lies before"


def test_what_is_not_noised_and_what_comes_first():
    """Prompts count for nobody; a row that starts with a drawn token keeps the proposal's law there."""
    batch = make_batch(TEXT, rows_of(TEXT))
    candidates = Candidates(batch.tokens[:, None], torch.zeros(7, 1, 10).double(), batch.free)
    ones = AutoregressiveEnergy(lambda b: torch.full(b.tokens.shape, -1.0), carry_over=False)
    assert bool((ones(candidates, state_of(batch), batch.tokens.double()) == 9).all()), "not the BOS"
    bare = Layout(TEXT.vocab, TEXT.segments[1:])
    model, causal = own_model(bare)
    found = model_log_probs(model)(make_batch(causal, rows_of(bare)))
    assert bool((found[:, 0] == 0).all()) and bool((found[:, 1:] < 0).all())


def test_bad_input():
    model, causal = own_model()
    batch = make_batch(causal, rows_of(TEXT))
    state = state_of(batch)
    candidates = Candidates(batch.tokens[:, None], torch.zeros(7, 1, 10).double(), batch.free)
    wide = own_model(replace(TEXT, segments=(*TEXT.segments, Segment("more", "text", (1,)))))[0]
    bert = own_model()[0]
    bert.config.layout = to_dict(TEXT)
    nameless = own_model()[0]
    nameless.config.layout = None
    for make, message in (
        (lambda: AutoregressiveEnergy(3), "log_probs is 3"),
        (
            lambda: AutoregressiveEnergy(lambda b: torch.zeros(7))(candidates, state, state.time),
            r"\(7,\) for tokens \(7, 10\)",
        ),
        (lambda: AutoregressiveEnergy(lambda b: 1.0)(candidates, state, state.time), "float for tokens"),
        (lambda: energies(AutoregressiveEnergy(lambda b: b.tokens * torch.nan), candidates, state, state.time), "nan"),
        (lambda: model_log_probs(bert), "attention='full'"),
        (lambda: model_log_probs(nameless), "holds no layout"),
        (lambda: model_log_probs(model, replace(causal, packed=True)), "packed=True"),
        (lambda: model_log_probs(wide)(batch), "nothing but attention"),
        (lambda: model_log_probs(own_model()[0].train())(batch), "eval"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    impossible = AutoregressiveEnergy(lambda b: torch.full(b.tokens.shape, -torch.inf))
    assert bool((energies(impossible, candidates, state, state.time) == 9e4).all()), "log 0 is finite, and large"
    given = model_log_probs(nameless, causal)(batch)
    assert torch.equal(given, model_log_probs(model)(batch))
