"""UD-VLA (arXiv 2511.01718): future image and actions denoised together, ranked apart; an end token closes later slots."""

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any

import pytest
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
    sampler,
)
from discdiff.schedules import CosineMD4
from discdiff.scores import Annealed, Candidate

VOCAB = VocabLayout(7, (Modality("image", 9), Modality("action", 5)))
FUTURE, MOVES = Segment("image", "image", (3, 4)), Segment("action", "action", (8,), axes="t", extras=("EOC_action",))
LAYOUT = Layout(VOCAB, (Segment("prompt", "text", (3,), noised=False), FUTURE, MOVES), "hybrid")
IMAGE, ACTION, END = LAYOUT.columns("image"), LAYOUT.columns("action"), VOCAB.special("EOC_action")
CONFIG = DiscDiffConfig(hidden_size=32, num_layers=2, num_heads=2, vocab=asdict(VOCAB), initializer_range=0.2)
MODEL = DiscDiffModel.seeded(CONFIG, 1, torch.float64).eval()


def blank(rows):
    tokens = torch.full((rows, LAYOUT.length), VOCAB.mask)
    return make_batch(LAYOUT, torch.where(LAYOUT.tables().segment == 0, 1, tokens))


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
    batch = blank(64)
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


def test_preset_closes_what_follows_an_end():
    states = [s for s, _ in sampler("ud_vla", steps=5, end="EOC_action").iterate(ModelDenoiser(MODEL), blank(64))]
    assert [int((s.free & ~s.committed)[:, IMAGE].sum(1).unique()) for s in states] == [12, 11, 9, 7, 3, 0]
    whole = states[1].valid.all(1)
    assert ((states[1].free & ~states[1].committed)[whole][:, ACTION].sum(1) == 7).all()
    last = states[-1]
    ended = ((last.tokens == END).cumsum(1) - (last.tokens == END).long()) > 0
    assert 5 < ended.any(1).sum() < 64 and (last.tokens[ended] == VOCAB.pad).all() and (last.valid == ~ended).all()


@pytest.mark.parametrize("name", ["ud_vla", "ud_vla_released"])
def test_ranked_jointly_only_the_whole_follows_the_schedule(name):
    """As released: one ranking of all slots, in which a modality may run ahead of the other."""
    hidden = []
    for jointly in (False, True):
        run = sampler(name, steps=5, jointly=jointly).iterate(ModelDenoiser(MODEL), blank(64), seed=2)
        left = torch.stack([(~state.committed).long() for state, _ in run])
        hidden.append(torch.stack([left[..., IMAGE].sum(-1), left[..., ACTION].sum(-1)], -1))
    apart, together = hidden
    expected = torch.tensor([[int(n * cos(pi * k / 10) + 1e-6) for n in (12, 8)] for k in range(6)])
    assert (apart == expected[:, None]).all()
    assert (together.sum(-1) == torch.tensor([int(20 * cos(pi * k / 10) + 1e-6) for k in range(6)])[:, None]).all()
    assert len(together[2].unique(dim=0)) > 1
    released = Commit(Annealed(Candidate(), 1.0, "cumulative"), Quota(CosineMD4()), jointly=True)
    assert sampler("ud_vla_released").kernel == released and not sampler("ud_vla").kernel.jointly


@pytest.mark.parametrize("name", ["ud_vla", "dd_vla"])
def test_the_prefix_cache_changes_nothing_at_any_step(name):  # J2
    plain, cached = (
        list(sampler(name, cache=x).iterate(ModelDenoiser(MODEL), blank(3), 1)) for x in ("none", "prefix")
    )
    for (a, cost), (b, less) in zip(plain, cached, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed) and cost.nfe == less.nfe
    assert [info.fed for _, info in cached][2:12] == [info.fed * 20 // 23 for _, info in plain][2:12]
