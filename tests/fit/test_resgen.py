"""ResGen (arXiv 2412.10208): the network predicts the sum of a slot's hidden RVQ levels as a mixture of Gaussians."""

from dataclasses import dataclass

import torch
from torch import Tensor

from discdiff import (
    Commit,
    DepthPrefix,
    FunctionDenoiser,
    Layout,
    Modality,
    Noise,
    Prediction,
    Quota,
    Segment,
    Sure,
    VocabLayout,
    iterate,
    make_batch,
)
from discdiff.denoisers import Drawn, inverse_cdf
from discdiff.maskers import DepthSuffix
from discdiff.noise import LATENT
from discdiff.schedules import CosineMD4

SLOTS, DEPTH, CODES, DIM = 5, 4, 8, 3
LAYOUT = Layout(VocabLayout(modalities=(Modality("sound", CODES, DEPTH),)), (Segment("sound", "sound", (SLOTS,)),))
seeded, LEVELS = torch.Generator().manual_seed(0), torch.arange(DEPTH)
BOOKS = torch.randn(DEPTH, CODES, DIM, generator=seeded).double() * 0.6 ** LEVELS[:, None, None]


def quantise(z, hidden):
    """Greedy RVQ of z (n, dim) by the books of the hidden levels (n, depth): codes and what is left, both (n, depth)."""
    codes, left = [], []
    for book, is_hidden in zip(BOOKS, hidden.unbind(1), strict=True):
        codes.append(torch.cdist(z, book).argmin(-1))
        z = z - book[codes[-1]] * is_hidden[:, None]
        left.append(z.norm(dim=-1))
    return torch.stack(codes, -1), torch.stack(left, -1)


@dataclass(frozen=True, kw_only=True)
class Mixture(Prediction):
    hidden: Tensor  # (batch * slots, depth)
    weight: Tensor  # (parts,)
    mean: Tensor  # (batch * slots, parts, dim)

    def draw(self, index, noise, stream, statistics=()):
        slot, first = index // DEPTH, index // DEPTH * DEPTH
        part = inverse_cdf(self.weight.expand(len(slot), -1), noise.uniform(stream, first))
        z = self.mean[slot, part] + 0.01 * noise.normal(LATENT, DIM, first)  # one vector per slot, whoever asks
        codes, left = (x.gather(1, (index % DEPTH)[:, None])[:, 0] for x in quantise(z, self.hidden[slot]))
        return Drawn(self.batch.ids(codes, index), -left, {"confidence": (-left).exp()})


def network(state, step):
    """Knows each slot's vector h: the hidden levels sum to h minus the kept ones, up to a small second part."""
    hidden, codes = (~state.committed).view(-1, DEPTH), state.batch.symbols(state.tokens).view(-1, DEPTH)
    rest = state.batch.features["h"] - (BOOKS[LEVELS, codes % CODES] * ~hidden[..., None]).sum(1).view(-1, SLOTS, DIM)
    mean, weight = torch.stack([rest, 1.1 * rest], 2).view(-1, 2, DIM), torch.tensor([0.9, 0.1])
    return Mixture(state.batch, None, hidden=hidden, weight=weight, mean=mean)


def test_levels_are_kept_coarse_first_and_the_vector_comes_back():
    h = torch.randn(6, SLOTS, DIM, generator=seeded).double()
    batch = make_batch(LAYOUT, torch.full((6, SLOTS * DEPTH), LAYOUT.vocab.mask), features={"h": h})
    masked = DepthSuffix()(batch, Noise.seeded(1, batch.valid), torch.linspace(0.1, 0.9, 6)).hidden
    kernel = Commit(DepthPrefix(Sure("confidence")), Quota(CosineMD4()))
    states = [state for state, _ in iterate(FunctionDenoiser(network), kernel, batch, 7)]
    kept = torch.stack([~masked, *(state.committed for state in states)])
    assert (kept.view(-1, DEPTH).long().diff(dim=-1) <= 0).all() and kept[1:].sum((1, 2)).diff().min() > 0
    found = BOOKS[LEVELS, batch.symbols(states[-1].tokens).view(-1, DEPTH)].sum(1)
    best = quantise(h.view(-1, DIM), torch.ones(6 * SLOTS, DEPTH))[1][:, -1]
    assert (found - h.view(-1, DIM)).norm(dim=-1).mean() < 1.2 * best.mean()
