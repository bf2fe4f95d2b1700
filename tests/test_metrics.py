"""Likelihood bounds with their standard errors, on exact tables; diversity by hand."""

import math

import pytest
import torch
from table_toy import ENTROPY, NLL, ONE, TOY, TWO, Given, Table, exhaustive, network, noise_of

from discdiff.layout import Layout, Segment, VocabLayout, make_batch
from discdiff.maskers import FixedCount
from discdiff.metrics import Estimate, distinct, nelbo, reconstruction, unigram_entropy
from discdiff.noise import Noise
from discdiff.objectives import Autoregressive, Elbo
from discdiff.processes import Absorbing, PerSegment, Uniform
from discdiff.schedules import CosineMD4, Geometric, Linear

GOALS = {
    "absorbing": Elbo(),
    "cosine": Elbo(Absorbing(CosineMD4())),
    "fixed": Elbo(masker=FixedCount(Linear(), elbo=True)),
    "uniform": Elbo(Uniform()),
    "per_segment": Elbo(PerSegment({"left": Absorbing(), "right": Uniform()})),
}


def rows_of_the_toy(rows, layout=ONE, parts=1):
    """Sequences in the toy's own proportions, as nearly as `rows` allows, in batches; and their mean NLL."""
    place = torch.searchsorted(TOY.p.cumsum(0), (torch.arange(rows).double() + 0.5) / rows)
    mixed = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    batches = [make_batch(layout, part) for part in TOY.table[place[mixed]].chunk(parts)]
    return batches, float(NLL[place].mean())


@pytest.mark.parametrize("name", GOALS)
def test_the_error_covers_the_exact_value(name):
    batches, exact = rows_of_the_toy(4000, TWO if name == "per_segment" else ONE, parts=3)
    goal = GOALS[name]
    found = nelbo(Table(None if goal.masker else goal.process), goal, batches, draws=2, seed=1)
    assert found.rows == 4000 and found.draws == 2 and 0.01 < found.stderr < 0.15
    assert abs(found.mean - exact) < 3 * found.stderr
    assert abs(exact - ENTROPY) < 0.01


def test_the_error_is_that_of_the_mean():
    """Over 60 orders of the same rows the estimates scatter by no more than the error says; more draws lower it."""
    batches, exact = rows_of_the_toy(200)
    orders = [torch.randperm(200, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    goal = GOALS["fixed"]
    found = [nelbo(Table(), goal, [batches[0].rows(order)], seed=i) for i, order in enumerate(orders)]
    means = torch.tensor([f.mean for f in found])
    error = sum(f.stderr for f in found) / 60
    assert 0.4 * error < float(means.std()) < error
    assert abs(float(means.mean()) - exact) < 4 * float(means.std()) / math.sqrt(60)
    more = nelbo(Table(), goal, batches, draws=16)
    assert more.stderr < 0.95 * error and abs(more.mean - exact) < 3 * more.stderr
    assert nelbo(Table(), goal, [batches[0].rows(orders[3])], seed=3) == found[3] != found[4]
    split = nelbo(Table(), goal, [batches[0].rows(part) for part in (orders[3][:70], orders[3][70:])], seed=3)
    assert split.mean == pytest.approx(found[3].mean, abs=1e-12)  # the size of batches has no say


def test_times_are_stratified_at_any_row_number():
    times, rows = [], 2**18
    batch = make_batch(Layout(VocabLayout(3), (Segment("x", "text", (1,)),)), torch.zeros(rows, 1, dtype=torch.int64))

    def objective(model, batch, noise, time):
        times.append(time)
        return time.sum(), {"nats": time}

    nelbo(None, objective, [batch], draws=2)
    found = torch.cat(times).sort().values
    assert found.dtype == torch.float64 and float(found[0]) >= 0 and float(found[-1]) < 1
    gaps = torch.cat([found, found[:1] + 1]).diff() * 2 * rows
    assert float(gaps.min()) > 0.2 and float(gaps.max()) < 2.7  # a golden-ratio sequence leaves no hole and no heap


class Uncertain(Table):
    """A table that is sure of nothing: even predictions everywhere."""

    def cavity(self, batch, time):
        return torch.zeros(*batch.tokens.shape, TOY.symbols, dtype=torch.float64)


def test_the_reconstruction_term_by_hand():
    """Absorbing: a token is hidden at time 0 with 1 - exp(-low) and then costs its cross-entropy, a visible one nothing."""
    rows, low = 20000, 0.4
    hidden, log3 = 1 - math.exp(-low), math.log(3)
    for kind in ("cavity", "own"):
        goal = Elbo(Absorbing(Geometric(low, 5.0)), kind=kind)
        batch = make_batch(ONE, TOY.table[:1].expand(rows, -1))
        found = reconstruction(Uncertain(), goal, batch, Noise.seeded(0, batch.valid))
        spread = log3 * math.sqrt(4 * hidden * (1 - hidden) / rows)
        assert abs(float(found.mean()) - 4 * hidden * log3) < 5 * spread
        given = batch._replace(given=torch.tensor([True, False, False, False]).expand(rows, -1))
        found = reconstruction(Uncertain(), goal, given, Noise.seeded(0, batch.valid))
        assert abs(float(found.mean()) - 3 * hidden * log3) < 5 * spread
    a = math.exp(-low)
    own = (
        -math.log((a + (1 - a) / 3) / (a + 1 - a)),
        -math.log((1 - a) / 3),
    )  # kept, or replaced by one of the two others
    expected = 4 * ((a + (1 - a) / 3) * own[0] + 2 * (1 - a) / 3 * own[1])
    found = reconstruction(Uncertain(), Elbo(Uniform(Geometric(low, 5.0))), batch, Noise.seeded(0, batch.valid))
    assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / math.sqrt(rows)


@pytest.mark.parametrize("schedule, called", [(Linear(), 0), (CosineMD4(), 0), (Geometric(), 1)], ids=repr)
def test_a_clean_start_needs_no_reconstruction(schedule, called):
    batches, _ = rows_of_the_toy(5)
    table = Table(Absorbing(schedule))
    assert reconstruction(table, Elbo(Absorbing(schedule)), batches[0], noise_of(batches[0])[0]).shape == (5,)
    assert table.calls == called


def test_a_mask_among_the_text_is_no_token_of_the_reconstruction():
    layout = Layout(VocabLayout(3, mask_id=2), (Segment("x", "text", (4,)),))
    batch = make_batch(layout, torch.zeros(50, 4, dtype=torch.int64))
    goal = Elbo(Absorbing(Geometric(3.0, 5.0)))
    found = reconstruction(Uncertain(), goal, batch, Noise.seeded(0, batch.valid)) / math.log(2)
    torch.testing.assert_close(found, found.round())  # two tokens remain, each hidden one costs log 2
    assert float(found.mean()) > 3


def test_the_complete_bound_of_an_unfinished_schedule():
    """prior + integral + reconstruction is at least the NLL, and near it for an exact model; each term is needed."""
    process = Absorbing(Geometric(0.02, 4.0))
    goal, table = Elbo(process, time_min=0), Table(process)
    batch, noise, time, weight = exhaustive(process, make_batch(ONE, TOY.table), 32)
    prior = float(goal.prior_kl(batch)[0])
    diffusion = float(TOY.p @ weight @ goal(table, batch, noise, time)[1]["nats"]) - prior
    hidden, a = torch.cartesian_prod(*[torch.tensor([False, True])] * 4), math.exp(-0.02)
    every = make_batch(ONE, TOY.table).repeat(16)
    start = reconstruction(table, goal, every, Given(torch.where(hidden, 0.999, 0.001).double().repeat(81, 1)))
    start = start.view(81, 16) @ torch.where(hidden, 1 - a, a).double().prod(1)
    bound = prior + diffusion + float(TOY.p @ start)
    assert ENTROPY < bound < ENTROPY + 0.06
    assert min(prior, float(TOY.p @ start)) > bound - ENTROPY  # without either it would lie below the NLL
    batches, exact = rows_of_the_toy(6000)
    found = nelbo(table, goal, batches, draws=12)
    assert abs(found.mean - bound) < 3 * found.stderr < 0.07 and abs(exact - ENTROPY) < 0.01


def test_left_to_right_is_exact():
    bos = Segment("bos", "special", (1,), noised=False)
    layout = Layout(VocabLayout(3), (bos, Segment("words", "text", (4,))), "causal")
    tokens = torch.cat([torch.full((81, 1), layout.vocab.special("BOS")), TOY.table], 1)
    batch, model = make_batch(layout, tokens), network(layout.vocab)
    nats = Autoregressive()(model, batch, *noise_of(batch))[1]["nats"]
    found = nelbo(model, Autoregressive(), [batch.rows(torch.arange(50)), batch.rows(torch.arange(50, 81))])
    assert found.mean == pytest.approx(float(nats.mean()), abs=1e-12)
    assert found.stderr == pytest.approx(float(nats.std()) / 9, abs=1e-12)
    assert nelbo(model, Autoregressive(), [batch.rows(torch.tensor([3]))]).stderr == math.inf


def test_estimates():
    found = Estimate(12.0, 0.25, 7, 2)
    assert found.per(4) == 3 and str(found) == "12.0000 +- 0.2500 nats per row (7 rows, 2 draws)"
    batches, _ = rows_of_the_toy(5)
    for rows, draws, message in ((batches, 0, "0 draws"), ([], 1, "no rows")):
        with pytest.raises(ValueError, match=message):
            nelbo(Table(), Elbo(), rows, draws=draws)


def test_distinct():
    samples = torch.tensor([[1, 1, 1, 1], [1, 2, 1, 2]])
    assert distinct(samples, 1) == 2 / 8
    assert distinct(samples, 2) == 3 / 6  # 11, 12, 21
    assert distinct(samples, 4) == 1
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"{n}-grams of rows of length 4"):
            distinct(samples, n)


def test_unigram_entropy():
    assert unigram_entropy(torch.tensor([[7, 7, 7, 7]])) == 0
    expected = (math.log(4) + 0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / 2
    assert unigram_entropy(torch.tensor([[0, 9, 3, 5], [2, 2, 8, 2]])) == pytest.approx(expected, abs=1e-12)
