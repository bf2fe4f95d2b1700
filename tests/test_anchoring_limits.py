"""What may not stand is never committed: codes that the network forbids, and constraints and truncation around the table."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import CONFIDENT, FEW, KINDS, ROWS, Counted, batch_of, measured_of, soft_of, state_of

from discdiff import (
    Allowed,
    Anchored,
    Banned,
    Descent,
    FunctionDenoiser,
    Measured,
    Nucleus,
    Relaxed,
    SoftDecode,
    StarShaped,
    StarTable,
    Steered,
    Temperature,
    TopK,
    sample,
)
from discdiff.anchoring import Canvas
from discdiff.anchoring.canvas import limits, nearest
from discdiff.noise import Noise
from discdiff.testing import Toy
from discdiff.types import Step

SOFT = soft_of("vq")
BOOK = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
LINE = SoftDecode(BOOK.view(1, 3, 1), lambda e: e.flatten(1), lambda e: (e - BOOK).abs().argmin(-1, keepdim=True), "x")


def first_step(state):
    return Step(0, state.time, state.time * 0)


# -- codes that the network forbids


@pytest.mark.parametrize("low", [-torch.inf, -1e9])
@pytest.mark.parametrize("settings", [{}, {"warm": False}, {"likelihood": "expected_cost"}, {"rank": "prior"}])
def test_a_forbidden_code_is_not_the_compromise_of_others(settings, low):
    """p = (1/2, 0, 1/2) expects 0, whose nearest code has no probability: of a blind measurement, and of one of 0."""
    rows = 6
    batch = Toy(torch.ones(81, dtype=torch.float64) / 81, 3, 4).batch(rows)
    table = torch.tensor([0.0, low, 0.0], dtype=torch.float64)
    network = FunctionDenoiser(lambda state, step: table.expand(len(state.row), 4, 3))
    for operator, y in ((lambda x: 0 * x, 1.0), (lambda x: x, 0.0)):
        measured = Measured(operator, torch.full((rows, 4), y, dtype=torch.float64), sigma=0.3)
        seen = []
        watched = replace(LINE, decode=lambda e, seen=seen: seen.append(e.detach()) or LINE.decode(e))
        state, _ = sample(Anchored(network, watched, measured, Descent(8), **settings), CONFIDENT, batch, 3)
        assert bool((state.batch.symbols(state.tokens) != 1).all())
        if "likelihood" not in settings:  # the exact tilt tries every code
            assert all(bool((e.abs() == 1).all()) for e in seen[1:])  # nor does the decoder see it


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_codes_within_limits(kind):
    """By hand: the nearest allowed one; for levels greedily, where the greedy code is forbidden; without limits as ever."""
    soft = soft_of(kind)
    depth, count, _ = soft.codebook.shape
    canvas = Canvas.of(soft, state_of(batch_of(soft, 60, given=False)))
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(len(canvas.index), count, generator=draw, dtype=torch.float64)
    e = canvas.expect((3 * logits).softmax(-1))
    assert limits(logits.log_softmax(-1)) is None and torch.equal(canvas.legal(e), soft.quantise(e))
    ban = torch.rand(logits.shape, generator=draw) < 0.4
    log_p = logits.masked_fill(ban, -torch.inf).log_softmax(-1)
    assert limits(log_p) is log_p
    found, free = canvas.legal(e, log_p), soft.quantise(e)
    assert bool((log_p.gather(1, canvas.symbols(found)[:, None]) > -torch.inf).all())
    by_site = torch.zeros(*found.shape, count, dtype=torch.bool)
    by_site[canvas.place // found.shape[1], canvas.place % found.shape[1], canvas.level] = ban
    bad = by_site.gather(-1, free[..., None])[..., 0].any(-1)
    rest, expected = e.clone(), []
    for j, book in enumerate(soft.codebook):
        far = torch.cdist(rest, book).masked_fill(by_site[:, :, j], torch.inf)
        expected.append(far.argmin(-1))
        rest = rest - book[expected[-1]]
    assert torch.equal(found, torch.where(bad[..., None], torch.stack(expected, -1), free)) and bool(bad.any())
    assert torch.equal(nearest(e[:, 0], soft.codebook[0]), torch.cdist(e[:, 0], soft.codebook[0]).argmin(-1))


def test_codes_that_the_network_forbids_stay_forbidden():
    """Of probability 0 whatever is made of the table later, and harmless to gradients: in every table."""
    state, measured = state_of(batch_of(SOFT)), measured_of(SOFT)
    canvas = Canvas.of(SOFT, state)
    prior = canvas.prior(Counted()(state, first_step(state)))
    prior[:, :3] = -torch.inf
    prior = prior.log_softmax(-1)
    fit = Descent(10, beta=0.5)(canvas, prior, measured)
    noise = Noise.seeded(0, state.valid)
    relaxed = Relaxed(5)(canvas, prior, measured, torch.ones(ROWS), noise)
    for table in (fit.logits, relaxed):
        p = (table / 1e4).softmax(-1)
        assert bool(torch.isfinite(p).all()) and float(p[:, :3].max()) == 0 and float(p[:, 3:].min()) > 0.1
    assert bool(torch.isfinite(fit.losses).all())


@pytest.mark.parametrize("low", [-torch.inf, -1e9])
def test_what_was_forbidden_for_a_step_has_no_tilt(low):
    """Code 1 comes back with the probability that the network gives it."""
    rows, first = 2, torch.tensor([0.3, low, 0.1], dtype=torch.float64)
    later = torch.tensor([0.1, 0.4, 0.2], dtype=torch.float64)
    batch = Toy(torch.ones(81, dtype=torch.float64) / 81, 3, 4).batch(rows)
    network = FunctionDenoiser(lambda state, step: (later if step.index else first).expand(len(state.row), 4, 3))
    measured = Measured(lambda x: 0 * x, torch.ones(rows, 4, dtype=torch.float64))
    run = Anchored(network, LINE, measured, Descent(5, beta=1.0), take="sample").start(batch)
    state = state_of(batch)
    run(state, first_step(state))
    assert float(run.memory["tilts"].abs().max()) < 1e-9
    found = run(state, first_step(state)._replace(index=1)).log_probs(torch.arange(4 * rows))
    assert torch.allclose(found, later.log_softmax(-1).expand(4 * rows, 3))


# -- what is put around the table


def outside(kind):
    """Wrappers by name, with what they make of a table's log probabilities (n, 12)."""

    def only(log_p, count):
        best = log_p.topk(count, -1).indices
        return log_p.masked_fill(torch.ones_like(log_p).scatter(-1, best, 0.0) > 0, -torch.inf)

    def allowed(log_p):
        return log_p.masked_fill(torch.arange(12) % 3 > 0, -torch.inf)

    first = batch_of(SOFT).layout.alphabets[-1][0]
    few = {position: tuple(range(first, first + 12, 3)) for position in range(2, 7)}
    return {
        "allowed": (lambda x: Allowed(x, few), allowed),
        "banned": (lambda x: Banned(x, tuple(first + i for i in range(12) if i % 3)), allowed),
        "top 3": (lambda x: TopK(x, 3), lambda log_p: only(log_p, 3)),
        "nucleus": (lambda x: Nucleus(x, 1e-6), lambda log_p: only(log_p, 1)),
        "temperature 0": (lambda x: Temperature(x, 0.0), lambda log_p: only(log_p, 1)),
        "temperature .3": (lambda x: Temperature(x, 0.3), lambda log_p: log_p / 0.3),
    }[kind]


@pytest.mark.parametrize("rank", ["table", "prior"])
@pytest.mark.parametrize("kind", ["allowed", "banned", "top 3", "nucleus", "temperature 0", "temperature .3"])
def test_constraints_and_knobs_around_it_act_on_the_table(kind, rank):
    """The committed codes are the nearest legal ones to what the changed table expects, never one that it rules out."""
    wrap, change = outside(kind)
    state, fits = state_of(batch_of(SOFT)), []
    inner = Anchored(Counted(), SOFT, measured_of(SOFT), FEW, rank=rank, watch=lambda *told: fits.append(told[-1]))
    made = wrap(inner).start(state.batch)(state, first_step(state))
    canvas = Canvas.of(SOFT, state)
    changed = change(fits[0].logits.log_softmax(-1)).log_softmax(-1)
    far = torch.cdist(changed.exp() @ SOFT.codebook[0], SOFT.codebook[0]).masked_fill(changed == -torch.inf, torch.inf)
    expected, noise = far.argmin(-1), Noise.seeded(0, state.valid)
    drawn = made.draw(canvas.index, noise).tokens
    assert torch.equal(state.batch.symbols(drawn, canvas.index), expected)
    assert torch.equal(made.candidates(canvas.index, noise, 2)[0], drawn[:, None].expand(-1, 2))
    plain = canvas.symbols(SOFT.quantise(fits[0].embeddings))
    assert not torch.equal(expected, plain)  # or this would show nothing
    rows = torch.tensor([2, 0])
    some = canvas.owner == 2
    mine = made.rows(rows).draw(canvas.index[some] - 2 * state.tokens.shape[1], noise.rows(rows)).tokens
    assert torch.equal(mine, drawn[some])


@pytest.mark.parametrize("take", ["quantised", "sample"])
@pytest.mark.parametrize("rank", ["table", "prior"])
def test_constraints_are_obeyed_inside_and_outside(rank, take):
    """Token for token legal over whole runs, by every table."""
    wrap, _ = outside("allowed")
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    batch = batch._replace(given=torch.zeros_like(batch.given))
    runs = [
        wrap(Anchored(Counted(), SOFT, measured, FEW, rank=rank, take=take)),
        Anchored(wrap(Counted()), SOFT, measured, FEW, rank=rank, take=take),
        Anchored(wrap(Counted()), SOFT, measured, likelihood="expected_cost", rank=rank, take=take),
        Steered(wrap(Counted()), SOFT, measured, 3.0),
    ]
    for denoiser in runs:
        symbols = batch.symbols(sample(denoiser, CONFIDENT, batch, 4, seed=2)[0].tokens)[:, 2:]
        assert bool((symbols % 3 == 0).all())
    table = StarTable(wrap(Counted()), SOFT, measured, Relaxed(4))
    assert bool((batch.symbols(sample(table, StarShaped(), batch, 4)[0].tokens)[:, 2:] % 3 == 0).all())


def test_where_no_code_may_stand_an_error_names_the_place():
    soft = soft_of("vq")
    layout = batch_of(soft).layout
    words, code = layout.segments
    layout = replace(layout, segments=(words, replace(code, extras=("EOC_code",))))
    batch = batch_of(soft)._replace(layout=layout)
    end = layout.vocab.special("EOC_code")
    flat = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 13, dtype=torch.float64))
    network = Anchored(Allowed(flat, {4: (end,)}), soft, measured_of(soft), FEW)
    with pytest.raises(
        ValueError, match="no token is left at row 0, position 4 .segment 'code'. after leaving out all"
    ):
        sample(network, CONFIDENT, batch, 4)
