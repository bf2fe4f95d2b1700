"""UD-VLA (arXiv 2511.01718) as a sampler: early closing, pre-filled tokens, rankings apart and joint, exact caches."""

from math import cos, pi

import pytest
import torch
from fit.test_ud_vla import ACTION, END, FUTURE, IMAGE, LAYOUT, MODEL, MOVES, VOCAB

from discdiff import Commit, Layout, ModelDenoiser, Quota, Segment, make_batch, sampler
from discdiff.schedules import CosineMD4
from discdiff.scores import Annealed, Candidate


def blank(rows, layout=LAYOUT):
    prompt = layout.tables().segment == 0
    return make_batch(layout, torch.where(prompt, 1, torch.full((rows, layout.length), VOCAB.mask)))


def quota(slots, step, steps=5):
    return int(slots * cos(pi * step / (2 * steps)) + 1e-6)


def states(batch, name="ud_vla", seed=0, **knobs):
    return [state for state, _ in sampler(name, **knobs).iterate(ModelDenoiser(MODEL), batch, seed)]


def test_preset_closes_what_follows_an_end():
    found = states(blank(64), steps=5, end="EOC_action")
    assert [int((s.free & ~s.committed)[:, IMAGE].sum(1).unique()) for s in found] == [12, 11, 9, 7, 3, 0]
    whole = found[1].valid.all(1)
    assert ((found[1].free & ~found[1].committed)[whole][:, ACTION].sum(1) == 7).all()
    last = found[-1]
    ended = ((last.tokens == END).cumsum(1) - (last.tokens == END).long()) > 0
    assert 5 < ended.any(1).sum() < 64 and (last.tokens[ended] == VOCAB.pad).all() and (last.valid == ~ended).all()


@pytest.mark.parametrize("cache", ["none", "prefix", "block"])
def test_pre_filled_tokens_stay_and_are_not_counted(cache):
    marks = [("BOM_image", FUTURE), ("EOM_image", None), ("BOM_action", MOVES), ("EOM_action", None)]
    segments = [LAYOUT.segments[0]]
    for mark, part in marks:
        segments += [Segment(mark, "special", (1,), noised=False), *([part] if part else [])]
    layout = Layout(VOCAB, tuple(segments), "hybrid")
    batch, image = blank(16, layout), layout.columns("image")
    for mark, _ in marks:
        batch.tokens[:, layout.columns(mark)] = VOCAB.special(mark)
    batch.tokens[:, image[:2]] = VOCAB.range("image")[0] + 4  # known beforehand, such as a picture's size
    batch = batch._replace(given=(torch.arange(layout.length) == image[:2, None]).any(0).expand(16, -1))
    fixed = batch.tokens != VOCAB.mask
    assert fixed.sum(1).unique() == 3 + 4 + 2
    for k, state in enumerate(states(batch, steps=5, cache=cache)):
        assert torch.equal(state.tokens[fixed], batch.tokens[fixed])
        assert ((~state.committed)[:, image].sum(1) == quota(10, k)).all()
        assert ((~state.committed)[:, layout.columns("action")].sum(1) == quota(8, k)).all()
    assert ((state.tokens != VOCAB.mask).all(1)).all()


@pytest.mark.parametrize("name", ["ud_vla", "ud_vla_released"])
def test_ranked_jointly_only_the_whole_follows_the_schedule(name):
    """As released: one ranking of all slots, in which a modality may run ahead of the other."""
    hidden = []
    for jointly in (False, True):
        left = torch.stack([(~s.committed).long() for s in states(blank(64), name, 2, steps=5, jointly=jointly)])
        hidden.append(torch.stack([left[..., IMAGE].sum(-1), left[..., ACTION].sum(-1)], -1))
    apart, together = hidden
    assert (apart == torch.tensor([[quota(12, k), quota(8, k)] for k in range(6)])[:, None]).all()
    assert (together.sum(-1) == torch.tensor([quota(20, k) for k in range(6)])[:, None]).all()
    assert len(together[2].unique(dim=0)) > 1
    released = Commit(Annealed(Candidate(), 1.0, "cumulative"), Quota(CosineMD4()), jointly=True)
    assert sampler("ud_vla_released").kernel == released and not sampler("ud_vla").kernel.jointly


@pytest.mark.parametrize("end", ["", "EOC_action"])
@pytest.mark.parametrize("cache", ["prefix", "block"])
@pytest.mark.parametrize("name", ["ud_vla", "dd_vla"])
def test_caches_change_nothing_at_any_step(name, cache, end):  # J2
    plain, cached = (
        list(sampler(name, cache=x, end=end, steps=12).iterate(ModelDenoiser(MODEL), blank(16), 1))
        for x in ("none", cache)
    )
    for (a, cost), (b, less) in zip(plain, cached, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed) and cost.nfe == less.nfe
    if end:
        assert not bool(a.valid.all())
    else:
        assert [info.fed for _, info in cached][2:12] == [info.fed * 20 // 23 for _, info in plain][2:12]
