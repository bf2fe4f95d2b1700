"""Deciding first changes nothing: the tokens are those of a plain sampler that evaluates a real network everywhere.

The plain sampler below knows neither `hold` nor `step`: it forms every one-site law q(x_s | x_t, x0) by Bayes' rule and
draws from it with the same keyed uniforms, for every row, position and step.
"""

import math

import pytest
import torch

from discdiff.clocks import Blocks, Shared
from discdiff.denoisers import FunctionDenoiser
from discdiff.kernels import Ancestral, Commit, FirstHitting
from discdiff.layout import Layout, Modality, Segment, VocabLayout, make_batch
from discdiff.noise import ORDER, PRIOR, TOKEN, WAKE, Noise
from discdiff.processes import Absorbing, Interpolating, PerSegment, Uniform, vq_paper, vq_released
from discdiff.rules import Quota
from discdiff.sampling import Grid, sample
from discdiff.schedules import CosineMD4, Linear
from discdiff.scores import Candidate, LeftToRight, Random, Sure

ROWS, LENGTH, K = 6, 8, 4
TEXT = Layout(VocabLayout(text_size=K), (Segment("text", "text", (LENGTH,)),))
MIXED = Layout(
    VocabLayout(text_size=K, modalities=(Modality("image", 3),)),
    (Segment("text", "text", (3,)), Segment("image", "image", (5,))),
)


class Tiny(torch.nn.Module):
    """One random layer of attention in float64: every position's logits depend on every token and on its time."""

    def __init__(self, timed: bool = True, width: int = 16):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"embed": (K + 1, width), "place": (LENGTH, width), "clock": (width,), "mix": (width, width)}
        for name, shape in {**shapes, "head": (width, K)}.items():
            value = torch.randn(*shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        self.timed = timed

    def forward(self, x, t):
        h = self.embed[x] + self.place
        if self.timed:
            h = h + t[..., None] * self.clock
        h = h + (h @ h.transpose(1, 2) / 4).softmax(-1) @ h @ self.mix
        return torch.tanh(h) @ self.head


def denoiser(kind="own", timed=True):
    net, calls = Tiny(timed), []

    def function(state, step):
        calls.append(len(state.tokens))
        return net(state.batch.symbols(state.tokens), step.t)

    return FunctionDenoiser(function, kind=kind, needs_time=timed), net, calls


def make(layout=TEXT, given: bool = False):
    tokens, known = torch.full((ROWS, LENGTH), layout.vocab.mask), torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    if given:
        known[:, 2], known[1, 6] = True, True
        tokens[known] = layout.tables().first.expand(ROWS, LENGTH)[known] + 1
    return make_batch(layout, tokens, given=known)


def parts(process, batch):
    """[(process, symbols, positions)] of the segments."""
    names = batch.layout.names
    whole = process.parts if isinstance(process, PerSegment) else {name: process for name in names}
    segment = batch.alphabet.segment
    return [(whole[n], int(batch.alphabet.size[segment == i][0]), segment == i) for i, n in enumerate(names)]


def laws(process, size, x, t, s):
    """q(x_s | x_t, x0 = v) as (n, v, x_s) and q(x_t | v) as (n, v), from marginals and transition by eq. (3)."""
    eye = torch.eye(size + 1, dtype=torch.float64)

    def spread(m):  # (n, S, S): row y goes to y with keep, to tokens and the mask with the noise
        noise = torch.cat([m.token[:, None].expand(-1, size), m.mask[:, None]], 1)[:, None]
        return m.keep[:, None, None] * eye + noise

    step = spread(process.transition(s, t, size))
    if process.mask_absorbing:
        step[:, size] = eye[size]
    early, late = (spread(process.marginal(time, size))[:, :size] for time in (s, t))
    here = torch.arange(len(x))
    evidence = late[here, :, x]
    return step[here, :, x][:, None] * early / evidence[..., None], evidence


def pick(law, order, u):
    """The symbol into whose interval u falls when the symbols are laid out in `order` (n, S)."""
    edges = law.gather(1, order).cumsum(1)
    place = (edges <= u[:, None]).sum(1).clamp(max=law.shape[1] - 1)
    return order.gather(1, place[:, None])[:, 0]


def plain_ancestral(net, process, batch, grid, seed, clock, kind):
    """Everything everywhere; returns symbols and, per step, which positions a network was needed for."""
    noise, free = Noise.seeded(seed, batch.valid), batch.free
    x, time, awake = batch.symbols(batch.tokens), batch.free.double(), []
    u = noise.step(-1).uniform(PRIOR)
    for part, size, here in parts(process, batch):
        one = part.marginal(torch.tensor(1.0, dtype=torch.float64), size)
        law = torch.full((size + 1,), float(one.keep / size + one.token), dtype=torch.float64)
        law[size] = one.mask
        start = pick(
            law.expand(int(here.sum()), -1), torch.tensor([size, *range(size)]).expand(int(here.sum()), -1), u[here]
        )
        x[here] = torch.where(free[here], start, x[here])
    for step in grid:
        s = torch.minimum(time, clock(batch, step.s))
        moving, keyed = free & (s < time), noise.step(step.index)
        logits, u, v = net(x, time), keyed.uniform(WAKE), keyed.uniform(TOKEN)
        after, needed = x.clone(), torch.zeros_like(free)
        for part, size, here in parts(process, batch):
            now, rows = x[here], torch.arange(int(here.sum()))
            law, evidence = laws(part, size, now, time[here], s[here])
            prediction = logits[here][:, :size].softmax(-1)
            if kind == "cavity":
                prediction = (prediction * evidence) / (prediction * evidence).sum(-1, keepdim=True)
            edges = prediction.cumsum(-1)
            x0 = (edges <= v[here][:, None] * edges[:, -1:]).sum(-1)
            stays = law[rows, :, now]
            hold = torch.where(evidence > 0, stays, 1.0).amin(1)
            one = law[rows, x0]
            if step.rate is not None:
                hold = 1 - step.rate * (1 - hold)
                stay = 1 - (step.rate * (1 - one[rows, now])).clamp(max=1)
                one = one * ((1 - stay) / (1 - one[rows, now]))[:, None]
                one[rows, now] = stay
            first = torch.nn.functional.one_hot(now, size + 1) * 4 + torch.nn.functional.one_hot(x0, size + 1) * 2
            first[:, size] += 1  # x_t, then x0, then the mask, then the others in order
            drawn = pick(one, first.argsort(dim=1, descending=True, stable=True), u[here])
            clean = s[here] <= 0  # time 0 is clean, whatever the rate and the schedule's end leave there
            hold = torch.where(clean & (now == size), 0.0, hold)
            drawn = torch.where(clean & (drawn == size), x0, drawn)
            needed[here] = moving[here] & (u[here] >= hold)
            after[here] = torch.where(needed[here], drawn, now)
            settled = moving[here] & ~needed[here] & ~one.isnan().any(1)
            assert bool((drawn == now)[settled].all())  # below `hold` the full computation keeps the token too
        x, time = after, torch.where(moving, s, time)
        awake.append(needed)
    return x, torch.stack(awake)


def compare(process, kind="own", layout=TEXT, steps=12, given=False, clock=None, rate=None, seed=3):
    batch, clock = make(layout, given), clock or Shared()
    model, net, calls = denoiser(kind)
    grid = Grid.uniform(steps, rate=rate) if rate is not None else Grid.uniform(steps)
    expected, awake = plain_ancestral(net, process, batch, grid, seed, clock, kind)
    rows, absorbing = awake.any(2), isinstance(process, Absorbing)
    for watch in (
        lambda *step: None,
        None,
    ):  # step by step; then each row's k-th change in call k, where that is possible
        calls.clear()
        state, info = sample(model, Ancestral(process), batch, grid, seed=seed, clock=clock, callback=watch)
        assert torch.equal(state.batch.symbols(state.tokens), expected)
        assert info.head_rows == int(awake.sum()) and info.network_rows == int(rows.sum()) == sum(calls)
        fewest = rows.sum(0).max() if absorbing and watch is None else rows.any(1).sum()
        assert info.nfe == int(fewest) == len(calls)
        assert torch.equal(state.tokens[batch.given], batch.tokens[batch.given])
        ended = torch.where(batch.free, clock(batch, grid.times[-1]), 0.0)
        assert torch.equal(state.time, ended) and torch.equal(state.committed, ~batch.free | (ended == 0))
    return info, batch


PROCESSES = {
    "absorbing": Absorbing(),
    "absorbing_cos": Absorbing(CosineMD4()),
    "absorbing_unfinished": Absorbing(Linear(end=0.2)),
    "uniform": Uniform(),
    "uniform_unfinished": Uniform(Linear(end=0.2)),
    "vq_paper": vq_paper(),
    "vq_released": vq_released(),
    "gidd": Interpolating(),
    "gidd_2": Interpolating(0.5, 2.0),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


@each_process
@pytest.mark.parametrize("kind", ["own", "cavity"])
def test_ancestral(process, kind):
    for seed in range(3):
        info, batch = compare(process, kind, seed=seed)
    if process in (Absorbing(), Absorbing(CosineMD4())):
        assert info.head_rows == int(batch.free.sum())  # every token is computed once
    assert info.head_rows < 12 * ROWS * LENGTH


@each_process
def test_rates_blocks_and_given_tokens(process):
    for rate in (0.0, 0.5, 1.6):
        compare(process, rate=rate)
    compare(process, clock=Blocks(3), given=True)
    compare(process, "cavity", clock=Blocks(2), rate=0.7, given=True, steps=16)


@pytest.mark.parametrize("kind", ["own", "cavity"])
def test_a_process_per_segment(kind):
    for process in (
        PerSegment({"text": Absorbing(), "image": Uniform()}),
        PerSegment({"text": Interpolating(), "image": vq_paper()}),
    ):
        compare(process, kind, MIXED)
        compare(process, kind, MIXED, given=True, rate=0.6)
    compare(Uniform(), kind, MIXED)


def test_awake_positions_grow_like_the_logarithm_of_the_steps():
    """Uniform noise: about 2 ln T positions per slot are computed in a run of T steps instead of T."""
    for steps in (16, 64):
        info, batch = compare(Uniform(), steps=steps)
        per_slot = info.head_rows / int(batch.free.sum())
        print(f"T={steps}: {per_slot:.2f} awake per slot, 2 ln T = {2 * math.log(steps):.2f}")
        assert per_slot < 2 * math.log(steps) + 1.5


def rankings(name, logits, x0, keyed):
    p = logits.softmax(-1)
    if name == "random":
        return keyed.uniform(ORDER)
    if name == "first":
        return -keyed.uniform(ORDER)
    if name == "left":
        return -torch.arange(LENGTH, dtype=torch.float64).expand(ROWS, LENGTH)
    if name == "candidate":
        return p.gather(-1, x0[..., None])[..., 0]
    top = p.sort(-1, descending=True).values
    scores = {"confidence": top[..., 0], "margin": top[..., 0] - top[..., 1], "entropy": (p * p.log()).sum(-1)}
    return scores[name]


def plain_commit(net, name, batch, grid, seed, clock, quota):
    noise, free = Noise.seeded(seed, batch.valid), batch.free
    x, time, done = batch.symbols(batch.tokens), free.double(), ~free
    eligible_count, chosen_count, row_count = 0, 0, 0
    for step in grid:
        s, keyed = torch.minimum(time, clock(batch, step.s)), noise.step(step.index)
        logits, u = net(x, time), keyed.uniform(TOKEN)
        edges = logits.softmax(-1).cumsum(-1)
        x0 = (edges <= u[..., None] * edges[..., -1:]).sum(-1)
        rank = rankings(name, logits, x0, keyed)
        for row in range(ROWS):
            can = [i for i in range(LENGTH) if free[row, i] and not done[row, i] and s[row, i] < time[row, i]]
            if not can:
                continue
            masked = sum(1 - float(quota.alpha(s[row, i])) for i in range(LENGTH) if free[row, i])
            left = int((free & ~done)[row].sum())
            count = 1 if name == "first" and step.s > 0 else max(1, left - math.floor(masked + 1e-6))
            due = [i for i in can if s[row, i] <= 0]  # a position whose clock ends now cannot wait for a better score
            best = sorted(can, key=lambda i: (i not in due, -float(rank[row, i])))[: max(count, len(due))]
            eligible_count, chosen_count, row_count = eligible_count + len(can), chosen_count + len(best), row_count + 1
            x[row, best], done[row, best] = x0[row, best], True
        time = torch.where(free, torch.minimum(time, s), time)
    return x, eligible_count, chosen_count, row_count


ORDERS = {
    "random": Commit(Random()),
    "left": Commit(LeftToRight()),
    "confidence": Commit(Sure("confidence")),
    "margin": Commit(Sure("margin")),
    "entropy": Commit(Sure("entropy")),
    "candidate": Commit(Candidate(), Quota(CosineMD4())),
    "first": FirstHitting(),
}


CLOCKED = [(name, clock) for name in ORDERS for clock in (Shared(), Blocks(3)) if (name, clock) != ("first", Blocks(3))]


@pytest.mark.parametrize(("name", "clock"), CLOCKED, ids=str)  # first hitting has times of its own
@pytest.mark.parametrize("given", [False, True])
def test_orders(name, clock, given):
    kernel = ORDERS[name]
    batch, grid = make(given=given), Grid.uniform(9 if name == "first" else 5)
    model, net, calls = denoiser(timed=name != "first")
    state, info = sample(model, kernel, batch, grid, seed=8, clock=clock)
    quota = kernel.rule.curve if isinstance(kernel, Commit) else Linear()
    expected, eligible, chosen, rows = plain_commit(net, name, batch, grid, 8, clock, quota)
    assert torch.equal(state.batch.symbols(state.tokens), expected)
    assert chosen == int(batch.free.sum()) == int(info.committed)
    assert info.head_rows == (chosen if kernel.decide_first else eligible)
    assert info.network_rows == rows == sum(calls) and info.nfe == len(calls)
