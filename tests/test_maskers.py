"""Maskers: what they hide, how often, and with which weight."""

import itertools
import math

import pytest
import torch
from table_toy import NLL, TOY, TWO, Table

from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.maskers import Bernoulli, DepthSuffix, FixedCount, Independent, PerBlock, Span, lowest
from discdiff.noise import Noise, row_seeds
from discdiff.objectives import Elbo
from discdiff.schedules import CosineMD4, Linear

VOCAB = VocabLayout(9, (Modality("sound", 5, depth=3),))
WORDS, SOUND = Segment("words", "text", (5,)), Segment("sound", "sound", (4,))
MIXED = Layout(VOCAB, (Segment("prompt", "text", (2,), noised=False), WORDS, SOUND))
MASKERS = {
    "bernoulli": Bernoulli(), "fixed": FixedCount(), "elbo": FixedCount(Linear(), elbo=True), "depth": DepthSuffix(),
    "block": PerBlock(4), "span": Span(), "independent": Independent(0.3),
}  # fmt: skip


def start(layout, rows, **more):
    return make_batch(layout, layout.tables().first.expand(rows, -1), **more)


def run(masker, batch, t, seed=0):
    time = torch.as_tensor(t, dtype=torch.float64).expand(len(batch.tokens))
    return masker(batch, Noise.seeded(seed, batch.valid), time)


def near(found, expected, spread, sigmas=5):
    """Means of independent draws, (n, ...), lie within five standard errors."""
    error = (found.double().mean(0) - expected).abs()
    assert bool((error <= sigmas * spread / math.sqrt(len(found)) + 1e-12).all()), (
        error,
        spread / math.sqrt(len(found)),
    )


@pytest.mark.parametrize("name", MASKERS)
def test_only_free_positions_are_hidden(name):
    draw = torch.Generator().manual_seed(0)
    shape = 300, MIXED.length
    given, valid = torch.rand(shape, generator=draw) < 0.3, torch.rand(shape, generator=draw) < 0.9
    batch = start(MIXED, 300, given=given, valid=valid | (torch.arange(MIXED.length) == 0))
    time = (torch.arange(300) + 0.5) / 300
    hidden, weight = run(MASKERS[name], batch, time)
    assert not hidden[~batch.free].any() and hidden[batch.free].any()
    assert weight.shape == hidden.shape and weight.dtype == torch.float64 and (weight[hidden] > 0).all()
    alone = run(MASKERS[name], batch.rows(torch.tensor([7])), time[7], row_seeds(0, 300)[7:8])
    assert torch.equal(alone.hidden[0], hidden[7]) and torch.equal(alone.weight[0], weight[7])
    none = start(MIXED, 3, given=torch.ones(3, MIXED.length, dtype=torch.bool))
    hidden, weight = run(MASKERS[name], none, 0.5)
    assert not hidden.any() and not weight.isnan().any()


def test_lowest():
    order = torch.tensor([[0.3, 0.1, 0.2, 0.0], [0.3, 0.1, 0.2, 0.0]])
    free = torch.tensor([[True, True, True, False], [True, False, True, True]])
    found = lowest(order, torch.tensor([2, 5]), free)
    assert found.tolist() == [[False, True, True, False], [True, False, True, True]]


def test_bernoulli():
    batch = start(MIXED, 4000)
    for schedule, t in ((Linear(), 0.3), (CosineMD4(), 0.6)):
        hidden, weight = run(Bernoulli(schedule), batch, t)
        share = 1 - float(schedule.alpha(t))
        near(hidden[:, 2:], share, math.sqrt(share * (1 - share)))
        near(hidden[:, 2].float() * hidden[:, 3].float(), share**2, math.sqrt(share**2 * (1 - share**2)))
        torch.testing.assert_close(weight[:, 0], -schedule.dalpha(t).expand(4000) / share)


def test_fixed_count():
    given = torch.zeros(400, MIXED.length, dtype=torch.bool)
    given[200:, :10] = True  # 17 free positions, then 9
    batch, time = start(MIXED, 400, given=given), (torch.arange(400) % 200 + 0.5).double() / 200
    total = batch.free.sum(1)
    for masker in (FixedCount(), FixedCount(Linear(), elbo=True)):
        hidden, weight = run(masker, batch, time)
        count = (total * (1 - masker.schedule.alpha(time))).ceil().long()
        assert torch.equal(hidden.sum(1), count) and {1, 9, 17} <= set(count.tolist())
        expected = total.double() / count if masker.elbo else torch.ones(400).double()
        assert torch.equal(weight, expected[:, None].expand_as(weight))
    hidden = run(FixedCount(), start(MIXED, 4000), 0.5)[0][:, 2:]
    share = math.ceil(17 * math.cos(math.pi / 4)) / 17
    near(hidden, share, math.sqrt(share * (1 - share)))
    exact = run(FixedCount(Linear()), start(Layout(VOCAB, (WORDS,)), 5), torch.arange(1, 6).double() / 5)[0]
    assert exact.sum(1).tolist() == [1, 2, 3, 4, 5]  # k / n hides k, not k + 1 by rounding


LEVELS, SLOTS = 4, 6
TUNE = Layout(VocabLayout(0, (Modality("sound", 5, depth=LEVELS),)), (Segment("sound", "sound", (SLOTS,)),))


def counts(t, rows, seed=0):
    """Hidden levels of every slot, (rows, slots)."""
    hidden = run(DepthSuffix(Linear()), start(TUNE, rows), t, seed)[0].view(rows, SLOTS, LEVELS)
    assert (hidden.long().diff(dim=-1) >= 0).all()  # what is kept is a prefix in depth
    return hidden.sum(-1)


@pytest.mark.parametrize("n", [1, 7, 13, 24])
def test_hidden_levels_are_hypergeometric(n):  # R2
    k, units = counts(n / (SLOTS * LEVELS), 6000).double(), SLOTS * LEVELS
    assert (k.sum(1) == n).all() and float(k.max()) <= LEVELS
    variance = n / SLOTS * (1 - 1 / SLOTS) * (units - n) / (units - 1)
    near(k, n / SLOTS, math.sqrt(variance))
    near((k - n / SLOTS) ** 2, variance, float(((k - n / SLOTS) ** 2).std()))
    near((k[:, 0] - n / SLOTS) * (k[:, 1] - n / SLOTS), -variance / (SLOTS - 1), 1.5 * variance)
    law = torch.tensor([math.comb(4, j) * math.comb(20, n - j) if n >= j else 0 for j in range(5)]).double()
    law /= math.comb(24, n)
    near(torch.nn.functional.one_hot(k[:, 2].long(), 5), law, (law * (1 - law)).sqrt())


def test_hidden_levels_are_a_chain():  # R3: less noise hides n_s of the n_t units that were hidden, uniformly
    many, few = counts(18 / 24, 12000), counts(6 / 24, 12000)
    assert (few <= many).all()
    for kept in range(1, LEVELS + 1):
        part = few[:, 0][many[:, 0] == kept]
        law = torch.tensor([math.comb(kept, j) * math.comb(18 - kept, 6 - j) if j <= kept else 0 for j in range(5)])
        law = law.double() / math.comb(18, 6)
        near(torch.nn.functional.one_hot(part, 5), law, (law * (1 - law)).sqrt())


def test_depth_suffix_beside_text_and_given_levels():
    given = torch.zeros(500, MIXED.length, dtype=torch.bool)
    given[:, 7::3] = True  # level 0 of every slot of sound is known
    hidden = run(DepthSuffix(Linear()), start(MIXED, 500, given=given), 0.5)[0]
    assert (hidden.sum(1) == 7).all()  # of 5 + 4 x 2 free units
    sound = hidden[:, 7:].view(500, 4, 3)
    assert (sound.long().diff(dim=-1) >= 0).all() and not sound[..., 0].any()


def test_span_is_contiguous():
    batch = start(Layout(VOCAB, (WORDS, SOUND)), 6000)
    hidden, weight = run(Span(), batch, 0.4)
    assert (hidden.sum(1) == 7).all() and (weight == 1).all()  # ceil(0.4 * 17)
    first = hidden.long().argmax(1)
    for row, begin in zip(hidden[:200], first, strict=False):
        assert row[begin : begin + 7].all()
    law = torch.full((11,), 1 / 11, dtype=torch.float64)
    near(torch.nn.functional.one_hot(first, 11), law, (law * (1 - law)).sqrt())
    given = torch.zeros(2, 17, dtype=torch.bool)
    given[:, 3:14] = True
    hidden = run(Span(), start(Layout(VOCAB, (WORDS, SOUND)), 2, given=given), 0.5)[0]
    assert hidden.sum(1).tolist() == [3, 3] and run(Span(), batch, 1e-12)[0].sum(1).unique().tolist() == [1]


def test_blocks_have_times_of_their_own():
    layout, rows = Layout(VOCAB, (Segment("words", "text", (12,)),)), 5000
    time = (torch.arange(rows).double() + 0.5) / rows
    for where in (layout, layout.doubled(4)):
        batch = start(where, rows)
        hidden, weight = run(PerBlock(4), batch, time)
        assert not hidden[:, 12:].any()  # the clean copy
        weights = weight[:, :12].view(rows, 3, 4)
        assert (weights == weights[..., :1]).all()
        each = 1 / weights[..., 0]  # the time of a block, for the linear schedule
        torch.testing.assert_close(each[:, 0], time)
        assert ((each.sort(0).values - time[:, None]).abs() < 1 / rows).all()  # stratified in every block
        gaps = (each - each[:, :1]) % 1.0
        torch.testing.assert_close(
            gaps, torch.tensor([0, 0.6180339887498949, 0.2360679774997898]).double().expand(rows, 3)
        )
        near(hidden[:, :12].view(rows, 3, 4).double() - each[..., None], 0.0, 0.5)
    whole = run(PerBlock(12), start(layout, 300), time[:300])
    assert torch.equal(whole.hidden, run(Bernoulli(), start(layout, 300), time[:300]).hidden)
    torch.testing.assert_close(whole.weight[:, 0], 1 / time[:300])


def test_segments_hide_independent_uniform_counts():
    rows = 20000
    hidden, weight = run(Independent(), start(TWO_SIZES, rows), (torch.arange(rows).double() + 0.5) / rows)
    words, sound = hidden[:, :5].sum(1), hidden[:, 5:].sum(1)
    joint = torch.nn.functional.one_hot((words - 1) * 12 + sound - 1, 60)
    law = torch.full((60,), 1 / 60, dtype=torch.float64)
    near(joint, law, (law * (1 - law)).sqrt())
    for part, size, count in ((slice(0, 5), 5, words), (slice(5, 17), 12, sound)):
        expected = (size / count.double())[:, None].expand(-1, size)
        torch.testing.assert_close(weight[:, part][hidden[:, part]], expected[hidden[:, part]], rtol=1e-14, atol=0)
    near(hidden[:, 5:].double() / sound[:, None], 1 / 12, 0.3)  # each position of a segment as often
    steps = run(Independent(), start(Layout(VOCAB, (WORDS,)), 5), torch.arange(5).double() / 5)[0].sum(1)
    assert steps.tolist() == [1, 2, 3, 4, 5]  # time 0 hides one, too


TWO_SIZES = Layout(VOCAB, (WORDS, SOUND))


def test_the_conditional_share():
    rows = 20000
    time = torch.rand(rows, generator=torch.Generator().manual_seed(0))
    hidden = run(Independent(0.4), start(TWO_SIZES, rows), time)[0]
    words, sound = hidden[:, :5].any(1), hidden[:, 5:].any(1)
    assert (words | sound).all()
    for event, chance in ((words & sound, 0.6), (words & ~sound, 0.2), (sound & ~words, 0.2)):
        near(event, chance, math.sqrt(chance * (1 - chance)))


def test_conditionals_are_estimated_by_their_exact_bound():
    """With one segment hidden the mean of `nats` is the mean of -log p(left | right) and -log p(right | left)."""
    p, rows = TOY.p.view(9, 9), 6000
    for sequence in (0, 17, 53):
        left, right = divmod(sequence, 9)
        exact = -(p[left, right] / p[:, right].sum()).log() / 2 - (p[left, right] / p[left].sum()).log() / 2
        batch = make_batch(TWO, TOY.table[sequence].expand(rows, -1))
        time = (torch.arange(rows).double() + 0.5) / rows
        nats = Elbo(masker=Independent(1.0), time_min=0)(Table(), batch, Noise.seeded(0, batch.valid), time)[1]["nats"]
        near(nats, exact, float(nats.std()))
        assert abs(float(exact - NLL[sequence])) > 0.3


def test_counts_of_maskgit_match_its_published_curve():  # ceil(cos(pi r / 2) n) with r = 1 - t
    layout = Layout(VOCAB, (Segment("words", "text", (256,)),))
    ratios = [0.05, 0.25, 0.5, 0.75, 0.95]
    hidden = run(FixedCount(), start(layout, 5), 1 - torch.tensor(ratios, dtype=torch.float64))[0]
    assert hidden.sum(1).tolist() == [math.ceil(math.cos(math.pi * r / 2) * 256) for r in ratios]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PerBlock(0), "block size 0"),
        (lambda: Independent(1.2), "conditional 1.2"),
        (lambda: FixedCount(elbo=True), "CosineMD4.*use Linear"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_subset_of_a_count_is_as_likely():
    layout = Layout(VOCAB, (Segment("words", "text", (4,)),))
    hidden = run(FixedCount(Linear()), start(layout, 6000), 0.5)[0]
    pairs = torch.stack([hidden[:, list(pair)].all(1) for pair in itertools.combinations(range(4), 2)], 1)
    near(pairs, 1 / 6, math.sqrt(5) / 6)


def test_power_and_balance_change_the_weights_alone():
    rows = 20
    batch = start(MIXED, rows)
    t = torch.linspace(0.01, 0.99, rows)
    bound, root, flat, alike = (
        run(masker, batch, t)
        for masker in (Independent(), Independent(power=0.5), Independent(power=0.0), Independent(balanced=True))
    )
    for other in (root, flat, alike):
        assert torch.equal(bound.hidden, other.hidden)
    here = bound.hidden
    torch.testing.assert_close(root.weight[here], bound.weight[here].sqrt())
    assert torch.equal(flat.weight[here], torch.ones_like(flat.weight[here])) and bool((bound.weight[here] > 1).any())
    segment = MIXED.tables().segment[batch.slot]
    sums = [torch.where(here & (segment == i), alike.weight, 0.0).sum(1) for i in (1, 2)]
    torch.testing.assert_close(sums[0], sums[1])  # both segments are hidden in every row, and count alike
    torch.testing.assert_close(sums[0] + sums[1], batch.free.sum(1).double())
