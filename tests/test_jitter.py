"""Visible numbers shown inexactly: the law of what is shown, what stays as it is, and that targets do."""

import math

import pytest
import torch

from discdiff.layout import Layout, make_batch
from discdiff.maskers import FixedCount
from discdiff.noise import Noise
from discdiff.objectives import Autoregressive, Elbo, Jitter
from discdiff.processes import Absorbing, Uniform
from discdiff.values import CodeValues
from tests.values_toy import ACTIONS, EVEN, LAYOUT, LEVELS, VALUES, VOCAB, K, network


def batch_of(rows=4000, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tables = LAYOUT.tables()
    symbols = (torch.rand(rows, LAYOUT.length, generator=draw) * tables.size).long()
    return make_batch(LAYOUT, symbols + tables.first)


def test_shown_numbers_have_the_law_of_their_formula_and_all_else_stays():
    batch, width = batch_of(40_000), 0.3
    middle = K // 2
    symbols = batch.symbols(batch.tokens)
    symbols[:, ACTIONS] = middle
    tokens = batch.ids(symbols)
    tokens[:, ACTIONS[-1]] = LAYOUT.vocab.mask
    shown = Jitter(VALUES, width)(batch, tokens, Noise.seeded(0, batch.valid))
    still = torch.ones(LAYOUT.length, dtype=torch.bool)
    still[ACTIONS[:-1]] = False
    assert torch.equal(shown[:, still], tokens[:, still])
    codes = batch.symbols(shown)[:, ACTIONS[0]]
    edges = torch.cat([torch.tensor([-math.inf]), (EVEN[1:] + EVEN[:-1]) / 2, torch.tensor([math.inf])])
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    below = torch.special.ndtr((edges - EVEN[middle]) / (width * u[:, None])).mean(0)
    assert torch.allclose(torch.bincount(codes, minlength=K) / len(codes), below.diff().float(), atol=0.008)
    off = batch.symbols(shown)[:, ACTIONS[1]]  # the uneven levels of the second dimension
    assert torch.equal(off, (LEVELS[1][off][:, None] - LEVELS[1]).abs().argmin(1)) and len(off.unique()) > 3
    first, second = (batch.symbols(shown)[:, ACTIONS[i]] == middle for i in (0, 2))
    assert float((first & second).double().mean()) > 1.05 * float(
        first.double().mean() * second.double().mean()
    )  # one u


def test_a_row_is_shown_the_same_beside_others():
    batch = batch_of(6)
    noise, jitter = Noise.seeded(3, batch.valid), Jitter(VALUES, 0.5)
    whole = jitter(batch, batch.tokens, noise)
    index = torch.tensor([4, 1])
    assert torch.equal(jitter(batch.rows(index), batch.tokens[index], noise.rows(index)), whole[index])
    assert not torch.equal(whole, batch.tokens)


def test_the_loss_keeps_its_targets_and_a_tiny_width_changes_nothing():
    batch, model, time = batch_of(12), network(), torch.linspace(0.1, 0.9, 12)
    noise = Noise.seeded(1, batch.valid)
    losses = []
    for width in (None, 1e-9, 0.5):
        jitter = None if width is None else Jitter(VALUES, width)
        losses.append(Elbo(Absorbing(), masker=FixedCount(), jitter=jitter)(model, batch, noise, time)[0])
    assert torch.equal(losses[0], losses[1]) and losses[2] != losses[0]
    seen = {}

    def spy(batch, time, objective):
        seen["tokens"] = batch.tokens
        return model(batch=batch, time=time, objective=objective)

    class Spy:
        select, head_weight = model.select, model.head_weight

        def __call__(self, **arguments):
            return spy(**arguments)

    Elbo(Absorbing(), masker=FixedCount(), jitter=Jitter(VALUES, 0.5))(Spy(), batch, noise, time)
    hidden = seen["tokens"] == LAYOUT.vocab.mask
    exact = Elbo(Absorbing(), masker=FixedCount()).corrupt(batch, noise, 1e-3 + (1 - 1e-3) * time.double())[0]
    assert torch.equal(hidden, exact == LAYOUT.vocab.mask)  # which are hidden is the masker's business


def test_an_autoregressive_twin_is_shown_it_too():
    causal = Layout(VOCAB, LAYOUT.segments, attention="causal")
    batch, model = batch_of(8)._replace(layout=causal), network(causal)
    noise = Noise.seeded(1, batch.valid)
    exact, tiny, wide = (
        Autoregressive(jitter)(model, batch, noise, None)[0] for jitter in (None, Jitter(VALUES, 1e-9), Jitter(VALUES))
    )
    assert torch.equal(exact, tiny) and wide != exact


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Jitter(VALUES, 0.0), "width is 0.0: above 0"),
        (lambda: Jitter(VALUES, math.inf), "width is inf"),
        (lambda: Jitter({"action": EVEN}), "CodeValues"),
        (lambda: Elbo(Uniform(), jitter=Jitter(VALUES)), "Uniform replaces them itself"),
        (lambda: Jitter(CodeValues({"sound": EVEN}))(batch_of(2), batch_of(2).tokens, None), "segments of the layout"),
    ],
)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
