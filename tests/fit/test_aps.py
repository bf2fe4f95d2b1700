"""APS (arXiv 2510.02291): the prediction becomes a table optimised against a measurement through a straight-through decode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from discdiff import (
    Commit,
    FunctionDenoiser,
    Layout,
    Modality,
    Quota,
    Segment,
    Sure,
    Temperature,
    VocabLayout,
    make_batch,
    sample,
)
from discdiff.denoisers import Wrapper, table
from discdiff.schedules import CosineMD4


@dataclass(frozen=True)
class Anchored(Wrapper):
    codebook: Any  # (codes, dim)
    decode: Callable  # (batch, slots, dim) -> what is measured, to be compared with the feature "y"
    rounds: int = 40

    def __call__(self, state, step):
        prediction, shape, codes = self.inner(state, step), state.tokens.shape, len(self.codebook)
        phi = prediction.log_probs(torch.arange(shape.numel())).view(*shape, codes).clone().requires_grad_()
        known = torch.nn.functional.one_hot(state.batch.symbols(state.tokens).clamp(max=codes - 1), codes)
        adam = torch.optim.Adam([phi], 0.2)
        for _ in range(self.rounds):
            mean = torch.where(state.committed[..., None], known, phi.softmax(-1)) @ self.codebook
            nearest = self.codebook[torch.cdist(mean, self.codebook).argmin(-1)]
            error = (self.decode(mean + (nearest - mean).detach()) - state.batch.features["y"]).abs().sum()
            (phi.grad,) = torch.autograd.grad(error, phi)
            adam.step()
        return table(state.batch, phi.detach())


def test_the_measurement_is_met(rows=8, slots=6, codes=16):
    layout = Layout(VocabLayout(modalities=(Modality("image", codes),)), (Segment("image", "image", (2, 3)),))
    seeded = torch.Generator().manual_seed(1)
    codebook, mix, prior = (torch.randn(*n, generator=seeded).double() for n in ((codes, 3), (3, 2), (slots, codes)))
    plain = FunctionDenoiser(lambda state, step: prior.expand(len(state.row), slots, codes))

    def decode(e):  # neighbouring slots are blurred together and one of three channels is lost
        return torch.tanh((e + e.roll(1, 1)) @ mix)

    y = decode(codebook[torch.randint(codes, (rows, slots), generator=seeded)])
    batch = make_batch(layout, torch.full((rows, slots), layout.vocab.mask), features={"y": y})
    kernel, parts = (
        Commit(Sure(), Quota(CosineMD4())),
        (plain, *(Anchored(plain, codebook, decode, n) for n in (0, 40))),
    )
    tokens = [sample(Temperature(part, 0.0), kernel, batch, 4)[0].tokens for part in parts]
    miss = [float((decode(codebook[batch.symbols(x)]) - y).abs().mean()) for x in tokens]
    assert (tokens[0] == tokens[1]).all() and miss[2] < 0.35 * miss[0]  # no rounds: the plain sampler, token for token
