"""Which positions carry loss, which hidden state answers for them, and what an objective refuses."""

import pytest
import torch
from table_toy import BOTH, FREE, MIXED, Table, network, noise_of, rows_of

from discdiff.clocks import Priority
from discdiff.layout import Layout, pack
from discdiff.maskers import Bernoulli, FixedCount
from discdiff.objectives import Elbo
from discdiff.processes import Absorbing, MaskOrReplace, PerSegment, Uniform

MASK, MASK_OUTSIDE = MIXED.vocab.mask, FREE.vocab.mask


class Slots(Table):
    """A network whose hidden states are simply a parameter: their gradients show which slots carry loss."""

    def __init__(self, batch, width=20):
        draw = torch.Generator().manual_seed(1)
        shape = len(batch.tokens), len(batch.lead), width
        self.hidden = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
        self.weight, self.times = torch.randn(20, width, generator=draw, dtype=torch.float64), []

    def cavity(self, batch, time):
        self.times.append(time)
        return self.hidden

    def head_weight(self, first, size, extras=()):
        return self.weight[: size + len(extras)]


def carries(goal, batch, seed=0, model=None):
    """Slots with a gradient (batch, slots) bool, the noisy tokens and the loss."""
    model = model or Slots(batch)
    noise, time = noise_of(batch, seed)
    loss, _ = goal(model, batch, noise, time)
    (gradient,) = torch.autograd.grad(loss, model.hidden)
    return (gradient != 0).any(-1), goal.corrupt(batch, noise, goal.time_min + (1 - goal.time_min) * time)[0], loss


def blocked(layout):
    """Rows with given and absent positions: the batch and where they are."""
    given = torch.arange(layout.length)[None] % 4 == torch.arange(5)[:, None] % 4
    valid = torch.arange(layout.length) < torch.tensor([12, 12, 11, 8, 12])[:, None]
    return rows_of(layout, given=given, valid=valid)


@pytest.mark.parametrize("goal", [Elbo(), Elbo(masker=FixedCount())], ids=["process", "masker"])
def test_only_masked_free_positions_carry_loss(goal):
    batch = blocked(MIXED)
    found, tokens, _ = carries(goal, batch)
    hidden = batch.free & (tokens == MASK)
    assert torch.equal(found, hidden) and 3 < int(hidden.sum()) < int(batch.free.sum())
    assert torch.equal(tokens[~hidden], batch.tokens[~hidden])


def test_uniform_noise_costs_at_every_free_position():
    batch = blocked(FREE)
    found, tokens, _ = carries(Elbo(Uniform()), batch)
    assert torch.equal(found, batch.free)
    assert torch.equal(tokens[~batch.free], batch.tokens[~batch.free]) and (tokens != batch.tokens).sum() > 5
    found, tokens, _ = carries(Elbo(BOTH), batch)
    sound = batch.alphabet.segment == 2
    assert torch.equal(found, batch.free & (sound | (tokens == MASK_OUTSIDE)))
    assert not (tokens[sound] == MASK_OUTSIDE).any() and (tokens[~sound] == MASK_OUTSIDE).any()


def test_shifted_predictions_come_from_the_slot_before():
    batch = blocked(MIXED)
    plain, shifted = (carries(Elbo(shift=shift), batch)[0] for shift in (False, True))
    assert torch.equal(shifted, plain.roll(-1, 1)) and not plain[:, 0].any()
    samples = [torch.arange(1, 1 + n) for n in (3, 2)]
    packed = pack(Layout(FREE.vocab, FREE.segments[1:2]), samples, 5)
    found, tokens, _ = carries(Elbo(shift=True, time_min=0.99), packed)
    assert (tokens == MASK_OUTSIDE).all()  # all five are asked for; a sample's first slot is its own source
    assert found[0].tolist() == [True, True, False, True, False]


def test_training_stays_away_from_time_zero():
    batch = blocked(MIXED)
    for goal in (Elbo(time_min=0.4), Elbo(masker=Bernoulli(), time_min=0.4)):
        model = Slots(batch)
        goal(model, batch, noise_of(batch)[0], torch.linspace(0, 1, 5))
        torch.testing.assert_close(model.times[0].amax(1), torch.linspace(0.4, 1, 5).double(), rtol=0, atol=1e-7)
        assert torch.equal(model.times[0] > 0, batch.free), "what does not move is told as clean, as in sampling"


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), BOTH], ids=repr)
def test_nothing_hidden_costs_nothing_and_has_a_gradient(process):
    model = network(FREE.vocab)
    batch = rows_of(FREE, given=torch.ones(5, FREE.length, dtype=torch.bool))
    loss, metrics = Elbo(process)(model, batch, *noise_of(batch))
    loss.backward()
    assert float(loss.detach()) == 0 and not metrics["nats"].any()
    assert all(p.grad is not None and not p.grad.any() for p in (model.embed.weight, model.norm.weight))


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), BOTH], ids=repr)
def test_bfloat16_runs(process):
    model, wide = network(FREE.vocab, torch.bfloat16), network(FREE.vocab)
    wide.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    batch = rows_of(FREE, 64)
    (loss, metrics), (exact, _) = (Elbo(process)(each, batch, *noise_of(batch)) for each in (model, wide))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert metrics["nats"].dtype == torch.float64 and torch.isfinite(model.embed.weight.grad).all()


REFUSED = {
    "goes with Absorbing, not with Uniform": lambda: Elbo(Uniform(), masker=Bernoulli()),
    "Priority.* would have no say": lambda: Elbo(masker=Bernoulli(), clock=Priority()),
    "time_min 1": lambda: Elbo(time_min=1),
    "time_min -0.1": lambda: Elbo(time_min=-0.1),
    "no process for segments .'sound'.": lambda: carries(Elbo(PerSegment({"words": Absorbing()})), rows_of(FREE)),
    "PerSegment names 'noise'": lambda: carries(Elbo(PerSegment({**BOTH.parts, "noise": Uniform()})), rows_of(FREE)),
    "mask_id 5 is a text id, which Uniform": lambda: carries(Elbo(Uniform()), rows_of(MIXED)),
    "MaskOrReplace would draw as noise: segment 'words'": lambda: carries(
        Elbo(PerSegment({"words": MaskOrReplace(), "sound": Uniform()})), rows_of(MIXED)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
