"""Discrete Diffusion VLA (arXiv 2508.20072): adaptive order and secondary re-masking; the laws V3a to V6a, I1 and I5."""

import math
from dataclasses import asdict, dataclass, field

import pytest
import torch

import discdiff as dd
from discdiff import Commit, Quota, Recheck, Segment, Sure, sampler
from discdiff.kernels import Discounted
from discdiff.kernels.recheck import COUNT, REF
from discdiff.scores import Annealed, Candidate, DepthPrefix, Random
from discdiff.testing import Toy, check_conformance

VOCAB = dd.VocabLayout(6, (dd.Modality("image", 9), dd.Modality("action", 5)))
PROMPT, PICTURE = Segment("prompt", "text", (2,), noised=False), Segment("image", "image", (3, 4))
LAYOUT = dd.Layout(VOCAB, (PROMPT, PICTURE, Segment("action", "action", (7,), axes="t")), "hybrid")
POOLS = [LAYOUT.columns("image"), LAYOUT.columns("action")]
ROWS, T, MODES = 4, 7, ("visible", "loo")
EVERY = {"low": 1.0, "high": 1.0, "drop": 0.0, "share": 1.0, "limit": 99}
COMMIT = Recheck().commit


def batch_of(given=False):
    tokens = torch.full((ROWS, LAYOUT.length), VOCAB.mask)
    tokens[:, :2] = 1
    known = torch.zeros(tokens.shape, dtype=torch.bool)
    if given:
        known[1, 2:6], known[2, 14:20], known[3, 4::3] = True, True, True
        tokens = torch.where(known, LAYOUT.tables().first, tokens)
    return dd.make_batch(LAYOUT, tokens, given=known)


def net(tokens):
    """Logits that change with everything the row shows, so that tokens lose their probability now and then."""
    place = torch.arange(1, tokens.shape[1] + 1)
    context = (tokens * (1 + place % 5)).sum(1, keepdim=True) % 23
    wave = torch.sin((context + 7.7 * place)[..., None] * 12.9898 + torch.arange(9, dtype=torch.float64) * 78.233)
    return wave * (1 + (place * 5 % 4) + context % 3)[..., None]


NET = dd.FunctionDenoiser(lambda state, step: net(state.tokens))


@dataclass(frozen=True)
class Watched:
    """The kernel, with every step written down: (state, step, what `commit` alone makes of it, state after)."""

    inner: Recheck
    seen: list = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, denoiser, state, step, noise):
        kept = self.inner.commit(denoiser, state, step, noise)[0]
        after, info = self.inner(denoiser, state, step, noise)
        self.seen.append((state, step, kept, after))
        return after, info


def watched(kernel, batch, steps=T, **more):
    kernel = Watched(kernel)
    dd.sample(NET, kernel, batch, steps, seed=3, **more)
    return kernel.seen


LONG = dd.Layout(VOCAB, (Segment("action", "action", (8, 7), axes="th"),))
SCHEDULE = [56, 55, 54, 51, 48, 44, 39, 34, 28, 21, 14, 7, 0]


@pytest.mark.parametrize("rescore", MODES)
@pytest.mark.parametrize("knobs", [{"low": 0.0, "high": 0.0, "drop": 1.0}, {}, {"low": 0.4}, EVERY])
def test_masks_follow_the_cosine_and_the_quota_catches_up(knobs, rescore):  # I1, I5
    batch = dd.make_batch(LONG, torch.full((2, 56), VOCAB.mask))
    states = [state for state, _ in sampler("dd_vla", rescore=rescore, **knobs).iterate(NET, batch, seed=1)]
    hidden = torch.stack([(~state.committed).sum(1) for state in states], 1)
    back = torch.stack([state.memory[COUNT].sum(1) for state in states], 1).diff(dim=1, prepend=torch.zeros(2, 1))
    assert torch.equal(hidden, torch.tensor(SCHEDULE) + back.long())
    assert bool(back.any()) == (knobs.get("high") != 0) and not bool(back[:, -1].any())


@pytest.mark.parametrize("rescore", MODES)
@pytest.mark.parametrize("score", ["confidence", "margin", "random"])
def test_without_checks_it_is_commit(score, rescore):  # V4a
    chosen = Random() if score == "random" else Annealed(Sure(score), 1.0)
    commit, batch = Commit(chosen, Quota(COMMIT.rule.curve)), batch_of(given=True)
    off = Recheck(commit, low=0.0, high=0.0, drop=math.inf, rescore=rescore)
    never = Recheck(commit, low=0.0, high=1e-300, drop=1.0, rescore=rescore)  # judges, and finds nothing
    assert off.final and off.decide_first == commit.decide_first and not never.final and not never.decide_first
    for kernel in (off, never):
        runs = (dd.iterate(NET, x, batch, T, seed=3) for x in (commit, kernel))
        for (a, one), (b, other) in zip(*runs, strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.committed, b.committed)
            assert one.nfe == other.nfe or (kernel is never and rescore == "loo")
            assert int(one.committed) == int(other.committed) and (kernel is never or one == other)


@pytest.mark.parametrize("rescore", MODES)
@pytest.mark.parametrize(("share", "jointly"), [(0.1, False), (0.1, True), (0.2, False)])
def test_no_step_takes_back_more_than_its_share(share, jointly, rescore):  # V3a
    commit = Commit(COMMIT.score, COMMIT.rule, jointly=jointly)
    kernel, batch = Recheck(commit, **{**EVERY, "share": share}, rescore=rescore), batch_of(given=True)
    pools = [torch.cat(POOLS)] if jointly else POOLS
    bound = 0
    for state, step, kept, after in watched(kernel, batch):
        judged = (state if rescore == "visible" else kept).committed & batch.free & (step.s > 0)
        for columns in pools:
            most = torch.tensor([math.ceil(share * int(n) - 1e-9) for n in batch.free[:, columns].sum(1)])
            gone = (kept.committed & ~after.committed)[:, columns].sum(1)
            assert torch.equal(gone, torch.minimum(most, judged[:, columns].sum(1)))
            bound += int((most < judged[:, columns].sum(1)).sum())
        assert not (after.committed & ~kept.committed).any()
        assert torch.equal(after.tokens == VOCAB.mask, batch.free & ~after.committed)
        assert torch.equal(after.tokens[after.committed], kept.tokens[after.committed])
    assert bound > 0  # more would have gone


@pytest.mark.parametrize("rescore", MODES)
def test_it_ends_in_time_even_if_every_check_fires(rescore):  # V5a
    for clock in (None, dd.Blocks(7)):
        batch, steps = batch_of(given=True), T if clock is None else 9
        seen = watched(Recheck(COMMIT, **EVERY, rescore=rescore), batch, steps, clock=clock)
        gone = [int((kept.committed & ~after.committed).sum()) for _, _, kept, after in seen]
        assert len(seen) == steps and gone[-1] == 0 and sum(n > 0 for n in gone) >= 3
        last = seen[-1][-1]
        assert bool(last.committed.all()) and not bool((last.tokens == VOCAB.mask).any())
        assert torch.equal(last.tokens[~batch.free], batch.tokens[~batch.free])
    last = watched(Recheck(COMMIT, **{**EVERY, "limit": 2}, rescore=rescore), batch_of())[-1][-1]
    assert int(last.memory[COUNT].max()) == 2 and bool(last.committed.all())


def judged_again(kernel, batch, state, step, kept, ref, count):
    """Positions of each row that must be masked again, and what the reference is then; loops over everything."""
    visible, found, size, symbols = kernel.rescore == "visible", [], batch.alphabet.size, batch.symbols(kept.tokens)
    seen = state if visible else kept
    for row in range(ROWS):
        for i in (kept.committed & ~state.committed)[row].nonzero()[:, 0].tolist():
            ref[row, i] = float(net(state.tokens)[row, i, : size[row, i]].softmax(0)[symbols[row, i]])
        again = set()
        for columns in POOLS:
            excess = {}
            for i in columns.tolist():
                s = float(step.s[row, i])
                if not (seen.committed & batch.free)[row, i] or s == 0 or count[row, i] >= kernel.limit:
                    continue
                shown = seen.tokens[row].clone()
                shown[i] = shown[i] if visible else VOCAB.mask
                now = float(net(shown[None])[0, i, : size[row, i]].softmax(0)[symbols[row, i]])
                least = kernel.low + (kernel.high - kernel.low) * (1 - s)
                if now < least or ref[row, i] - now > kernel.drop:
                    excess[i] = max(least - now, ref[row, i] - now - kernel.drop)
            most = math.ceil(kernel.share * int(batch.free[row, columns].sum()) - 1e-9)
            again |= set(sorted(excess, key=lambda i: -excess[i])[:most])
        found.append(again)
        for i in again:
            ref[row, i], count[row, i] = 0.0, count[row, i] + 1
    return found


@pytest.mark.parametrize("rescore", MODES)
@pytest.mark.parametrize("knobs", [{}, {"low": 0.0, "high": 0.0, "drop": 0.2}, {"share": 0.3, "limit": 1}])
def test_restated_row_by_row(knobs, rescore):
    kernel, batch = Recheck(COMMIT, **knobs, rescore=rescore), batch_of(given=True)
    ref, count = torch.zeros(ROWS, LAYOUT.length, dtype=torch.float64), torch.zeros(ROWS, LAYOUT.length)
    for state, step, kept, after in watched(kernel, batch, 9):
        for row, again in enumerate(judged_again(kernel, batch, state, step, kept, ref, count)):
            assert set((kept.committed & ~after.committed)[row].nonzero()[:, 0].tolist()) == again
        assert torch.allclose(after.memory[REF], ref) and torch.equal(after.memory[COUNT], count.long())
    assert int(count.sum()) > 8


def test_calls_and_rows_are_counted():
    """One call per step that judges what it sees; one more, with a row for each committed token, that leaves it out."""
    for rescore in MODES:
        kernel, batch = Watched(Recheck(COMMIT, rescore=rescore, limit=99)), batch_of(given=True)
        for _, info in dd.iterate(NET, kernel, batch, T, seed=3):
            if not kernel.seen:
                continue  # the start
            state, step, kept, _ = kernel.seen[-1]
            judged = (state if rescore == "visible" else kept).committed & batch.free & (step.s > 0)
            copies = int(judged.sum()) if rescore == "loo" else 0
            rows = int((~state.committed | (judged & (copies == 0))).any(1).sum())
            assert info.nfe == 1 + (copies > 0) and info.network_rows == rows + copies
            assert info.head_rows == int((~state.committed).sum() + judged.sum())


def near(share):
    """p(b | a) (3, 3): b equals a but for a `share`."""
    return torch.full((3, 3), share / 2, dtype=torch.float64).fill_diagonal_(1 - share)


# x_4 tells x_1 almost surely, x_1 decides x_2 nine times in ten, x_3 is free of them
LAW = Toy(torch.einsum("da,ab,c->abcd", near(0.02), near(0.1), torch.tensor([0.5, 0.3, 0.2]).double()).reshape(-1) / 3)
TABLES = {  # exact: what the neighbours of a visible token say, and a denoiser that is certain of every token it sees
    "visible": dd.FunctionDenoiser(LAW.denoiser(dd.Absorbing(), kind="cavity").function),
    "loo": LAW.denoiser(dd.Absorbing()),
}


@dataclass(frozen=True)
class Planted(Recheck):
    """After the first step a wrong x_2 is committed, and of the free ones nothing else."""

    def __call__(self, denoiser, state, step, noise):
        state, info = super().__call__(denoiser, state, step, noise)
        if step.index == 0:
            second, known = torch.arange(4) == 1, state.tokens[:, 3:]
            tokens = torch.where(second, (known + 1) % 3, LAW.layout.vocab.mask)
            tokens = torch.where(state.given, state.tokens, tokens)
            state = state._replace(tokens=tokens, committed=state.given | second)
        return state, info


@pytest.mark.parametrize("rescore", MODES)
@pytest.mark.parametrize("right", range(3))
def test_a_planted_wrong_commitment_is_corrected(right, rescore):  # V6a
    for knobs, on in (({}, 1), ({"low": 0.0, "high": 0.0, "drop": 1.0}, 0), ({"limit": 0}, 0)):
        kernel = Planted(Commit(Sure(), Quota()), **knobs, rescore=rescore)
        last = dd.sample(dd.Temperature(TABLES[rescore], 0.0), kernel, LAW.batch(5, given={3: right}), 6)[0]
        assert (last.tokens[:, 0] == right).all() and (last.tokens[:, 1] == (right + 1 - on) % 3).all()
        assert (last.memory[COUNT] == torch.tensor([0, on, 0, 0])).all()


@pytest.mark.parametrize("rescore", MODES)
def test_tokens_drawn_at_once_are_brought_together(rescore):
    """Two coupled tokens drawn in one step disagree; judged again, they seldom do."""
    law = Toy(torch.einsum("ab,cd->abcd", near(0.02), near(0.02)).reshape(-1) / 9)
    cavity = dd.FunctionDenoiser(law.denoiser(dd.Absorbing(), kind="cavity").function)
    denoiser, apart = cavity if rescore == "visible" else law.denoiser(dd.Absorbing()), []
    for drop in (1.0, 0.3):
        kernel = Recheck(Commit(Random(), Quota()), low=0.0, high=0.0, drop=drop, share=0.25, rescore=rescore)
        x = dd.sample(denoiser, kernel, law.batch(600), [1, 0.01, 0.008, 0.006, 0.004, 0.002, 0], seed=2)[0].tokens
        apart.append(float((x[:, ::2] != x[:, 1::2]).double().mean()))
    print(f"{rescore}: {apart[0]:.3f} disagree, judged again {apart[1]:.3f}")
    assert apart[0] > 0.3 and apart[1] < 0.3 * apart[0]


KERNELS = {
    **{f"{mode}, {name}": Recheck(COMMIT, **knobs, rescore=mode) for mode in MODES
       for name, knobs in {"default": {}, "every": EVERY}.items()},
    "joint, candidate": Recheck(Commit(Candidate(), Quota(), jointly=True), **EVERY),
    "random": Recheck(Commit(Random(), Quota()), **EVERY),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_conformance(name):
    check_conformance(KERNELS[name])
    check_conformance(KERNELS[name], 11, clock=dd.Blocks(5))


def test_presets_on_a_network():
    """Cached or not, and alone or among others, a row has the same tokens; no setting leaves a run as it was."""
    config = dd.DiscDiffConfig(hidden_size=16, num_layers=1, num_heads=2, vocab=asdict(VOCAB), initializer_range=0.5)
    model, batch, runs = dd.DiscDiffModel.seeded(config, 1, torch.float64).eval(), batch_of(given=True), set()
    for knobs in ({}, {"score": "margin"}, {"high": 0.9}, {"drop": 0.1}, {"rescore": "loo"}, {"noise": 0.0}):
        tokens, info = dd.generate(model, batch, sampler("dd_vla", **knobs), seed=[1, 2, 3, 4])
        runs.add(str(tokens.tolist()))
        alone = dd.generate(model, batch.rows(torch.tensor([2])), sampler("dd_vla", **knobs), seed=[3])[0]
        assert torch.equal(alone[0], tokens[2]) and torch.equal(tokens[batch.given], batch.tokens[batch.given])
        cached, cost = dd.generate(model, batch, sampler("dd_vla", **knobs, cache="prefix"), seed=[1, 2, 3, 4])
        assert torch.equal(cached, tokens) and cost.fed < info.fed and info.nfe == cost.nfe
        assert info.nfe == 12 or "rescore" in knobs
    assert len(runs) == 6
    with pytest.raises(ValueError, match="copies of a row cannot share this cache"):
        dd.generate(model, batch, sampler("dd_vla", **knobs, rescore="loo", cache="approximate_dual"), seed=1)


def test_released_behaviour():
    """As many masks as the schedule says at every step, committed tokens among them, whose probability counts s times."""
    batch = dd.make_batch(LONG, torch.full((6, 56), VOCAB.mask))
    states = [state for state, _ in sampler("dd_vla_released").iterate(NET, batch, seed=1)]
    assert [(~state.committed).sum(1).tolist() for state in states] == [[n] * 6 for n in SCHEDULE]
    back = [bool((a.committed & ~b.committed).any()) for a, b in zip(states, states[1:])]
    assert sum(back) > 5 and not back[-1]
    state, score, index = states[6], Discounted(Candidate()), torch.arange(56)
    step, noise = dd.Step(6, 0.5, 0.25), dd.Noise.seeded(0, batch.valid)
    drawn, here = NET(state, step).draw(index, noise), state.committed[0]
    plain, less = (x(state, step, index, drawn, noise)[0] for x in (score.inner, score))
    assert torch.allclose((plain - less).exp(), torch.where(here, 4.0, 1.0).double()) and bool(here.any())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recheck("commit"), "give a Commit"),
        (lambda: Recheck(Commit(Sure(), edit=0.9)), "exclude each other"),
        (lambda: Recheck(Commit(DepthPrefix())), "without|parent"),
        (lambda: Discounted(DepthPrefix()), "before their parents"),
        (lambda: Recheck(low=0.5), "low is 0.5"),
        (lambda: Recheck(drop=math.nan), "drop is nan"),
        (lambda: Recheck(share=1.1), "share is 1.1"),
        (lambda: sampler("dd_vla", rescore="both"), "rescore is 'both': choose"),
        (lambda: sampler("dd_vla", score="entropy"), "score is 'entropy': choose from confidence, margin"),
        (lambda: sampler("dd_vla_released", low=0.1), "unknown setting of dd_vla_released 'low'"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
