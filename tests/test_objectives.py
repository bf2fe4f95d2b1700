"""Objectives against brute force: the bound of an exact table, full-vocabulary and causal cross-entropy."""

import itertools

import pytest
import torch
from table_toy import (
    BOTH,
    FREE,
    MIXED,
    NLL,
    ONE,
    PACKED,
    TOY,
    TWO,
    Given,
    Table,
    exhaustive,
    network,
    noise_of,
    rows_of,
)  # fmt: skip

from discdiff.clocks import Priority, Windows
from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.maskers import Bernoulli, FixedCount
from discdiff.noise import Noise
from discdiff.objectives import Autoregressive, Elbo, heads
from discdiff.processes import Absorbing, Interpolating, PerSegment, Uniform, vq_paper
from discdiff.schedules import CosineMD4, Geometric, Linear

# -- the bound ------------------------------------------------------------------------------------------------------------

CHOSEN = torch.tensor([0, 17, 53])
GOALS = {
    "absorbing": (Elbo(time_min=0), 16, 1e-12),
    "cosine": (Elbo(Absorbing(CosineMD4()), time_min=0), 24, 1e-10),
    "uniform": (Elbo(Uniform(), time_min=0), 16, 1e-5),
    "mask_or_replace": (Elbo(vq_paper(), time_min=0), 16, 1e-5),
    "interpolating": (Elbo(Interpolating(gamma=2.0), time_min=0), 12, 1e-3),
    "per_segment": (Elbo(PerSegment({"left": Absorbing(), "right": Uniform()}), time_min=0), 16, 1e-5),
    "priority": (Elbo(clock=Priority(), time_min=0), 24, 1e-8),
    "windows": (Elbo(clock=Windows({"left": (1.0, 0.5), "right": (0.5, 0.0)}), time_min=0), 48, 5e-3),
}


@pytest.mark.parametrize("name", GOALS)
def test_the_mean_over_all_times_and_noises_is_the_nll(name):
    goal, count, tolerance = GOALS[name]
    layout = TWO if name in ("per_segment", "windows") else ONE
    feature = torch.tensor([0.0, 1.0, 2.0, 5.0]).expand(len(CHOSEN), -1)
    start = make_batch(layout, TOY.table[CHOSEN], features={"priority": feature})
    batch, noise, time, weight = exhaustive(goal.process, start, count, goal.clock)
    nats = goal(Table(goal.process), batch, noise, time)[1]["nats"]
    assert float((weight @ nats - NLL[CHOSEN]).abs().max()) < tolerance


def test_maskers_estimate_the_same_bound():
    batch, noise, time, weight = exhaustive(Absorbing(), make_batch(ONE, TOY.table[CHOSEN]), 16)
    nats = Elbo(masker=Bernoulli(), time_min=0)(Table(), batch, noise, time)[1]["nats"]
    assert float((weight @ nats - NLL[CHOSEN]).abs().max()) < 1e-12
    order = torch.tensor(list(itertools.permutations(range(4)))).double().repeat(4, 1)
    time = ((torch.arange(4).double() + 0.5) / 4).repeat_interleave(24)  # each order with each count
    for sequence in CHOSEN.tolist():
        batch = make_batch(ONE, TOY.table[sequence].expand(96, -1))
        nats = Elbo(masker=FixedCount(Linear(), elbo=True), time_min=0)(Table(), batch, Given(order), time)[1]["nats"]
        assert float(nats.mean()) == pytest.approx(float(NLL[sequence]), abs=1e-12)


def test_priority_weighs_by_its_own_rate():
    feature = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    batch = make_batch(ONE, TOY.table[:1], features={"priority": feature})
    f, t = (feature - 2) / 3, torch.tensor([0.37], dtype=torch.float64)
    goal = Elbo(clock=Priority(0.3))
    _, when, weight = goal.corrupt(batch, Noise.seeded(0, batch.valid), t)
    gamma = t - 0.3 * torch.sin(torch.pi * t) * f
    slope = 1 - 0.3 * torch.pi * torch.cos(torch.pi * t) * f
    torch.testing.assert_close(when, gamma)
    torch.testing.assert_close(weight * goal.process.weight(when), slope / gamma)


def test_prior_term_and_row_loss():
    a = float(torch.exp(torch.tensor(-1.0, dtype=torch.float64)))  # what Geometric() leaves of the signal
    given = torch.zeros(5, MIXED.length, dtype=torch.bool)
    given[:, 2], given[1, 6] = True, True
    batch = rows_of(FREE, given=given)
    log = torch.tensor([13.0, 5.0], dtype=torch.float64).log()
    free = torch.tensor([[3, 6], [3, 5], *[[3, 6]] * 3]).double()
    torch.testing.assert_close(Elbo(Absorbing(Geometric())).prior_kl(batch), a * (free * log).sum(1))
    high, low = (a + (1 - a) / torch.tensor([13.0, 5.0]).double(), (1 - a) / torch.tensor([13.0, 5.0]).double())
    kl = log + torch.xlogy(high, high) + torch.tensor([12.0, 4.0]).double() * torch.xlogy(low, low)
    torch.testing.assert_close(Elbo(Uniform(Geometric())).prior_kl(batch), (free * kl).sum(1))
    mixed = Elbo(PerSegment({"words": Absorbing(), "sound": Uniform(Geometric())}))
    torch.testing.assert_close(mixed.prior_kl(batch), free[:, 1] * kl[1])
    loss, metrics = mixed(network(FREE.vocab), batch, *noise_of(batch))
    torch.testing.assert_close(metrics["row_loss"] * batch.layout.length, metrics["nats"])
    torch.testing.assert_close(loss, (metrics["nats"] - mixed.prior_kl(batch)).mean() / batch.layout.length)
    assert not Elbo().prior_kl(batch).any() and not Elbo(masker=Bernoulli(Geometric())).prior_kl(batch).any()


# -- against a full vocabulary ----------------------------------------------------------------------------------------


def by_hand(model, batch, tokens, weight):
    """Sum of weight * full-vocabulary cross-entropy over masked free positions, illegal ids and the mask at -inf."""
    noisy, vocab, total = batch._replace(tokens=tokens), batch.layout.vocab, 0.0
    hidden = model.hidden(noisy)
    for row, column in (batch.free & (tokens == vocab.mask)).nonzero().tolist():
        site = torch.tensor([row * batch.layout.length + column])
        logits = model.select(hidden, noisy, site) @ model.head.weight.T
        level = int(batch.layout.tables().depth[column])
        first, count = vocab.range("sound", level) if column >= 6 else (0, 12)
        legal = {*range(first, first + count), *(() if column >= 6 else (vocab.special("EOS"),))} - {vocab.mask}
        illegal = torch.tensor([i not in legal for i in range(vocab.total)])
        logits = logits.masked_fill(illegal, -torch.inf)
        total = total + weight[row, column] * torch.nn.functional.cross_entropy(logits, batch.tokens[row, column, None])
    return total / batch.tokens.numel()


@pytest.mark.parametrize("layout", [MIXED, PACKED], ids=["flat", "packed"])
@pytest.mark.parametrize("masker", [None, FixedCount(Linear(), elbo=True)], ids=["process", "masker"])
def test_loss_and_gradients_are_those_of_the_full_vocabulary(layout, masker):
    model, goal = network(), Elbo(masker=masker, time_min=0)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    valid = torch.ones(5, layout.length, dtype=torch.bool)
    valid[2, 8:], valid[4, 10:] = False, False
    batch = rows_of(layout, valid=valid, given=torch.eye(5, layout.length, dtype=torch.bool).flip(1))
    noise, time = noise_of(batch)
    tokens, _, weight = goal.corrupt(batch, noise, time)
    if masker is None:
        weight = weight / time[:, None]
    weights = list(model.parameters())
    loss = goal(model, batch, noise, time)[0]
    expected = by_hand(model, batch, tokens, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(x, weights, allow_unused=True) for x in (loss, expected))
    for (name, _), a, b in zip(model.named_parameters(), found, wanted, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert float(found[0].abs().max()) > 1e-3


@pytest.mark.parametrize("process", [Uniform(), vq_paper(), BOTH], ids=repr)
def test_chunks_change_nothing(process, monkeypatch):
    model, batch = network(FREE.vocab), rows_of(FREE)
    results = []
    monkeypatch.setattr(heads, "_LEAST_ROWS", 1)
    for size in (heads._CACHE_BYTES, 8 * 13 * 7, 1):
        monkeypatch.setattr(heads, "_CACHE_BYTES", size)
        with torch.inference_mode():
            unlearned = Elbo(process)(model, batch, *noise_of(batch))[0]
        loss, metrics = Elbo(process)(model, batch, *noise_of(batch))
        results.append(
            (loss, unlearned, metrics["nats"], *torch.autograd.grad(loss, (model.embed.weight, model.norm.weight)))
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_predictions_live_chunk_by_chunk():
    """What a loss keeps for its backward pass that is as wide as the alphabet has never more rows than a chunk."""
    vocab = VocabLayout(3000)
    layout, kept = Layout(vocab, (Segment("words", "text", (200,)),)), {}
    model = network(vocab)
    batch = make_batch(layout, torch.randint(3000, (2, 200), generator=torch.Generator().manual_seed(0)))

    def pack(saved):
        kept[saved.data_ptr()] = tuple(saved.shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        Elbo(vq_paper())(model, batch, *noise_of(batch))[0].backward()
    assert model.embed.weight.grad.abs().max() > 0
    rows = {shape[0] for shape in kept.values() if len(shape) == 2 and shape[1] >= 3000}
    assert rows and 8 * 3000 * max(rows) <= heads._CACHE_BYTES


# -- left to right ----------------------------------------------------------------------------------------------------

BOS = Segment("bos", "special", (1,), noised=False)
CAUSAL = Layout(VocabLayout(3), (BOS, Segment("words", "text", (4,))), "causal")


def sentences():
    tokens = torch.cat([torch.full((81, 1), CAUSAL.vocab.special("BOS")), TOY.table], 1)
    return make_batch(CAUSAL, tokens)


def test_autoregressive_is_causal_cross_entropy():
    model, batch = network(CAUSAL.vocab), sentences()
    loss, metrics = Autoregressive()(model, batch, *noise_of(batch))
    hidden = model(batch=batch).hidden
    logits = hidden[:, :-1] @ model.head.weight[:3].T
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), TOY.table, reduction="none").sum(1)
    torch.testing.assert_close(metrics["nats"], nats.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(metrics["row_loss"], nats.detach() / 5)
    torch.testing.assert_close(loss, nats.mean() / 5)
    assert float((-metrics["nats"]).exp().sum()) == pytest.approx(1, abs=1e-12)  # a law over all 81 sequences
    given = torch.zeros(81, 5, dtype=torch.bool)
    given[:, 1:3] = True
    part = Autoregressive()(model, batch._replace(given=given), *noise_of(batch))[1]["nats"]
    assert torch.allclose((-part).exp().view(9, 9).sum(1), torch.ones(9).double())  # over the last two, for each start
    same = torch.autograd.grad(loss, model.embed.weight)[0], torch.autograd.grad(nats.mean() / 5, model.embed.weight)[0]
    torch.testing.assert_close(*same, rtol=1e-10, atol=1e-13)


def test_autoregressive_refuses_other_layouts():
    words, model = CAUSAL.segments[1], network(CAUSAL.vocab)
    for segments, more in (((BOS, words), {}), ((words,), {"attention": "causal"}), ((words, BOS), {"attention": "causal"}),
                           ((BOS, words), {"attention": "causal", "packed": True})):  # fmt: skip
        batch = rows_of(Layout(CAUSAL.vocab, segments, **more))
        with pytest.raises(ValueError, match="attention='causal', packed=False"):
            Autoregressive()(model, batch, *noise_of(batch))
