"""Scores: the lattice order, noise that fades, critics, and what each score does to the law of an exact denoiser."""

import math
from fractions import Fraction

import pytest
import torch

from discdiff import (
    Absorbing,
    Commit,
    FunctionDenoiser,
    Layout,
    Modality,
    Noise,
    Quota,
    Segment,
    Sure,
    UserScore,
    VocabLayout,
    iterate,
    make_batch,
    sample,
)
from discdiff.denoisers import STATISTICS, draw
from discdiff.noise import ORDER
from discdiff.scores import (
    SCORES,
    Annealed,
    Candidate,
    Critic,
    DepthPrefix,
    Lattice,
    LeftToRight,
    Random,
    halton_order,
    log_scale,
)
from discdiff.scores.orders import lattice_places, radical_inverse
from discdiff.testing import Toy, check_conformance, check_kernel, noise_floor, total_variation
from discdiff.types import Step

VOCAB = VocabLayout(6, (Modality("image", 9), Modality("sound", 5, depth=3)))


# -- lattice -------------------------------------------------------------------------------------------------------------


def mirrored(i, base):
    """Radical inverse of one number, exactly."""
    value, scale = Fraction(0), Fraction(1, base)
    while i:
        value, i, scale = value + (i % base) * scale, i // base, scale / base
    return value


def plain_halton(shape):
    seen, i = [], 0
    while len(seen) < math.prod(shape):
        i += 1
        cell = tuple(math.floor(n * mirrored(i, base)) for n, base in zip(shape, (2, 3, 5)))
        seen += [cell] if cell not in seen else []
    return seen


@pytest.mark.parametrize("shape", [(1,), (8,), (13,), (4, 4), (5, 7), (1, 9), (2, 3, 4), (4, 3, 3)])
def test_halton_restated(shape):
    found = [tuple(int(x) for x in torch.unravel_index(c, shape)) for c in halton_order(shape)]
    assert found == plain_halton(shape)


@pytest.mark.parametrize("shape", [(1000,), (8, 8), (16, 16), (24, 24), (32, 32), (48, 48), (4, 16, 16), (3, 128)])
def test_order_is_a_permutation(shape):  # H1
    assert torch.equal(halton_order(shape).sort().values, torch.arange(math.prod(shape)))


def test_first_points():  # H3
    two, three = ([a / b for a in n.tolist()] for n, b in (radical_inverse(3, 2), radical_inverse(3, 3)))
    assert list(zip(two, three)) == [(0.5, 1 / 3), (0.25, 2 / 3), (0.75, 1 / 9)]
    assert halton_order((8,)).tolist() == [4, 2, 6, 1, 5, 3, 7, 0]  # van der Corput


def discrepancy(cells, side=16):
    """Star discrepancy of cells of a grid, over the boxes whose corners are lines of the grid."""
    table = torch.zeros(side, side, dtype=torch.float64)
    table.view(-1)[cells] = 1 / len(cells)
    edge = torch.arange(1, side + 1, dtype=torch.float64) / side
    return float((table.cumsum(0).cumsum(1) - edge[:, None] * edge).abs().max())


def test_prefixes_are_spread_out():  # H2
    random = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    for n in (16, 32, 64, 128):
        halton, raster, shuffled = (discrepancy(x[:n]) for x in (halton_order((16, 16)), torch.arange(256), random))
        print(f"{n}: lattice {halton:.3f}, random {shuffled:.3f}, raster {raster:.3f}")
        assert halton < shuffled < raster and halton < 0.5 * raster


def committed_order(kernel, batch):
    """Per row the step at which each position was committed."""
    net = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 15, dtype=torch.float64))
    states = [state for state, _ in iterate(net, kernel, batch, int(batch.free.sum(1).max()))]
    return torch.stack([~state.committed for state in states]).sum(0)


def test_lattice_of_each_segment_and_of_levels():
    parts = (Segment("a", "image", (2, 4)), Segment("b", "image", (4,)), Segment("s", "sound", (5,)))
    layout = Layout(VOCAB, parts)
    when = committed_order(Commit(Lattice()), make_batch(layout, torch.full((2, layout.length), VOCAB.mask)))[0]
    for name, shape in (("a", (2, 4)), ("b", (4,))):
        assert torch.equal(when[layout.columns(name)].argsort(), halton_order(shape))
    half = when[layout.columns("a")] <= 6, when[layout.columns("b")] <= 6
    assert [int(x.sum()) for x in half] == [4, 2]  # two pictures of one pool fill at the same pace
    sound = when[layout.columns("s")].view(5, 3)  # every first level, then every second, each in lattice order
    assert torch.equal(sound.T.reshape(-1).argsort(), torch.cat([halton_order((5,)) + 5 * d for d in range(3)]))
    assert lattice_places(layout) is lattice_places(layout)
    assert lattice_places(layout).shape == (layout.length,) and Commit(Lattice()).decide_first
    both = Layout(VocabLayout(6), (Segment("text", "text", (6,)),)).doubled(3)
    assert torch.equal(lattice_places(both)[:6], lattice_places(both)[6:])


# -- fading noise ----------------------------------------------------------------------------------------------------------


def one_state(length=72, rows=3):
    layout = Layout(VOCAB, (Segment("x", "text", (length,)),))
    batch = make_batch(layout, torch.full((rows, length), VOCAB.mask))
    return next(iterate(FunctionDenoiser(lambda state, step: None), Commit(), batch, 1))[0]


def scored(score, state, step, drawn=None, seed=0):
    index = torch.arange(state.tokens.numel())
    return score(state, step, index, drawn, Noise.seeded(seed, state.valid))


FLAT = UserScore(lambda state, step, index, drawn, noise: torch.zeros(len(index)), needs_draw=False, peeks=False)


def test_the_temperature_does_not_compound_unless_asked():  # pitfall 1
    state = one_state()
    gumbel = scored(Annealed(FLAT, 1.0, "constant"), state, Step(0, 1.0, 0.5))
    for steps, linear, compounded in ((5, 0.931, 0.807), (10, 0.861, 0.448), (20, 0.722, 0.039)):
        step = Step(steps - 1, 1 - (steps - 1) / 72, 1 - steps / 72)
        for mode, expected in (("linear", linear), ("cumulative", compounded)):
            ratio = scored(Annealed(FLAT, 2.0, mode), state, step) / gumbel / 2.0
            assert ratio.flatten().tolist() == pytest.approx([expected] * ratio.numel(), abs=1e-3)
        exact = math.prod(1 - j / 72 for j in range(1, steps + 1))
        ratio = scored(Annealed(FLAT, 1.0, "cumulative"), state, step) / gumbel
        assert ratio.flatten().tolist() == pytest.approx([exact] * ratio.numel(), rel=1e-9)
    for mode in ("linear", "cumulative"):
        assert (scored(Annealed(FLAT, 1.0, mode), state, Step(71, 1 / 72, 0.0)) == 0).all()  # the last round
    assert abs(float(gumbel.mean()) - 0.5772) < 0.3 and abs(float(gumbel.var()) - math.pi**2 / 6) < 0.8
    plain = Noise.seeded(0, state.valid).uniform(ORDER)
    assert float(torch.corrcoef(torch.stack([gumbel.flatten(), plain.flatten()]))[0, 1]) < 0.3  # a path of its own
    assert not torch.equal(gumbel, scored(Annealed(FLAT, 1.0, "constant"), state, Step(0, 1.0, 0.5), seed=1))


def test_noise_is_added_to_the_log_of_a_probability():
    state, step = one_state(), Step(0, 1.0, 0.8)
    logits = 3 * torch.randn(216, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = draw(logits, torch.full((216,), 0.5, dtype=torch.float64), STATISTICS)
    noise = scored(Annealed(FLAT, 1.0), state, step).flatten()
    for score, plain in (
        (Sure("confidence"), drawn.statistics["confidence"].log()),
        (Sure("margin"), drawn.statistics["margin"]),
        (Sure("entropy"), drawn.statistics["entropy"]),
        (Candidate(), drawn.log_prob),
    ):
        found = scored(Annealed(score, 1.0), state, step, drawn).flatten()
        assert found.tolist() == pytest.approx((plain + noise).tolist(), rel=1e-12)
        assert Annealed(score).peeks == score.peeks and Annealed(score).statistics == score.statistics
    assert float(log_scale(DepthPrefix(Sure()), torch.ones(1))) == 0.0


def hashed(state, step):
    place = state.valid.long().cumsum(1)
    wave = torch.sin((state.tokens.sum(1, keepdim=True) % 17 + 3.3 * place)[..., None] * 12.9 + torch.arange(6) * 78.2)
    return 3 * wave.double()


def test_no_temperature_no_change():
    batch = one_state(12, 40).batch
    runs = [
        sample(FunctionDenoiser(hashed), Commit(score), batch, 6, seed=2)[0].tokens
        for score in (Candidate(), Annealed(Candidate(), 0.0), Annealed(Candidate(), 1.0))
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_purity_draws_positions_without_replacement():
    """Improved VQ-Diffusion: positions are drawn in proportion to their largest probability."""
    top = torch.tensor([0.9, 0.5, 0.3, 0.6], dtype=torch.float64)
    law = torch.cat([top[:, None], ((1 - top) / 5)[:, None].expand(4, 5)], 1).log()
    batch, rows = one_state(4, 20000).batch, 20000
    denoiser = FunctionDenoiser(lambda state, step: law.expand(len(state.row), 4, 6))
    states = [state for state, _ in iterate(denoiser, Commit(SCORES["purity"]), batch, 4, seed=6)]
    first, second = (states[k].committed & ~states[k - 1].committed for k in (1, 2))
    found = torch.bincount(first.long().argmax(1) * 4 + second.long().argmax(1), minlength=16).double() / rows
    expected = torch.tensor(
        [0 if a == b else top[a] / top.sum() * top[b] / (top.sum() - top[a]) for a in range(4) for b in range(4)]
    ).double()
    assert total_variation(found, expected) < 1.5 * noise_floor(expected, rows)
    greedy = next(state for state, info in iterate(denoiser, Commit(Sure()), batch, 4) if info.nfe)
    assert (greedy.committed.long().argmax(1) == 0).all()  # confidence itself never varies


# -- depth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [Random(), Sure("margin"), Annealed(Sure(), 5.0), Candidate()])
def test_levels_wait_for_their_parents(inner):
    layout = Layout(VOCAB, (Segment("x", "text", (3,)), Segment("s", "sound", (4,))))
    batch = make_batch(layout, torch.full((30, layout.length), VOCAB.mask))
    net = FunctionDenoiser(lambda state, step: torch.cat([hashed(state, step), hashed(state, step)], -1))
    early = []
    for score in (DepthPrefix(inner), inner):
        states = [state for state, _ in iterate(net, Commit(score, jointly=True), batch, 5, seed=4)]
        levels = torch.stack([state.committed[:, 3:] for state in states]).view(-1, 4, 3).long()
        early.append(int((levels.diff(dim=-1) > 0).sum()))
    assert early[0] == 0 < early[1]


def test_a_level_whose_parents_are_there_keeps_its_score():
    layout = Layout(VOCAB, (Segment("s", "sound", (2,)),))
    batch = make_batch(layout, torch.full((1, 6), VOCAB.mask))
    state = next(iterate(FunctionDenoiser(hashed), Commit(), batch, 1))[0]
    state = state._replace(committed=torch.tensor([[True, False, False, False, False, False]]))
    values = torch.tensor([0.4, 0.7, 0.5, 0.9, 0.2], dtype=torch.float64)
    inner = UserScore(lambda state, step, index, drawn, noise: values, needs_draw=False)
    found = DepthPrefix(inner)(state, Step(0, 1.0, 0.5), torch.arange(1, 6), None, Noise.seeded(0, state.valid))
    assert found[0].tolist() == [-math.inf, 0.4, 0.4, 0.5, 0.5, 0.2]


# -- critics ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", [None, 0.3])
def test_a_critic_sees_the_candidates_and_its_order_is_followed(edit):
    batch, seen = one_state(12, 5).batch, []

    def critic(state, step):
        seen.append(state)
        return -state.tokens.double()

    states = [
        state for state, _ in iterate(FunctionDenoiser(hashed), Commit(Critic(critic), edit=edit), batch, 4, seed=1)
    ]
    for now, after, shown in zip(states, states[1:], seen):
        assert (shown.tokens != VOCAB.mask).all()
        assert torch.equal(shown.tokens[now.committed], now.tokens[now.committed])
        assert torch.equal(shown.committed, now.committed)
        newly = after.committed & ~now.committed
        for row in range(5):
            left = (~after.committed)[row]
            if left.any():
                assert shown.tokens[row][newly[row]].max() <= shown.tokens[row][left].min()
            assert torch.equal(after.tokens[row][newly[row]], shown.tokens[row][newly[row]])


# -- laws ------------------------------------------------------------------------------------------------------------------

OPEN = {
    "lattice": Lattice(),
    "purity": SCORES["purity"],
    "annealed": Annealed(Sure("margin"), 0.5),
    "cumulative": Annealed(Sure("confidence"), 1.0, "cumulative"),
}
PEEKING = {
    "candidate": Candidate(),
    "annealed": Annealed(Candidate(), 0.5),
    "critic": Critic(lambda state, step: (state.tokens == 0).double()),
    "user": UserScore(lambda state, step, index, drawn, noise: drawn.log_prob),
}


@pytest.mark.parametrize("name", OPEN)
def test_orders_that_do_not_peek_reach_the_floor(name):  # T11
    kernel = Commit(OPEN[name])
    away = check_kernel(kernel)
    print(f"{name}: {away:.2f} floors")
    assert away < 1.5 and kernel.unbiased


@pytest.mark.parametrize("name", PEEKING)
def test_orders_that_peek_are_biased(name):  # T11
    kernel = Commit(PEEKING[name])
    away = check_kernel(kernel)
    print(f"{name}: {away:.1f} floors")
    assert away > 10 and not kernel.unbiased


def test_closed_form_of_the_bias():
    """I4: P = [[.5, .1], [.1, .3]] becomes .70 and .12 on the diagonal."""
    pair, rows = Toy(torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64), symbols=2, length=2), 20000

    def law(score):
        return pair.law(sample(pair.denoiser(Absorbing()), Commit(score), pair.batch(rows), 2, seed=4)[0].tokens)

    assert law(Candidate())[[0, 3]].tolist() == pytest.approx([0.70, 0.12], abs=0.01)
    for score in (Lattice(), SCORES["purity"], Sure("confidence")):
        assert total_variation(law(score), pair.p) < 2 * noise_floor(pair.p, rows)


# -- conformance and what is refused ---------------------------------------------------------------------------------------

MORE = {
    "annealed": Annealed(Candidate(), 2.0),
    "cumulative": Annealed(Sure("margin"), 2.0, "cumulative"),
    "depth of annealed": DepthPrefix(Annealed(Sure(), 1.0)),
    "critic": Critic(lambda state, step: ((state.tokens * 7919) % 101 / 101).double()),
    "annealed critic": Annealed(Critic(lambda state, step: -(state.tokens % 5).double()), 1.0),
}


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("jointly", [False, True])
def test_conformance(name, jointly):
    check_conformance(Commit(MORE[name], Quota(), jointly=jointly))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Annealed(Sure(), -1.0), "temperature is -1.0"),
        (lambda: Annealed(Sure(), math.nan), "temperature is nan"),
        (lambda: Annealed(Sure(), 1.0, "cosine"), "mode is 'cosine'"),
        (lambda: Annealed("confidence"), "give a Score"),
        (lambda: Annealed(DepthPrefix()), "before their parents"),
        (lambda: DepthPrefix("margin"), "give a Score"),
        (lambda: Critic(3), "give a function"),
        (lambda: Sure("purity"), "purity"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_answers_of_another_shape_are_refused():
    batch = one_state(6, 2).batch
    for score, message in (
        (Critic(lambda state, step: torch.zeros(2)), r"the critic gave \(2,\)"),
        (UserScore(lambda state, step, index, drawn, noise: torch.zeros(2, 6)), r"gave \(2, 6\) for 12 sites"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(FunctionDenoiser(hashed), Commit(score), batch, 2)


def test_orders_name_their_wants():
    assert [s.needs_draw for s in (Random(), LeftToRight(), Lattice(), Sure(), Candidate())] == [False] * 3 + [True] * 2
    wants = {name: (s.statistics, s.peeks, s.probability) for name, s in SCORES.items()}
    assert wants["purity"] == (("confidence",), False, False) and wants["candidate"] == ((), True, False)
