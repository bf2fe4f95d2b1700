"""UD-VLA (arXiv 2511.01718): future image and actions denoised together, ranked apart; an end token closes later slots."""

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any

import torch

from discdiff import (
    Commit,
    DiscDiffConfig,
    DiscDiffModel,
    Layout,
    Modality,
    ModelDenoiser,
    Quota,
    Segment,
    Sure,
    VocabLayout,
    iterate,
    make_batch,
)
from discdiff.schedules import CosineMD4

VOCAB = VocabLayout(7, (Modality("image", 9), Modality("action", 5)))
FUTURE, MOVES = Segment("image", "image", (3, 4)), Segment("action", "action", (8,), axes="t", extras=("EOC_action",))
LAYOUT = Layout(VOCAB, (Segment("prompt", "text", (3,), noised=False), FUTURE, MOVES), "hybrid")
IMAGE, ACTION, END = LAYOUT.columns("image"), LAYOUT.columns("action"), VOCAB.special("EOC_action")
CONFIG = DiscDiffConfig(hidden_size=32, num_layers=2, num_heads=2, vocab=asdict(VOCAB), initializer_range=0.2)
MODEL = DiscDiffModel.seeded(CONFIG, 1, torch.float64).eval()


@dataclass(frozen=True)
class Closing:
    inner: Any

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, denoiser, state, step, noise):
        state, info = self.inner(denoiser, state, step, noise)
        end = (state.tokens == END) & state.committed
        return state.close((end.cumsum(1) > end.long()) & (LAYOUT.tables().segment == 2)), info


def test_two_segments_one_run():
    tokens = torch.full((64, LAYOUT.length), VOCAB.mask)
    batch = make_batch(LAYOUT, torch.where(LAYOUT.tables().segment == 0, 1, tokens))
    states = [
        state for state, _ in iterate(ModelDenoiser(MODEL), Closing(Commit(Sure(), Quota(CosineMD4()))), batch, 5)
    ]
    for k, state in enumerate(states):  # each segment follows the schedule over its own slots
        hidden, share = state.free & ~state.committed, cos(pi * k / 10)
        assert (hidden[:, IMAGE].sum(1) == int(12 * share + 1e-6)).all()
        assert (hidden[state.valid.all(1)][:, ACTION].sum(1) == int(8 * share + 1e-6)).all()
    last, end = states[-1], states[-1].tokens == END
    closed = end.cumsum(1) > end.long()
    assert 5 < end.any(1).sum() < 64 and (last.valid == ~closed).all() and (last.tokens[closed] == VOCAB.pad).all()
    symbols = batch.symbols(last.tokens)[last.free]
    assert ((symbols >= 0) & (symbols < batch.alphabet.size[last.free])).all()
    hidden = {}
    for name in ("image", "action"):
        moved = torch.where(torch.arange(LAYOUT.length) == LAYOUT.columns(name)[0], VOCAB.range(name)[0], batch.tokens)
        hidden[name] = MODEL(batch=batch._replace(tokens=moved)).hidden - MODEL(batch=batch).hidden
    assert (hidden["action"][:, IMAGE] == 0).all()  # images never see actions
    assert (hidden["image"][:, ACTION] != 0).all()
