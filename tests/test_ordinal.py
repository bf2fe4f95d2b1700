"""Codes that are numbers: the loss that knows it, and how often the state in which a run starts is trained."""

import math

import pytest
import torch
from table_toy import rows_of
from values_toy import CHUNK, DIM, EVEN, LAYOUT, LEVELS, VALUES, VOCAB, K, network

from discdiff.layout import Layout, Segment, make_batch
from discdiff.maskers import Bernoulli, DepthSuffix, FixedCount, FullyMasked, Independent, PerBlock, Span
from discdiff.noise import Noise
from discdiff.objectives import BlockElbo, Elbo, Ordinal, heads, ordinal
from discdiff.processes import Absorbing, PerSegment, Uniform
from discdiff.schedules import Linear
from discdiff.values import CodeValues


def run(goal, model, batch, seed=0):
    return goal(model, batch, Noise.seeded(seed, batch.valid), torch.linspace(0.2, 0.9, len(batch.tokens)).double())


# -- the loss --------------------------------------------------------------------------------------------------------------


def by_hand(goal, model, batch, how, seed=0):
    """The loss written out over full tables, one masked position at a time."""
    noise, time = Noise.seeded(seed, batch.valid), torch.linspace(0.2, 0.9, len(batch.tokens)).double()
    tokens, when, weight = goal.corrupt(batch, noise, time)
    weight = weight if goal.masker else weight * goal.process.weight(when)
    noisy = batch._replace(tokens=tokens)
    hidden, total = model(batch=noisy).hidden, 0.0
    for row, column in (batch.free & (tokens == VOCAB.mask)).nonzero().tolist():
        name = "image" if column < 5 else "action"
        first, count = VOCAB.range(name)
        log_p = (hidden[row, column] @ model.head.weight[first : first + count].T).log_softmax(-1)
        true = int(batch.tokens[row, column]) - first
        v = LEVELS[(column - 5) % DIM]
        q = torch.nn.functional.one_hot(torch.tensor(true), K).double()
        if name == "action" and how.width:
            q = torch.exp(-((v - v[true]) ** 2) / (2 * how.width**2))
            q = q / q.sum()
        loss = -(q * log_p).sum()
        if name == "action":
            off = (log_p.exp() * v).sum() - v[true]
            loss = loss + how.weight * (off.abs() if how.distance == "absolute" else off**2)
        total = total + weight[row, column] * loss
    return total / batch.tokens.numel()


GOALS = {
    "process": (Elbo(time_min=0), Ordinal(VALUES, 0.2)),
    "maskgit": (Elbo(masker=FixedCount(), time_min=0), Ordinal(VALUES, 0.0, 0.3)),
    "bound": (Elbo(masker=FixedCount(Linear(), elbo=True), time_min=0), Ordinal(VALUES, 0.1, 2.0, "squared")),
    "independent": (Elbo(masker=Independent(0.3), time_min=0), Ordinal(VALUES, 0.1, 0.5)),
    "full": (Elbo(masker=FullyMasked(Independent(), 0.5, ("chunk",), 2.0), time_min=0), Ordinal(VALUES, 0.1, 0.5)),
}


@pytest.mark.parametrize("name", GOALS)
def test_loss_and_gradients_by_hand(name, monkeypatch):
    goal, how = GOALS[name]
    model, batch = network(), rows_of(LAYOUT, given=torch.eye(5, LAYOUT.length, dtype=torch.bool).flip(1))
    whole = Elbo(**{**vars(goal), "ordinal": how})
    loss, metrics = run(whole, model, batch)
    expected, plain = by_hand(goal, model, batch, how), run(goal, model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(metrics, plain[1], rtol=1e-12, atol=1e-12)  # the bound stays the bound
    weights = (model.embed.weight, model.norm.weight)
    wanted = torch.autograd.grad(expected, weights)
    for a, b in zip(torch.autograd.grad(loss, weights), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert abs(float(loss.detach() - plain[0].detach())) > 1e-3
    monkeypatch.setattr(heads, "_LEAST_ROWS", 1)
    monkeypatch.setattr(heads, "_CACHE_BYTES", 8 * K * 3)  # three rows at a time
    again = run(whole, model, batch)[0]
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-13)
    for a, b in zip(torch.autograd.grad(again, weights), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("width", [1e-3, 1e-60, 5e-324])
def test_a_width_of_nothing_is_hard_cross_entropy(width):
    model, batch, weights = network(), rows_of(LAYOUT), []
    for goal in (Elbo(), Elbo(ordinal=Ordinal(VALUES, width))):
        loss = run(goal, model, batch)[0]
        weights.append((loss, *torch.autograd.grad(loss, (model.embed.weight, model.norm.weight))))
    for hard, soft in zip(*weights, strict=True):
        torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-14)
    single = network().float()
    assert math.isfinite(float(run(Elbo(ordinal=Ordinal(VALUES, width)), single, batch)[0].detach()))


def test_other_modalities_keep_their_loss_bit_for_bit():
    model, start = network().float(), rows_of(LAYOUT)
    given = torch.zeros(start.tokens.shape, dtype=torch.bool)
    given[:, LAYOUT.columns("chunk")] = True
    batch = start._replace(given=given)
    a, b = (run(goal, model, batch)[0] for goal in (Elbo(), Elbo(ordinal=Ordinal(VALUES, 0.2, 1.0))))
    assert torch.equal(a.double(), b.double()) and float(a.detach()) > 0


@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_the_distance_carries_gradient_to_the_logits(distance):
    """Autograd against central differences and the closed form p_c (v_c - m) d'(m - v*), with cross-entropy taken away."""
    part = Layout(VOCAB, (Segment("chunk", "action", (2, DIM)),))
    batch = rows_of(part, 3)
    flat = torch.ones(batch.tokens.shape, dtype=torch.float64)
    index, eye = torch.arange(12), torch.eye(K, dtype=torch.float64)
    logits = torch.randn(12, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def distances(x):
        alphabet = part.drawn[0]
        both = ordinal(batch, flat, Ordinal(VALUES, 0.0, 1.0, distance))(x, eye, index, alphabet)[0]
        return both - heads.cross_entropy(batch, flat)(x, eye, index, alphabet)[0]

    (found,) = torch.autograd.grad(distances(logits), logits)
    v, p = LEVELS[index % DIM], logits.detach().softmax(-1)
    mean, true = (p * v).sum(-1, keepdim=True), v.gather(1, batch.symbols(batch.tokens).view(-1, 1))
    slope = (mean - true).sign() if distance == "absolute" else 2 * (mean - true)
    torch.testing.assert_close(found, p * (v - mean) * slope, rtol=1e-9, atol=1e-12)
    assert float(found.abs().amax(1).min()) > 1e-3
    for row, column in ((0, 0), (5, 7), (11, 15)):
        step = torch.zeros_like(p)
        step[row, column] = 1e-5
        with torch.no_grad():
            slope = (distances(logits + step) - distances(logits - step)) / 2e-5
        assert float(slope) == pytest.approx(float(found[row, column]), abs=1e-8)


def test_blocks_and_half_precision():
    blocks = Layout(VOCAB, (Segment("chunk", "action", (CHUNK, DIM)),), "block_causal", block=4)
    goal = BlockElbo(Elbo(ordinal=Ordinal(VALUES, 0.1, 0.5)))
    model = network(blocks)
    loss, metrics = run(goal, model, rows_of(blocks))
    plain = run(BlockElbo(), model, rows_of(blocks))
    torch.testing.assert_close(metrics["nats"], plain[1]["nats"], rtol=1e-12, atol=0)
    assert float((loss - plain[0]).abs().detach()) > 1e-3
    half = network().bfloat16()
    loss = run(Elbo(ordinal=Ordinal(VALUES, 0.1, 0.5)), half, rows_of(LAYOUT))[0]
    loss.backward()
    assert torch.isfinite(half.embed.weight.grad).all() and half.embed.weight.grad.any()


# -- the state in which a run starts -----------------------------------------------------------------------------------------

FULL = {
    "bernoulli": (Bernoulli(), 1 / 33),
    "block": (PerBlock(32), 1 / 33),
    "maskgit": (FixedCount(), 2 / math.pi * math.acos(1 - 1 / 32)),
    "depth": (DepthSuffix(), 2 / math.pi * math.acos(1 - 1 / 32)),
    "any order": (FixedCount(Linear(), elbo=True), 1 / 32),
    "independent": (Independent(), 1 / 32),
    "span": (Span(), 1 / 32),
}


@pytest.mark.parametrize("name", FULL)
def test_how_often_all_of_32_tokens_are_hidden(name):
    masker, expected = FULL[name]
    layout, rows = Layout(VOCAB, (Segment("chunk", "action", (32,)),)), 8000
    batch = make_batch(layout, layout.tables().first.expand(rows, -1))
    noise, time = Noise.seeded(3, batch.valid), (torch.arange(rows).double() + 0.5) / rows
    hidden, weight = masker(batch, noise, time)
    share = float(hidden.all(1).double().mean())
    assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / rows))
    full = FullyMasked(masker, 0.25, weight=1.5)
    more, heavier = full(batch, noise, time)
    wanted = 0.25 + 0.75 * expected
    assert float(more.all(1).double().mean()) == pytest.approx(wanted, abs=5 * math.sqrt(wanted * (1 - wanted) / rows))
    whole = full.whole(batch, noise)
    assert torch.equal(more, hidden | whole) and float(whole.double().mean()) == pytest.approx(0.25, abs=0.025)
    assert (heavier[whole] == 1.5).all() and torch.equal(heavier[~whole], weight[~whole])
    when = Elbo(masker=full, time_min=0).corrupt(batch, noise, time)[1]
    assert torch.equal(when, torch.where(whole, 1.0, time[:, None]))
    alone = full(batch.rows(torch.tensor([7])), noise.rows(torch.tensor([7])), time[7:8])
    assert torch.equal(alone.hidden[0], more[7])
    none = FullyMasked(masker, 0.0)(batch, noise, time)
    assert torch.equal(none.hidden, hidden) and torch.equal(none.weight, weight)


def test_one_segment_fully_masked_leaves_the_others_to_the_masker():
    batch = rows_of(LAYOUT, 400, given=torch.arange(LAYOUT.length).expand(400, -1) == 6)
    noise, time = Noise.seeded(0, batch.valid), torch.rand(400, generator=torch.Generator().manual_seed(0)).double()
    plain, masker = FixedCount()(batch, noise, time), FullyMasked(FixedCount(), 1.0, ("chunk",))
    hidden = masker(batch, noise, time).hidden
    assert torch.equal(hidden[:, :5], plain.hidden[:, :5]) and not hidden[:, 6].any()
    assert hidden[:, 7:].all() and not plain.hidden[:, 7:].all()


EXTRA = Layout(VOCAB, (Segment("chunk", "action", (CHUNK, DIM), extras=("EOC_action",)),))
REFUSED = {
    "least step of the numbers of 'action' is 0.0": lambda: CodeValues({"action": [0.0, 0.0, 1.0]}),
    "least step .* is nan": lambda: CodeValues({"action": [0.0, math.nan]}),
    r"numbers of 'action' is \(1, 1\)": lambda: CodeValues({"action": [1.0]}),
    "no table": lambda: CodeValues({"action": [[1.0, 2.0], [3.0]]}),
    "name a modality": lambda: CodeValues({}),
    "codes of 'action' with numbers is 3": lambda: CodeValues({"action": [0.0, 1.0, 2.0]}).check(LAYOUT),
    "modality with numbers is 'motion'": lambda: CodeValues({"motion": EVEN}).check(LAYOUT),
    "rows of numbers of 'action' is 3: a divisor of the 8": lambda: CodeValues(
        {"action": EVEN + torch.zeros(3, 1)}
    ).check(LAYOUT),
    "extras of 'chunk'": lambda: VALUES.check(EXTRA),
    "width is -0.1": lambda: Ordinal(VALUES, -0.1),
    "weight is nan": lambda: Ordinal(VALUES, 0.1, math.nan),
    "set one above 0": lambda: Ordinal(VALUES),
    "distance is 'l2'": lambda: Ordinal(VALUES, 0.1, 1.0, "l2"),
    "process of 'chunk' is 'Uniform'": lambda: run(
        Elbo(PerSegment({"picture": Absorbing(), "chunk": Uniform()}), ordinal=Ordinal(VALUES, 0.1)),
        network(),
        rows_of(LAYOUT),
    ),
    "share is 1.5": lambda: FullyMasked(FixedCount(), 1.5),
    "give one share": lambda: FullyMasked(FullyMasked()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
