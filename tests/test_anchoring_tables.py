"""Tables, their nearest legal codes and their gradients: A1, A2, and the optimisers against torch's own."""

import math
from dataclasses import replace

import pytest
import torch
from anchoring_toy import KINDS, SLOTS, Counted, batch_of, measured_of, soft_of, state_of, tokenizer

from discdiff import Descent
from discdiff.anchoring import Canvas
from discdiff.anchoring.adam import Adam
from discdiff.anchoring.descent import away, project, slope
from discdiff.types import Step

each_kind = pytest.mark.parametrize("kind", KINDS)


def tables(rows, codes, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, codes, generator=draw, dtype=torch.float64)).softmax(-1)


# -- A1: the nearest code of an expectation


def test_sign_of_an_expectation_is_a_majority_of_bits():
    """A1 at 13 bits: bit j is 1 iff P(bit j = 1) > 1/2; the likeliest token is another one most of the time."""
    soft = soft_of("lfq", codebook_size=8192, code_dim=13)
    book, p = soft.codebook[0], tables(200, 8192, scale=3.0)
    e = p @ book
    found = soft.quantise(e[None])[0, :, 0]
    bits = book > 0
    majority = p @ bits.double() > 0.5
    assert torch.equal(bits[found], majority) and torch.equal(book[found], torch.where(e > 0, 1.0, -1.0).double())
    assert torch.equal(found, torch.cdist(e, book).argmin(-1))
    agree = float((found == p.argmax(-1)).double().mean())
    print(f"the likeliest token is the majority's in {agree:.0%} of random tables")
    assert 0 < agree < 0.5
    sharp = tables(200, 8192, scale=20.0)
    sure = sharp.amax(-1) > 0.5
    assert sure.any() and torch.equal(soft.quantise((sharp @ book)[None])[0, sure, 0], sharp.argmax(-1)[sure])


def test_nearest_code_of_a_vector_quantiser():
    soft, p = soft_of("vq"), tables(300, 12)
    e = p @ soft.codebook[0]
    found = soft.quantise(e[None])[0, :, 0]
    assert torch.equal(found, torch.cdist(e, soft.codebook[0]).argmin(-1))
    assert float((found == p.argmax(-1)).double().mean()) < 0.9


def test_bounds_of_finite_scalars():
    """Each dimension goes to its nearest level, and to the outermost one beyond them."""
    soft, book = soft_of("fsq"), soft_of("fsq").codebook[0]
    draw = torch.Generator().manual_seed(0)
    e = torch.cat([tables(300, 15) @ book, 4 * torch.randn(300, 2, generator=draw, dtype=torch.float64)])
    found = book[soft.quantise(e[None])[0, :, 0]]
    for j, count in enumerate((5, 3)):
        levels = book[:, j].unique()
        assert len(levels) == count
        assert torch.equal(found[:, j], levels[(e[:, j, None] - levels).abs().argmin(-1)])
        outside = e[:, j] > levels[-1]
        assert outside.any() and bool((found[outside, j] == levels[-1]).all())
    tok = tokenizer("fsq")
    whole = torch.arange(15)[None, :, None]
    assert torch.equal(tok.embeddings_to_codes(tok.codes_to_embeddings(whole)), whole)


def test_greedy_residual():
    soft = soft_of("rvq")
    first, second = soft.codebook
    e = tables(300, 12) @ first + tables(300, 12, 1) @ second
    codes = soft.quantise(e[None])[0]
    one = torch.cdist(e, first).argmin(-1)
    two = torch.cdist(e - first[one], second).argmin(-1)
    assert torch.equal(codes, torch.stack([one, two], -1))
    assert torch.equal(soft.embed(codes), first[one] + second[two])


@each_kind
def test_known_codes_stay_what_they_are(kind):
    """Greedy codes of summed embeddings are not always the codes that were summed: known ones are taken as they are."""
    soft = soft_of(kind)
    depth, count, _ = soft.codebook.shape
    batch = batch_of(soft, 50, given=False)
    symbols = torch.randint(count, batch.tokens.shape, generator=torch.Generator().manual_seed(4))
    symbols[:, :2] = 0
    state = state_of(batch)._replace(tokens=batch.ids(symbols))
    codes = symbols[:, 2:].view(50, SLOTS, depth)
    known = torch.ones_like(codes, dtype=torch.bool)
    known[:, 0], known[:, 1, -1] = False, False  # a slot that is open, and one whose last level is
    state = state._replace(committed=torch.cat([torch.ones(50, 2, dtype=torch.bool), known.flatten(1)], 1))
    canvas = Canvas.of(soft, state)
    assert len(canvas.index) == 50 * (depth + 1)
    e = canvas.expect(tables(len(canvas.index), count))
    legal = canvas.legal(e)
    assert torch.equal(legal[known], codes[known])
    assert torch.equal(legal[:, 0], soft.quantise(e)[:, 0])
    last = soft.codebook[-1]
    rest = e[:, 1] - (soft.codebook[0][codes[:, 1, 0]] if depth > 1 else 0.0)
    assert torch.equal(legal[:, 1, -1], torch.cdist(rest, last).argmin(-1))
    if depth > 1:  # otherwise this test would show nothing
        assert not torch.equal(soft.quantise(canvas.known)[:, 2:], codes[:, 2:])


# -- A2: straight through, and the closed-form gradient


def some_canvas(kind):
    """Some sites given, and for two levels one slot with its first level known."""
    soft = soft_of(kind)
    batch = batch_of(soft)
    state = state_of(batch)
    if soft.depth > 1:
        known = state.committed.clone()
        known[:, 2 + 4] = True
        tokens = torch.where(known & ~batch.given, batch.ids(torch.full_like(batch.tokens, 3)), batch.tokens)
        state = state._replace(committed=known, tokens=tokens)
    canvas = Canvas.of(soft, state)
    prior = canvas.prior(Counted()(state, Step(0, state.time, state.time * 0)))
    assert float((prior.exp().sum(-1) - 1).abs().max()) < 1e-12
    return canvas, prior


def expected(canvas, p):
    """E[embedding] written out site by site, differentiable."""
    flat = [row for row in canvas.known.reshape(-1, canvas.known.shape[-1])]
    for i, (place, level) in enumerate(zip(canvas.place.tolist(), canvas.level.tolist(), strict=True)):
        flat[place] = flat[place] + p[i] @ canvas.soft.codebook[level]
    return torch.stack(flat).view_as(canvas.known)


@each_kind
def test_value_and_gradient_are_straight_through(kind):
    """The decoder sees the legal codes' embeddings q; dloss/dphi = (dloss/de at q) (de/dphi), by an explicit Jacobian."""
    canvas, prior = some_canvas(kind)
    measured = measured_of(canvas.soft)
    phi = prior + 0.3 * torch.randn(prior.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p = phi.softmax(-1)
    q = canvas.soft.embed(canvas.legal(expected(canvas, p)))
    seen = []
    soft = replace(canvas.soft, decode=lambda e: seen.append(e) or canvas.soft.decode(e))
    terms, g = slope(replace(canvas, soft=soft), p, measured)
    assert torch.equal(seen[0].detach(), q) and torch.allclose(
        terms["gaussian"], measured(canvas.soft.decode(q), canvas.row)
    )
    q.requires_grad_()
    (at_q,) = torch.autograd.grad(measured(canvas.soft.decode(q), canvas.row).sum(), q)
    jacobian = torch.autograd.functional.jacobian(lambda x: expected(canvas, x.softmax(-1)), phi)
    explicit = torch.tensordot(at_q, jacobian, at_q.ndim)
    grad = canvas.pull(g, torch.empty_like(p))
    project(p, grad)
    assert float((grad - explicit).abs().max()) < 1e-11 * max(1.0, float(explicit.abs().max()))


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.7])
@each_kind
def test_descent_is_adam_on_the_straight_through_loss(kind, beta, quantised):
    """Losses and KL of the closed form against autograd and torch's Adam, its rate a cosine; the table has the least loss."""
    canvas, prior = some_canvas(kind)
    measured = measured_of(canvas.soft)
    fit = Descent(6, 0.2, beta, quantised)(canvas, prior, measured)
    phi = prior.clone().requires_grad_()
    mover, least = torch.optim.Adam([phi]), torch.full_like(fit.losses[0], torch.inf)
    kept = torch.empty_like(prior)
    for count, losses in enumerate(fit.losses):
        mover.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * count / 5))
        p = phi.softmax(-1)
        e = expected(canvas, p)
        if quantised:
            e = e + (canvas.soft.embed(canvas.legal(e.detach())) - e).detach()
        kl = (p * (p.log() - prior)).sum(-1)
        kl = kl.new_zeros(len(canvas.row)).index_add(0, canvas.owner, kl)
        loss = measured(canvas.soft.decode(e), canvas.row) + beta * kl
        assert torch.allclose(losses, loss.detach(), rtol=1e-6)
        better = losses < least
        least, kept = torch.where(better, losses, least), torch.where(better[canvas.owner, None], phi, kept).detach()
        mover.zero_grad()
        loss.sum().backward()
        mover.step()
    assert float((fit.logits - kept).abs().max()) < 1e-7
    assert torch.allclose(fit.embeddings, expected(canvas, kept.softmax(-1)), atol=1e-6)
    assert fit.decoded == 6 * len(canvas.row)


def test_kl_of_tables():
    p, q = tables(20, 7), tables(20, 7, 1)
    p[:, 2] = 0.0
    p /= p.sum(-1, keepdim=True)
    left = torch.full_like(p, torch.nan)
    kl = torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)
    assert torch.allclose(away(p, q.log(), left), kl) and float(left[:, 2].abs().max()) == 0


@pytest.mark.parametrize("rectified", [False, True])
def test_adam_is_torchs_for_the_sites_that_go_on(rectified):
    draw = torch.Generator().manual_seed(0)
    grads = torch.randn(14, 4, 6, generator=draw, dtype=torch.float64)
    start, rate = (
        torch.randn(4, 6, generator=draw, dtype=torch.float64),
        torch.tensor([[0.1], [0.2], [0.3], [0.4]]).double(),
    )
    stop = torch.tensor([14, 5, 1, 9])  # of each site
    adam = Adam(start.clone(), rate, rectified=rectified)
    for count, grad in enumerate(grads):
        hurt = grad.clone()
        hurt[stop <= count] = torch.nan
        adam.move(hurt, (count < stop)[:, None], count)
    for i, steps in enumerate(stop.tolist()):
        x = start[i].clone().requires_grad_()
        kind = torch.optim.RAdam if rectified else torch.optim.Adam
        mover, before = kind([x], lr=float(rate[i])), x.detach().clone()
        for grad in grads[:steps, i]:
            before, x.grad = x.detach().clone(), grad
            mover.step()
        assert float((adam.phi[i] - x.detach()).abs().max()) < 1e-6
        if steps < 14:
            adam.undo(torch.where(torch.arange(4) == i, stop, -1))
            assert float((adam.phi[i] - before).abs().max()) < 1e-6


def test_a_measurement_is_repeated_with_its_rows():
    measured = measured_of(soft_of("vq"))
    assert len(measured.repeat(3).y) == 3 * len(measured.y)
    assert torch.equal(measured.repeat(2).y[2:4], measured.y[1:2].expand(2, -1))
