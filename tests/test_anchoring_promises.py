"""What every way of posterior sampling promises: seeds, rows, given tokens, costs, memory, and no gradient in the network."""

from dataclasses import replace

import pytest
import torch
from anchoring_toy import (
    CONFIDENT,
    FEW,
    METHODS,
    ROWS,
    Counted,
    batch_of,
    layout_of,
    measured_of,
    soft_of,
)
from table_toy import network

from discdiff import Anchored, ClassifierFree, ModelDenoiser, Selected, SoftDecode, best_of, iterate, row_seeds, sample
from discdiff.denoisers import Unprompted
from discdiff.layout import VocabLayout
from discdiff.sampling.sampler import Common, Sampler

SOFT = soft_of("vq")
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@each_method
def test_rows_seeds_and_given_tokens(method):
    """A row alone, with its own seed and measurement, gives the tokens of the batch's row; the seed decides them all."""
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    before = torch.get_rng_state()
    state, _ = method(Counted(), batch, SOFT, measured, row_seeds(7, ROWS).tolist())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(state.tokens[batch.given], batch.tokens[batch.given])
    assert bool((state.batch.symbols(state.tokens) < state.batch.alphabet.size).all()) and bool(state.committed.all())
    for row in (0, 2):
        one = torch.tensor([row])
        mine, seeds = replace(measured, y=measured.y[one]), row_seeds(7, ROWS)[one].tolist()
        alone, _ = method(Counted(), batch.rows(one), SOFT, mine, seeds)
        assert torch.equal(alone.tokens[0], state.tokens[row])
    other, _ = method(Counted(), batch, SOFT, measured, row_seeds(8, ROWS).tolist())
    assert not torch.equal(other.tokens, state.tokens)


@each_method
def test_costs_are_what_was_spent(method):
    """Network calls, rows fed and rows decoded; one row more is decoded before the run, to see whether all fits."""
    calls = []
    soft = replace(SOFT, decode=lambda e: calls.append(len(e)) or SOFT.decode(e))
    network = Counted()
    _, info = method(network, batch_of(SOFT), soft, measured_of(SOFT), 3)
    assert info.nfe == len(network.calls) and info.network_rows == sum(network.calls)
    assert calls[0] == 1 and info.decoded == sum(calls[1:]) > 0


@each_method
def test_better_than_the_prior(method):
    batch, measured = batch_of(SOFT, 24), measured_of(SOFT, 24)

    def loss(state):
        return float(measured(SOFT.data(state.batch.symbols(state.tokens)[:, 2:, None]), torch.arange(24)).mean())

    prior = loss(sample(Counted(), CONFIDENT, batch, 4, seed=1)[0])
    mine = loss(method(Counted(), batch, SOFT, measured, 1)[0])
    print(f"loss {mine:.1f}, the prior's {prior:.1f}")
    assert mine < 0.9 * prior


def test_a_run_owns_its_memory():
    """A second run from the same object, and one begun while another is on its way, remember nothing of it."""
    batch, network = batch_of(SOFT), Anchored(Counted(), SOFT, measured_of(SOFT), FEW)
    first = sample(network, CONFIDENT, batch, 4, seed=1)[0].tokens
    run = iterate(network, CONFIDENT, batch, 4, seed=1)
    next(run), next(run)
    assert torch.equal(sample(network, CONFIDENT, batch, 4, seed=1)[0].tokens, first)
    *_, (state, _) = run
    assert torch.equal(state.tokens, first) and not network.memory
    cold = sample(replace(network, warm=False), CONFIDENT, batch, 4, seed=1)[0].tokens
    assert not torch.equal(cold, first)


def test_copies_of_a_row_cannot_share_a_memory():
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    network, kernel = Anchored(Counted(), SOFT, measured, FEW), Selected(CONFIDENT, SOFT, measured, count=2)
    with pytest.raises(ValueError, match="rows of the run repeat in one call.*give warm=False"):
        sample(network, kernel, batch, 4, seed=1)
    assert bool(sample(replace(network, warm=False), kernel, batch, 4, seed=1)[0].committed.all())


def test_guidance_around_it_keeps_two_memories():
    """Both passes of guidance are fitted apart: what one remembers is not the other's."""
    batch = batch_of(SOFT)
    network = Anchored(Counted(), SOFT, measured_of(SOFT), FEW)
    guided = ClassifierFree(network, 1.5, Unprompted(("words",))).start(batch)
    assert guided.other is not None and guided.other.memory is not guided.inner.memory
    assert bool(sample(ClassifierFree(network, 1.5), CONFIDENT, batch, 4, seed=1)[0].committed.all())


def test_no_gradient_reaches_the_network():
    """Parameters have no gradient, and no prediction carries a graph, though the network has been told nothing."""
    vocab = layout_of(SOFT).vocab
    model = network(VocabLayout(vocab.text_size, vocab.modalities), time_conditioning=False)
    assert all(p.requires_grad for p in model.parameters())
    batch, measured, seen = batch_of(SOFT), measured_of(SOFT), []

    def look(state, step, fit):
        seen.append(fit.logits.requires_grad or fit.losses.requires_grad)

    sample(Anchored(ModelDenoiser(model), SOFT, measured, FEW, watch=look), CONFIDENT, batch, 4, seed=1)
    for name in ("star", "steered", "selected", "best"):
        METHODS[name](ModelDenoiser(model), batch, SOFT, measured, 3)
    assert seen and not any(seen) and all(p.grad is None for p in model.parameters())


def test_a_segment_with_an_end_token_and_words_beside_it():
    """Sites may allow more than codes: what else could stand there is left out of tables and choices."""
    soft = SoftDecode(SOFT.codebook, SOFT.decode, SOFT.quantise, "code")
    layout = layout_of(soft)
    words, code = layout.segments
    layout = replace(layout, segments=(words, replace(code, extras=("EOC_code",))))
    batch = batch_of(soft)._replace(layout=layout)
    state, _ = sample(Anchored(Counted(), soft, measured_of(soft), FEW), CONFIDENT, batch, 4, seed=1)
    assert bool((state.batch.symbols(state.tokens)[:, 2:] < 12).all())


def test_measured_repeat_goes_with_best_of_an_anchored_network():
    batch, measured = batch_of(SOFT), measured_of(SOFT)
    network = Anchored(Counted(), SOFT, measured.repeat(3), FEW, take="sample")
    state, info = best_of(Sampler(CONFIDENT, Common(steps=4)), network, batch, SOFT, measured, 3)
    assert len(state.tokens) == ROWS and info.decoded > 3 * ROWS
