"""Block diffusion (arXiv 2503.09573): trained on a doubled layout, sampled block by block with a cache of finished blocks."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from discdiff import (
    Ancestral,
    Blocks,
    Commit,
    DiscDiffConfig,
    DiscDiffModel,
    Info,
    Layout,
    ModelDenoiser,
    Prediction,
    Segment,
    Sure,
    VocabLayout,
    make_batch,
    sample,
)
from discdiff.models import KVCache

SIZE, LENGTH, VOCAB = 4, 12, VocabLayout(6)
LAYOUT = Layout(VOCAB, (Segment("text", "text", (LENGTH,)),), "block_causal", block=SIZE)
CONFIG = DiscDiffConfig(hidden_size=32, num_layers=2, num_heads=2, vocab=asdict(VOCAB), initializer_range=0.3)
MODEL = DiscDiffModel.seeded(CONFIG, 0, torch.float64).eval()


@dataclass(frozen=True)
class Cached(ModelDenoiser):
    cache: Any = None

    def start(self, batch):
        return replace(self, cache=KVCache(self.model, batch))

    @torch.no_grad()
    def __call__(self, state, step):
        batch, cache, cost = state.batch._replace(tokens=state.tokens), self.cache.rows(state.row), Info()
        active = (step.s < step.t).any(0).nonzero()[:, 0]
        for block in torch.arange(LENGTH).split(SIZE)[: int(active[0]) // SIZE]:  # finished blocks are fed once, clean
            if len(rows := (~cache.filled[:, block[0]]).nonzero()[:, 0]):
                self.model(batch=batch.rows(rows), columns=block, cache=cache.rows(rows), store=True)
                cost = cost.merge(Info(1, len(rows), 0, len(rows) * SIZE))
        hidden = self.model(batch=batch, columns=active, cache=cache).hidden
        cost = cost.merge(Info(1, len(state.row), 0, len(state.row) * len(active)))
        head = self.model.head_weight(*LAYOUT.alphabets[0]).T
        logits = lambda index, number: self.model.select(hidden, batch, index, columns=active) @ head  # noqa: E731
        return Prediction(batch, logits, cost=cost)


def test_cache_changes_no_token_and_training_sees_what_sampling_sees():
    empty, pair = make_batch(LAYOUT, torch.full((6, LENGTH), VOCAB.mask)), (ModelDenoiser(MODEL), Cached(MODEL))
    for kernel in (Ancestral(), Commit(Sure())):
        (plain, slow), (last, fast) = (sample(d, kernel, empty, LENGTH, seed=3, clock=Blocks(SIZE)) for d in pair)
        assert (plain.tokens == last.tokens).all() and slow.nfe < fast.nfe and fast.fed < 0.6 * slow.fed
    clean, place = last.tokens, torch.arange(LENGTH)
    noisy = torch.where(place % 2 == 0, VOCAB.mask, clean)
    trained = MODEL(batch=make_batch(LAYOUT.doubled(SIZE), torch.cat([noisy, clean], 1))).hidden
    for block in place.split(SIZE):
        sampled = MODEL(batch=make_batch(LAYOUT, torch.where(place < block[0], clean, noisy))).hidden
        assert torch.allclose(sampled[:, block], trained[:, block], atol=1e-12) and len(set(clean[:, 0].tolist())) > 1
