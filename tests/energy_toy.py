"""The committed toy seen by energies: its autoregressive conditionals, and every masked state with all its candidates."""

import itertools

import torch

from discdiff.energy.base import Candidates
from discdiff.layout import make_batch
from discdiff.processes import Absorbing
from discdiff.testing import toy
from discdiff.types import State

TOY = toy()
CUBE = TOY.p.view(3, 3, 3, 3)
MASK = TOY.layout.vocab.mask


def toy_log_probs(batch):
    """log P(x_i | x_<i) of the committed toy; absent symbols may hold anything."""
    x = batch.tokens.clamp(max=2)
    before = [torch.ones(len(x), dtype=torch.float64)]
    for i in range(4):
        prefix = CUBE.sum(tuple(range(i + 1, 4))) if i < 3 else CUBE
        before.append(prefix[tuple(x[:, : i + 1].T)])
    return torch.stack([(b / a).log() for a, b in itertools.pairwise(before)], 1)


def state_of(batch, time=0.5):
    unknown = batch.free & (batch.tokens == batch.layout.vocab.mask)
    t = torch.full(batch.tokens.shape, time, dtype=torch.float64)
    return State(batch.tokens, batch.given, batch.valid, ~unknown, t, torch.arange(len(t)), batch, {}, {})


def every_candidate(unknown, law):
    """All states with exactly the positions `unknown` masked, and all their candidates with the proposal's log `law`."""
    seen = TOY.table.clone()
    seen[:, unknown] = MASK
    seen = seen.unique(dim=0)
    fill = torch.cartesian_prod(*[torch.arange(3)] * len(unknown)).view(-1, len(unknown))
    tokens = seen[:, None].repeat(1, len(fill), 1)
    tokens[..., unknown] = fill
    drawn = torch.zeros(len(seen), 4, dtype=torch.bool)
    drawn[:, unknown] = True
    chance = law(seen)[:, None].expand(-1, len(fill), -1, -1).gather(-1, tokens[..., None])[..., 0]
    return state_of(make_batch(TOY.layout, seen)), Candidates(tokens, torch.where(drawn[:, None], chance, 0.0), drawn)


def exact_law(seen):
    x = torch.where(seen == MASK, 3, seen)
    return TOY.posterior(x, torch.where(x == 3, 0.5, 0.0).double(), Absorbing())


def random_law(seen):
    generator = torch.Generator().manual_seed(int((seen * torch.tensor([1, 7, 31, 97])).sum()))
    return torch.randn(*seen.shape, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
