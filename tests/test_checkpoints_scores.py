"""What SEDD, UDLM and Duo output, as predictions of the clean token: against laws enumerated over the toy joint."""

import math

import pytest
import torch
from foreign_toy import HEADS, LENGTH, MASK, ROWS, bare, dit_config, dit_state, write
from restated_dit import dit, sedd_log_score

from discdiff import Absorbing, Ancestral, FunctionDenoiser, Linear, ModelDenoiser, Step, Uniform, make_batch, sample
from discdiff.checkpoints import load_foreign
from discdiff.denoisers.log_score import LogScore
from discdiff.layout import Layout, Segment
from discdiff.schedules import Geometric
from discdiff.testing import noise_floor, total_variation, toy
from discdiff.types import State

JOINT = toy()


def score_by_hand(x, t, process, extra):
    """log p_t(y) / p_t(x) of every single-site change, (rows, length, 3), by summing over all 81 clean sequences."""
    alpha, table = process.schedule.alpha(torch.tensor(t, dtype=torch.float64)), JOINT.table
    is_uniform = isinstance(process, Uniform)

    def noisy(z):  # p_t(z) of rows z, mask = 3
        same = (z[:, None] == table[None]).double()
        each = alpha * same + ((1 - alpha) / 3 if is_uniform else (1 - alpha) * (z[:, None] == 3).double())
        return (each.prod(-1) * JOINT.p).sum(-1)

    here, out = noisy(x), torch.zeros(*x.shape, 3, dtype=torch.float64)
    for i in range(x.shape[1]):
        for y in range(3):
            changed = x.clone()
            changed[:, i] = y
            out[:, i, y] = (noisy(changed) / here).log()
    return out + extra


def rows_of(process, count=60):
    highest = 3 if isinstance(process, Uniform) else 4
    return torch.randint(0, highest, (count, 4), generator=torch.Generator().manual_seed(0))


def state_of(symbols):
    batch = JOINT.batch(len(symbols))
    ids = torch.where(symbols == 3, batch.layout.vocab.mask, symbols)
    time = torch.zeros(ids.shape, dtype=torch.float64)
    no = torch.zeros_like(batch.given)
    return State(ids, no, batch.valid, no, time, torch.arange(len(ids)), batch._replace(tokens=ids), {}, {})


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_absorbing_log_scores_are_logits_of_x0(t):
    process = Absorbing(Linear(end=1e-3))
    x = rows_of(process)
    exact = JOINT.posterior(x, torch.full(x.shape, t, dtype=torch.float64), process)
    z = score_by_hand(x, t, process, 1.7)  # any constant, as -log(e^sigma - 1) - log(V - 1) is one
    masked = x == 3
    torch.testing.assert_close(z.log_softmax(-1)[masked], exact[masked], rtol=0, atol=1e-9)
    read = process.from_score(torch.cat([z, torch.zeros_like(z[..., :1])], -1), t)
    torch.testing.assert_close(read[masked], exact[masked], rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [Linear(end=1e-3), Geometric(1e-3, 5.0)])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scaled", [False, True])
def test_uniform_log_scores_become_the_cavity_prediction(t, schedule, scaled):
    process = Uniform(schedule)
    x, time = rows_of(process), torch.full((60, 4), t, dtype=torch.float64)
    sigma = -math.log(float(schedule.alpha(t)))
    z = score_by_hand(x, t, process, math.log(math.expm1(sigma)) + math.log(2) if scaled else 0.0)
    z = z.scatter(-1, x[..., None], 123.0)  # the network's own entry means nothing
    reader = LogScore(FunctionDenoiser(lambda state, step: z.clone(), kind="cavity"), process, scaled)
    found = reader(state_of(x), Step(0, time, time)).log_probs(torch.arange(x.numel())).view(*x.shape, 3)
    exact = {kind: JOINT.posterior(x, time, process, kind) for kind in ("cavity", "own")}
    torch.testing.assert_close(found.exp(), exact["cavity"].exp(), rtol=0, atol=1e-9)
    torch.testing.assert_close(process.own(found, x, time).exp(), exact["own"].exp(), rtol=0, atol=1e-9)
    assert (found.exp() - exact["own"].exp()).abs().max() > 0.01 and (
        z.softmax(-1) - exact["cavity"].exp()
    ).abs().max() > 0.1


def test_samples_of_a_score_network_follow_the_joint():
    process = Uniform(Geometric(1e-3, 5.0))

    def network(state, step):  # the rows are among 81: each is worked out once
        number = (state.batch.symbols(state.tokens) * torch.tensor([27, 9, 3, 1])).sum(-1)
        t = float(step.t.max())
        assert bool((step.t == t).all())
        return score_by_hand(JOINT.table, t, process, 0.0)[number]

    law = {}
    for name, reader in {
        "read": LogScore(FunctionDenoiser(network, kind="cavity", needs_time=True), process),
        "raw": FunctionDenoiser(network, kind="cavity", needs_time=True),
    }.items():
        state, _ = sample(reader, Ancestral(process), JOINT.batch(8000), 48, seed=0)
        law[name] = total_variation(JOINT.law(state.tokens), JOINT.p) / noise_floor(JOINT.p, 8000)
    assert law["read"] < 1.6 and law["raw"] > 2, law


def test_a_score_at_a_mask_needs_no_reader():
    with pytest.raises(ValueError, match="logits already"):
        LogScore(JOINT.denoiser(Absorbing()), Absorbing())
    with pytest.raises(ValueError, match="alpha.1. above 0"):
        LogScore(JOINT.denoiser(Uniform()), Uniform())


def loaded(member, where):
    state = dit_state(member)
    model = load_foreign(write(where, dit_config(member), state))
    batch = make_batch(Layout(model.vocab, (Segment("text", "text", (LENGTH,)),)), ids_of(member))
    time = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[:, None].expand(3, LENGTH)
    no = torch.zeros_like(batch.given)
    return model, bare(state), State(batch.tokens, no, batch.valid, no, time, torch.arange(3), batch, {}, {}), time


def ids_of(member):
    ids = torch.randint(0, ROWS[member], (3, LENGTH), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(LENGTH) % 3 == 0, MASK, ids) if member == "sedd" else ids


def test_sedd_absorbing_from_its_files(tmp_path):
    model, weights, state, time = loaded("sedd", tmp_path)
    sigma = -torch.log1p(-(1 - 1e-3) * time[:, 0])
    score = sedd_log_score(weights, state.tokens, sigma, HEADS, scale_by_sigma=True)
    index = (state.tokens == MASK).flatten().nonzero()[:, 0]
    found = ModelDenoiser(model, kind=model.config.prediction)(state, Step(0, time, time)).log_probs(index)
    expected = score.view(-1, 50)[index, :MASK].double()  # s_y of the clean tokens, up to the sum
    torch.testing.assert_close(found[:, :MASK].exp().double(), expected.softmax(-1), rtol=0, atol=1e-6)
    assert found[:, MASK:].max() == -torch.inf


def test_sedd_uniform_from_its_files(tmp_path):
    model, weights, state, time = loaded("sedd_uniform", tmp_path)
    sigma = 1e-3 ** (1 - time[:, 0]) * 5.0 ** time[:, 0]
    score = sedd_log_score(weights, state.tokens, sigma, HEADS, scale_by_sigma=False).double()
    with pytest.raises(ValueError, match="kind 'score'"):
        ModelDenoiser(model, kind=model.config.prediction)  # nothing takes scores for logits by mistake
    process = Uniform(Geometric(1e-3, 5.0))
    inner = ModelDenoiser(model, kind="cavity")
    found = LogScore(inner, process, model.config.scale_by_sigma)(state, Step(0, time, time)).log_probs(
        torch.arange(36)
    )
    q, alpha = score.softmax(-1), torch.exp(-sigma)[:, None, None]
    x0 = ((q - (1 - alpha) / 49) / alpha).clamp(min=0)  # q_t = alpha x0 + (1 - alpha) / K, solved for x0
    expected = (x0 / x0.sum(-1, keepdim=True)).view(36, 49)
    torch.testing.assert_close(found.exp().double(), expected, rtol=0, atol=1e-4)
    assert (expected - torch.softmax(score, -1).view(36, 49)).abs().max() > 0.05


@pytest.mark.parametrize("member", ["udlm", "duo"])
def test_udlm_and_duo_take_the_plug_in_step_of_their_papers(member, tmp_path):
    model, weights, state, time = loaded(member, tmp_path)
    size, x = ROWS[member], state.tokens
    schedule = Linear(end=1e-3)
    label = torch.full((3,), 3) if member == "udlm" else None
    hat = dit(weights, x, -torch.log(schedule.alpha(time[:, 0])), HEADS, label).double().softmax(-1)
    late, early = schedule.alpha(time[:, :1])[..., None], schedule.alpha(time[:, :1] * 0.6)[..., None]
    step, here = late / early, torch.nn.functional.one_hot(x, size).double()
    at = (hat * here).sum(-1, keepdim=True)
    top = late * size * hat * here + (step - late) * here + (early - late) * hat + (1 - step) * (1 - early) / size
    expected = top / (late * size * at + 1 - late)  # UDLM eq. 18 of the notes: the plug-in posterior
    process = Uniform(schedule)
    inner = ModelDenoiser(model, kind=model.config.prediction)
    cavity = inner(state, Step(0, time, time)).log_probs(torch.arange(36)).view(3, LENGTH, size).double()
    assert inner.kind == "cavity"
    found = process.log_posterior(process.own(cavity, x, time), x, time, time * 0.6).exp()[..., :size]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (process.log_posterior(cavity, x, time, time * 0.6).exp()[..., :size] - expected).abs().max() > 0.005
