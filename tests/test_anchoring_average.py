"""Codes of the mean of the tables that a run has seen: of which steps, at which sites, and when."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import CONFIDENT, FEW, Counted, batch_of, measured_of, soft_of
from test_anchoring_blocks import case

from discdiff import Allowed, Anchored, MaskOrReplace, Remask, Rescale, StarShaped, sample
from discdiff.types import per_position

REVISING = {"star": StarShaped(MaskOrReplace()), "remask": Remask(MaskOrReplace(), Rescale(0.5))}
STEPS = 8


def told(soft, kernel, average, batch, network=None, **more):
    """The last codes (rows, slots, depth), and of every call its rows, their t and s (n, slots) and expected embeddings."""
    seen = []

    def look(state, step, fit):
        first = soft.columns(batch.layout)[:, 0]
        t, s = (per_position(x, state.tokens).expand(state.tokens.shape)[:, first] for x in (step.t, step.s))
        seen.append((state.row, t, s, fit.embeddings.clone()))

    network = network or Counted()
    table = Anchored(network, soft, measured_of(soft), FEW, average=average, process=kernel.process, watch=look)
    state, _ = sample(table, kernel, batch, STEPS, seed=5, callback=lambda state, info: None, **more)
    return state.batch.symbols(state.tokens)[:, soft.columns(batch.layout)], seen


def mean(seen, average):
    """What the tables since that time of a slot's own clock expected in it."""
    total, number = torch.zeros_like(seen[-1][3]), torch.zeros(*seen[-1][1].shape, 1, dtype=torch.float64)
    for row, t, s, e in seen:
        counts = ((t <= average) & (s < t)).double()[..., None]
        total[row] += e * counts
        number[row] += counts
    return total / number


@pytest.mark.parametrize("kind", ["vq", "rvq"])
@pytest.mark.parametrize("average", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("kernel", REVISING.values(), ids=REVISING.keys())
def test_the_last_codes_are_nearest_to_the_mean_since_then(kernel, average, kind):
    """Of every open slot; before the end nothing is another, and without it they are nearest to what the last table expects."""
    soft = soft_of(kind)
    batch = batch_of(soft, given=False)
    codes, seen = told(soft, kernel, average, batch)
    last, others = told(soft, kernel, 0.0, batch)
    assert all(torch.equal(a, b) for one, other in zip(seen, others, strict=True) for a, b in zip(one, other))
    assert len(seen) >= STEPS - 1 and bool((seen[-1][2] == 0).all())
    assert torch.equal(codes, soft.quantise(mean(seen, average)))
    assert torch.equal(last, soft.quantise(seen[-1][3])) and not torch.equal(codes, last)


def test_blocks_have_means_of_their_own():
    """By each slot's own clock: nothing of it counts before it begins or after it has ended."""
    soft, batch, network, clock = case()
    codes, seen = told(soft, REVISING["star"], 0.5, batch, network, clock=clock)
    open_ = ~batch.given[:, soft.columns(batch.layout)[:, 0]]
    assert any(bool((t.amax(1) > t.amin(1)).any()) for _, t, _, _ in seen)
    assert torch.equal(codes[open_], soft.quantise(mean(seen, 0.5))[open_])


def test_what_was_committed_before_stays():
    """A kernel that commits on the way has a mean at the sites of its last step alone."""
    soft = soft_of("vq")
    batch = batch_of(soft)
    mine, plain = (
        sample(Anchored(Counted(), soft, measured_of(soft), FEW, average=a), CONFIDENT, batch, 4, seed=1)[0].tokens
        for a in (1.0, 0.0)
    )
    assert int((mine != plain).sum(1).max()) <= 2 and torch.equal(mine[batch.given], plain[batch.given])


def test_a_constraint_around_it_acts_on_the_mean():
    soft = soft_of("vq")
    batch, kernel = batch_of(soft, given=False), REVISING["star"]
    few = {place: batch.ids(torch.arange(1, 12, 2)[:, None].expand(-1, 7))[:, place].tolist() for place in range(2, 7)}
    table = Anchored(Counted(), soft, measured_of(soft), FEW, average=1.0, process=kernel.process)
    codes = batch.symbols(sample(Allowed(table, few), kernel, batch, STEPS, seed=5)[0].tokens)[:, 2:]
    assert bool((codes % 2 == 1).all())
    last = replace(table, average=0.0)
    assert not torch.equal(
        codes, batch.symbols(sample(Allowed(last, few), kernel, batch, STEPS, seed=5)[0].tokens)[:, 2:]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"average": -0.1}, "average is -0.1: a time in"),
        ({"average": 1.5}, "average is 1.5: a time in"),
        ({"average": 0.5, "take": "sample"}, "a mean has no draws"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Anchored(Counted(), soft_of("vq"), **wrong)
