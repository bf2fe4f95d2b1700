"""Replan: how many positions hold a token, which ones, and that committed ones compete (P2, Token-Critic)."""

import math

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Commit,
    CosineMD4,
    FunctionDenoiser,
    Geometric,
    Layout,
    Linear,
    Modality,
    Noise,
    Quota,
    Segment,
    Sure,
    Uniform,
    UserScore,
    VocabLayout,
    Windows,
    iterate,
    make_batch,
    sample,
)
from discdiff.kernels.replan import Replan
from discdiff.noise import TOKEN
from discdiff.scores import SCORES, Annealed, Candidate, Critic, DepthPrefix
from discdiff.testing import check_conformance, check_kernel, toy
from discdiff.types import Step

VOCAB = VocabLayout(6, (Modality("image", 9), Modality("action", 5, depth=2)))
PICTURE, MOVES = Segment("image", "image", (3, 3)), Segment("action", "action", (3,))
LAYOUT = Layout(VOCAB, (Segment("prompt", "text", (2,), noised=False), PICTURE, MOVES))
ROWS = 6


def batch_of(given=False, pad=0):
    tokens = torch.full((ROWS, LAYOUT.length), VOCAB.mask)
    tokens[:, :2] = 1
    known = torch.zeros(tokens.shape, dtype=torch.bool)
    if given:
        known[1, 2:6], known[2, 11:14], known[3, 4::3] = True, True, True
        tokens = torch.where(known, LAYOUT.tables().first, tokens)
    slot, valid = torch.arange(LAYOUT.length).expand(ROWS, -1), torch.ones_like(known)
    tokens, known, slot, valid = (torch.nn.functional.pad(x, (0, pad)) for x in (tokens, known, slot, valid))
    return make_batch(LAYOUT, tokens, given=known, valid=valid, slot=slot)


def net(state):
    place, visible = state.valid.long().cumsum(1), torch.where(state.valid, state.tokens, 0)
    context = (visible * (1 + place % 5)).sum(1, keepdim=True) % 23
    wave = torch.sin((context + 7.7 * place)[..., None] * 12.9898 + torch.arange(9, dtype=torch.float64) * 78.233)
    return wave * (1 + (place * 5 % 4) + context % 3)[..., None]


NET = FunctionDenoiser(lambda state, step: net(state))
RAW = FunctionDenoiser(toy().denoiser(Absorbing(), kind="cavity").function)


def taken_back(states):
    return sum(int((a.committed & ~b.committed).sum()) for a, b in zip(states, states[1:]))


@pytest.mark.parametrize("curve", [Linear(), CosineMD4(), Geometric(0.3, 5.0)], ids=repr)
@pytest.mark.parametrize("eta", [0.5, 8.0])
@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize(("given", "pad", "clock"), [(False, 0, None), (True, 3, None), (True, 2, Blocks(6))])
def test_restated_row_by_row(curve, eta, jointly, given, pad, clock):
    """Every step by a loop over rows: the n - floor(sum (1 - alpha)) largest of p(candidate), masked ones times eta."""
    kernel, batch = Replan(Candidate(), curve, eta, jointly=jointly), batch_of(given, pad)
    states = [state for state, _ in iterate(NET, kernel, batch, 8, clock=clock, seed=3)]
    noise, pool, size = Noise.seeded(3, batch.valid), LAYOUT.tables().pool[batch.slot], batch.alphabet.size
    for k, (now, after) in enumerate(zip(states, states[1:])):
        uniform, symbols, logits = noise.step(k).uniform(TOKEN), batch.symbols(now.tokens), net(now)
        for row in range(ROWS):
            expected, tokens = now.committed[row].clone(), symbols[row].clone()
            for group in [{1, 2}] if jointly else [{1}, {2}]:
                here = [i for i in range(batch.tokens.shape[1]) if int(pool[row, i]) in group and batch.free[row, i]]
                here = [i for i in here if after.time[row, i] < now.time[row, i]]
                key, left = {}, 0.0
                for i in here:
                    p, s = logits[row, i, : size[row, i]].softmax(0), after.time[row, i]
                    if not now.committed[row, i]:
                        tokens[i] = int((p.cumsum(0) <= uniform[row, i]).sum())
                    key[i] = float(p[tokens[i]]) * (1.0 if now.committed[row, i] else eta) if s > 0 else math.inf
                    left += 1 - float(curve.alpha(s)) if s > 0 else 0.0
                count = len(here) - math.floor(left + 1e-6)
                best = sorted(here, key=lambda i: -key[i])[:count]
                expected[here] = False
                expected[best] = True
            hidden = batch.free[row] & ~expected
            assert torch.equal(after.committed[row], expected)
            shown = torch.where(hidden, size[row], tokens)
            assert torch.equal(batch.symbols(after.tokens)[row][batch.free[row]], shown[batch.free[row]])
        assert torch.equal(after.tokens[~batch.free], batch.tokens[~batch.free])
    last = states[-1]
    assert bool(last.committed.all()) and not bool((last.tokens == VOCAB.mask)[batch.free].any())
    assert taken_back(states) > 0


@pytest.mark.parametrize("score", [*SCORES.values(), Annealed(Candidate(), 3.0)], ids=repr)
@pytest.mark.parametrize("steps", [3, 8, 30])
def test_as_many_hold_a_token_as_the_curve_says(score, steps):
    batch = batch_of(given=True)
    states = [state for state, _ in iterate(NET, Replan(score), batch, steps, seed=1)]
    assert len(states) == steps + 1  # not final: it never stops early
    for k, state in enumerate(states):
        for name in ("image", "action"):
            free = batch.free[:, LAYOUT.columns(name)]
            held = (free & state.committed[:, LAYOUT.columns(name)]).sum(1)
            total = free.sum(1)
            assert torch.equal(held, total - (total * (1 - k / steps) + 1e-6).floor().long())
        assert torch.equal(state.tokens == VOCAB.mask, batch.free & ~state.committed)
        assert torch.equal(state.tokens[batch.given], batch.tokens[batch.given])


def test_a_small_eta_commits_for_good_and_a_large_one_fills_up_first():
    batch = toy().batch(500)
    plain = [state.tokens for state, _ in iterate(RAW, Commit(Candidate(), Quota()), batch, 4, seed=5)]
    runs = {eta: list(iterate(RAW, Replan(eta=eta), batch, 4, seed=5)) for eta in (1e-3, 1.0, 1e3)}
    for a, (b, _) in zip(plain, runs[1e-3]):  # MaskGIT is a special case; adding log eta rounds a few near-ties
        assert int((a != b.tokens).any(1).sum()) <= 5
    back = [taken_back([state for state, _ in run]) for run in runs.values()]
    assert back[0] == 0 < back[1] < back[2]
    held = [state.committed for state, _ in runs[1e3]]
    for now, after in zip(held, held[1:]):  # no committed one stays while a masked one goes without
        assert not bool(((now & after).any(1) & (~now & ~after).any(1)).any())


def test_eta_multiplies_a_probability():
    def run(score):
        states = [state.tokens for state, _ in iterate(RAW, Replan(score, eta=0.8), toy().batch(300), 9, seed=1)]
        return torch.stack(states)

    log, plain = (
        UserScore(lambda state, step, index, drawn, noise, f=f: f(drawn.statistics["confidence"]), ("confidence",))
        for f in (torch.log, torch.clone)
    )
    assert torch.equal(run(Sure()), run(log)) and not torch.equal(run(Sure()), run(plain))


@pytest.mark.parametrize("temperature", [None, 0.01])
def test_a_critic_masks_exactly_the_wrong_tokens(temperature):  # T1
    batch, wrong = batch_of(), torch.zeros(ROWS, LAYOUT.length, dtype=torch.bool)
    for row in range(ROWS):
        wrong[row, [2 + row % 3, 5 + row % 4, 11 + row]] = True
    symbols = (torch.arange(LAYOUT.length) * 3 % 5).expand(ROWS, -1)
    truth = torch.where(batch.free, batch.ids(symbols), batch.tokens)
    planted = torch.where(wrong, batch.ids((symbols + 1) % 5), truth)
    score = Critic(lambda state, step: (state.tokens == truth).double())
    kernel = Replan(score if temperature is None else Annealed(score, temperature), jointly=True)
    state = next(iterate(NET, kernel, batch, 1))[0]
    state = state._replace(tokens=planted, committed=torch.ones_like(wrong))
    share, noise = torch.where(batch.free, 3 / 15, 0.0).double(), Noise.seeded(0, batch.valid)
    state, info = kernel(NET, state, Step(3, state.time, share), noise)
    assert torch.equal(state.tokens == VOCAB.mask, wrong) and torch.equal(~state.committed, wrong)
    assert torch.equal(state.tokens[~wrong], planted[~wrong]) and int(info.committed) == 0
    fixed = FunctionDenoiser(lambda state, step: 40.0 * torch.nn.functional.one_hot(symbols, 9).double())
    last, info = kernel(fixed, state, Step(4, share, torch.zeros_like(share)), noise)
    assert int(info.committed) == 3 * ROWS and torch.equal(last.tokens, truth) and bool(last.committed.all())


def test_a_mode_seeker():
    away = check_kernel(Replan(), steps=6, kind="cavity")
    print(f"P2: {away:.1f} floors")
    assert away > 10 and not Replan().unbiased and not Replan().final and not Replan().decide_first
    joint, batch = toy(), toy().batch(2000)
    planned = sample(RAW, Replan(), batch, 6, seed=2)[0]
    plain = sample(joint.denoiser(Absorbing()), Ancestral(), batch, 6, seed=2)[0]
    likely = [float((joint.law(x.tokens) * joint.p.log()).sum()) for x in (planned, plain)]
    assert likely[0] > likely[1] + 0.1


def test_a_cavity_network_is_asked_for_its_own_opinion():
    """A cavity prediction turned into an own one would be certain of every token it shows, and take none back."""
    cavity, batch = toy().denoiser(Absorbing(), kind="cavity"), toy().batch(300)
    runs = [[state for state, _ in iterate(x, Replan(), batch, 6, seed=2)] for x in (cavity, RAW)]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(*runs)) and taken_back(runs[0]) > 30
    copying = [state for state, _ in iterate(toy().denoiser(Absorbing()), Replan(), batch, 6, seed=2)]
    assert taken_back(copying) == 0


def test_a_block_that_is_over_is_left_alone():
    batch = batch_of()
    for clock in (Blocks(6), Windows({"image": (1.0, 0.5), "action": (0.5, 0.0)})):
        states = [state for state, _ in iterate(NET, Replan(), batch, 12, clock=clock, seed=4)]
        for now, after in zip(states, states[1:]):
            over, waiting = batch.free & (now.time == 0), batch.free & (after.time == 1)
            assert torch.equal(after.tokens[over], now.tokens[over]) and bool(after.committed[over].all())
            assert bool((after.tokens[waiting] == VOCAB.mask).all())
        assert taken_back(states) > 0 and bool(states[-1].committed.all())


def test_counters():
    """One network call per step; the head runs once per moving site."""
    batch = batch_of(given=True)
    for score in (Candidate(), Sure(), SCORES["random"]):
        for _, info in list(iterate(NET, Replan(score), batch, 5))[1:]:
            assert (info.nfe, info.network_rows, info.head_rows) == (1, ROWS, int(batch.free.sum()))


def test_levels_keep_their_parents():
    back = 0
    for eta in (0.3, 1.0):
        states = [s for s, _ in iterate(NET, Replan(DepthPrefix(Candidate()), eta=eta), batch_of(), 9, seed=2)]
        levels = torch.stack([state.committed[:, LAYOUT.columns("action")] for state in states]).view(-1, 3, 2).long()
        assert (levels.diff(dim=-1) <= 0).all()
        back += taken_back(states)
    assert back > 0


KERNELS = {
    **{name: Replan(score) for name, score in SCORES.items()},
    "cosine": Replan(curve=CosineMD4(), eta=3.0, jointly=True),
    "critic": Replan(Critic(lambda state, step: ((state.tokens * 7919) % 101 / 101).double())),
    "annealed": Replan(Annealed(Critic(lambda state, step: -(state.tokens % 5).double()), 1.0)),
    "depth": Replan(DepthPrefix(Candidate())),
}


@pytest.mark.parametrize("name", KERNELS)
def test_conformance(name):
    check_conformance(KERNELS[name])
    check_conformance(KERNELS[name], 11, clock=Blocks(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Replan(process=Uniform()), "needs Absorbing, not Uniform"),
        (lambda: Replan("confidence"), "give a Score"),
        (lambda: Replan(curve=Quota()), "give a Schedule"),
        (lambda: Replan(eta=0.0), "eta is 0.0"),
        (lambda: Replan(eta=math.inf), "eta is inf"),
        (lambda: Replan(eta=math.nan), "eta is nan"),
        (lambda: Replan(DepthPrefix(), eta=2.0), "before its parents"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
