"""Posterior sampling block by block, around exact caches: what has not begun is not asked for, but fitted all the same."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import CONFIDENT, FEW, ROWS, Counted, batch_of, measured_of, soft_of, state_of
from table_toy import network

from discdiff import (
    Ancestral,
    Anchored,
    Blocks,
    ClassifierFree,
    Commit,
    FirstHitting,
    MaskOrReplace,
    ModelDenoiser,
    Relaxed,
    StarShaped,
    StarTable,
    Steered,
    sample,
)
from discdiff.anchoring import Canvas
from discdiff.denoisers import Unprompted
from discdiff.denoisers.caches import ApproximateDualCached, BlockCached
from discdiff.layout import Layout, Segment, make_batch
from discdiff.types import Step


def case(kind="vq"):
    """A prompt and five slots of codes, some given, seen in blocks of two words or slots, and a network of them."""
    soft = soft_of(kind)
    vocab, depth = batch_of(soft).layout.vocab, soft.depth
    segments = (Segment("words", "text", (depth,), noised=False), Segment("code", "code", (5,)))
    layout = Layout(vocab, segments, "block_causal", block=2 * depth)
    blank = make_batch(layout, torch.full((ROWS, layout.length), vocab.mask))
    known = ~blank.noisable
    known[1:, 2 * depth] = True
    some = blank.ids((torch.arange(ROWS)[:, None] + 2 * torch.arange(layout.length)) % 5)
    batch = make_batch(layout, torch.where(known, some, vocab.mask), given=known & blank.noisable)
    return soft, batch, ModelDenoiser(network(vocab, time_conditioning=False).eval()), Blocks(2 * depth)


def wrapped(name, inner, soft, measured, kernel):
    if name == "star":
        return StarTable(inner, soft, measured, Relaxed(steps=4), kernel.process)
    if name == "steered":
        return Steered(inner, soft, measured, 1.0, kernel.process)
    more = {"exact tilt": {"likelihood": "expected_cost"}, "drawn": {"take": "sample", "warm": False}}.get(name, {})
    return Anchored(inner, soft, measured, FEW, process=kernel.process, **more)


def together(state, info):
    """A callback, with which rows wait for one another."""


@pytest.mark.parametrize("kind", ["vq", "rvq"])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("anchored", CONFIDENT),
        ("anchored", Ancestral()),
        ("anchored", Ancestral(MaskOrReplace())),
        ("anchored", FirstHitting()),
        ("drawn", CONFIDENT),
        ("exact tilt", Commit()),
        ("steered", Ancestral()),
        ("star", StarShaped()),
    ],
)
def test_exact_caches_change_nothing(name, kernel, kind):
    """An active measurement, given tokens, a block clock: the same tokens and decoder passes with a cache, which feeds less."""
    soft, batch, plain, clock = case(kind)
    measured = measured_of(soft)
    found = []
    for inner in (plain, BlockCached(plain)):
        denoiser = wrapped(name, inner, soft, measured, kernel)
        found.append(sample(denoiser, kernel, batch, 9, seed=5, clock=clock, callback=together))
    (slow, cost), (fast, less) = found
    assert torch.equal(slow.tokens, fast.tokens) and bool(fast.committed.all())
    assert torch.equal(fast.tokens[batch.given], batch.tokens[batch.given])
    assert (less.nfe, less.decoded) == (cost.nfe, cost.decoded) and less.decoded > 0 and less.fed < cost.fed
    alone = sample(plain, kernel, batch, 9, seed=5, clock=clock)[0]
    assert not torch.equal(alone.tokens, slow.tokens)  # the measurement had a say


def test_guidance_and_approximate_caches():
    soft, batch, plain, clock = case()
    measured = measured_of(soft)
    found = []
    for inner in (plain, BlockCached(plain)):
        guided = ClassifierFree(inner, 1.5, Unprompted(("words",)))
        found.append(sample(Anchored(guided, soft, measured, FEW), CONFIDENT, batch, 9, clock=clock)[0].tokens)
    assert torch.equal(*found)
    state, _ = sample(Anchored(ApproximateDualCached(plain), soft, measured, FEW), CONFIDENT, batch, 9, clock=clock)
    assert bool(state.committed.all())


@pytest.mark.parametrize("likelihood", ["decoded", "expected_cost"])
def test_later_blocks_are_fitted_from_no_opinion_and_left_to_the_network(likelihood):
    soft = soft_of("vq")
    state, measured, fits = state_of(batch_of(soft)), measured_of(soft), []
    s = state.time * 0
    s[:, 4:] = 1.0  # the last three slots have not begun
    step = Step(0, state.time, s)
    canvas = Canvas.of(soft, state, step)
    plain = Counted()(state, step)
    prior = canvas.prior(plain)
    assert torch.equal(canvas.begun, canvas.place % 5 < 2) and bool(canvas.begun.any())
    assert torch.allclose(prior[~canvas.begun].exp(), torch.full((), 1 / 12, dtype=torch.float64))
    whole = Canvas.of(soft, state).prior(plain)
    assert torch.equal(prior[canvas.begun], whole[canvas.begun]) and not torch.allclose(prior, whole)
    network = Anchored(Counted(), soft, measured, FEW, likelihood, watch=lambda *told: fits.append(told[-1]))
    made, fit = network(state, step), fits[0]
    moved = (fit.logits.log_softmax(-1) - prior).abs().amax(-1)
    later = moved[~canvas.begun]
    assert bool((later > 0.1).any()) == (likelihood == "decoded")  # a fit of nothing but what is seen, or none
    sites = canvas.index
    log_p = made.log_probs(sites)
    assert torch.allclose(log_p[~canvas.begun], plain.log_probs(sites)[~canvas.begun])
    assert torch.allclose(log_p[canvas.begun], fit.logits.log_softmax(-1)[canvas.begun])
    assert bool((made.choice.view(ROWS, -1)[:, 4:] == -1).all())
    assert fit.decoded == (int(canvas.begun.sum()) * 12 if likelihood == "expected_cost" else ROWS * FEW.steps)


def test_where_no_code_has_begun_nothing_is_decoded():
    soft, seen = soft_of("vq"), []
    soft = replace(soft, decode=lambda e: seen.append(len(e)) or soft_of("vq").decode(e))
    state = state_of(batch_of(soft))
    step = Step(0, state.time, torch.ones_like(state.time))
    measured = measured_of(soft)
    seen.clear()
    for denoiser in (Anchored(Counted(), soft, measured), Steered(Counted(), soft, measured)):
        made = denoiser(state, step)
        assert made.info.decoded == 0 and not seen
