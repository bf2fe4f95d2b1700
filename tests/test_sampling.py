"""The loop, its grid and its clocks: what is refused, what a step is told, how many positions it may commit."""

import math

import pytest
import torch

from discdiff import (
    Absorbing,
    Ancestral,
    Blocks,
    Chain,
    Commit,
    CosineMD4,
    FirstHitting,
    FunctionDenoiser,
    Grid,
    Info,
    Joint,
    Layout,
    Modality,
    Nucleus,
    PerSegment,
    Priority,
    Quota,
    Random,
    Segment,
    Shared,
    Sure,
    Temperature,
    TopK,
    UserScore,
    VocabLayout,
    Windows,
    iterate,
    make_batch,
    row_seeds,
    sample,
)
from discdiff.sampling import as_grid
from discdiff.testing import Toy, noise_floor, total_variation, toy
from discdiff.types import Step

P = torch.tensor([0.05, 0.4, 0.2, 0.25, 0.1], dtype=torch.float64)
VOCAB = VocabLayout(6, (Modality("image", 9), Modality("action", 5)))
TWO = Layout(VOCAB, (Segment("image", "image", (4, 5)), Segment("action", "action", (8,), axes="t")))


def text(length, rows=3, **more):
    layout = Layout(VOCAB, (Segment("text", "text", (length,)),))
    return make_batch(layout, torch.full((rows, length), VOCAB.mask), **more)


def two(rows=3, **more):
    return make_batch(TWO, torch.full((rows, TWO.length), VOCAB.mask), **more)


def scores(state, step):
    """Logits that differ from place to place."""
    rows, length = state.tokens.shape
    value = torch.sin(torch.arange(length * 9, dtype=torch.float64) * 12.9898).view(length, 9)
    return (3 * value).expand(rows, length, 9)


DENOISER = FunctionDenoiser(scores)


# -- grids ---------------------------------------------------------------------------------------------------------


def test_grid_round_trip():
    grid = Grid((1.0, 0.4, 0.0), rate=(1.5, None), temperature=(0.0, 0.7))
    assert Grid.from_json(grid.to_json()) == grid and grid.used == ("rate", "temperature")
    assert list(grid) == [Step(0, 1.0, 0.4, rate=1.5, temperature=0.0), Step(1, 0.4, 0.0, temperature=0.7)]
    assert Grid.from_json(Grid.uniform(3).to_json()) == Grid.uniform(3) and "rate" not in Grid.uniform(3).to_json()
    assert as_grid(4) == Grid((1.0, 0.75, 0.5, 0.25, 0.0)) == as_grid([1, 0.75, 0.5, 0.25, 0]) and len(as_grid(4)) == 4
    assert Grid.uniform(2, guidance=-1.5).guidance == (-1.5, -1.5)
    assert Grid.uniform(1000).times[-1] == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Grid((1.0,)), "at least two"),
        (lambda: Grid((0.0, 1.0)), "must fall"),
        (lambda: Grid((1.0, 1.0, 0.0)), "step 0"),
        (lambda: Grid((1.5, 0.0)), r"in \[0, 1\]"),
        (lambda: Grid((1.0, math.nan)), "finite"),
        (lambda: Grid((1.0, 0.0), rate=(1.0, 2.0)), "2 values for 1 steps"),
        (lambda: Grid((1.0, 0.0), rate=(-1.0,)), "not negative"),
        (lambda: Grid((1.0, 0.0), temperature=(math.inf,)), "finite"),
        (lambda: Grid.uniform(0), "at least 1"),
        (lambda: Grid.uniform(2.5), "whole number"),
        (lambda: Grid.uniform(True), "whole number"),
        (lambda: Grid.uniform(2, speed=1.0), "speed"),
        (lambda: Grid.from_json("[1, 0]"), "not a grid"),
        (lambda: Grid.from_json("{"), "not a grid"),
        (lambda: Grid.from_json('{"times": [1, 0], "speed": [1]}'), "speed"),
        (lambda: Grid.from_json('{"rate": [1]}'), "not a grid"),
        (lambda: Grid.from_json('{"times": 3}'), "not a grid"),
    ],
)
def test_bad_grids(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- the loop ------------------------------------------------------------------------------------------------------


def refuse(state, step):
    raise AssertionError("the network was called")


@pytest.mark.parametrize(
    "kernel, batch, settings, message",
    [
        (Commit(), text(4), {"grid": Grid.uniform(2, rate=1.0)}, "rate"),
        (Ancestral(), text(4), {"grid": Grid.uniform(2, temperature=1.0)}, "temperature"),
        (Ancestral(), text(4), {"grid": Grid((0.5, 0.0))}, "starts at time 0.5"),
        (Ancestral(), text(4), {"grid": 0}, "at least 1"),
        (Ancestral(), text(4, given=torch.ones(3, 4, dtype=torch.bool)), {}, "nothing to sample"),
        (Ancestral(), text(4, given=torch.tensor([[True, False, False, False]] * 3)), {}, "row 0, position 0"),
        (Ancestral(PerSegment({"image": Absorbing()})), two(), {}, "action"),
        (Ancestral(), text(4), {"seed": [1, 2]}, "2 seeds for a batch of 3"),
        (Ancestral(), text(4), {"seed": 1.5}, "seed is 1.5"),
        (Ancestral(), text(4), {"seed": True}, "seed is True"),
        (Ancestral(), text(4), {"clock": Windows({"plan": (1.0, 0.0)})}, "plan"),
        (Ancestral(), text(4), {"clock": Priority()}, "priority"),
    ],
)
def test_refused_before_the_first_call(kernel, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        sample(FunctionDenoiser(refuse), kernel, batch, settings.pop("grid", 3), **settings)


def test_nothing_to_sample_without_a_noised_segment():
    layout = Layout(VOCAB, (Segment("text", "text", (4,), noised=False),))
    with pytest.raises(ValueError, match="nothing to sample"):
        sample(DENOISER, Ancestral(), make_batch(layout, torch.ones(1, 4, dtype=torch.int64)), 2)


def test_parts_refuse_what_they_cannot_do():
    for make, message in (
        (lambda: Commit(process="uniform"), "Absorbing"),
        (lambda: FirstHitting(process="uniform"), "Absorbing"),
        (lambda: Chain(()), "at least one"),
        (lambda: Joint(()), "at least one"),
        (lambda: Sure("purity"), "purity"),
        (lambda: Temperature(DENOISER, -1.0), "-1.0"),
        (lambda: TopK(DENOISER, 0), "at least one"),
        (lambda: Nucleus(DENOISER, 0.0), r"\(0, 1\]"),
        (lambda: FunctionDenoiser(scores, kind="both"), "both"),
        (lambda: Windows({"plan": (0.2, 0.5)}), "plan"),
        (lambda: Blocks(0), "at least 1"),
        (lambda: Priority(0.4), "1/pi"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_iterate_and_sample_agree_and_info_adds_up():
    steps = list(iterate(DENOISER, Ancestral(), two(), 7, seed=5))
    seen = []
    last, total = sample(DENOISER, Ancestral(), two(), 7, seed=5, callback=lambda *step: seen.append(step))
    assert len(seen) == len(steps) and seen[0][1] == Info() and (steps[0][0].tokens == VOCAB.mask).all()
    assert (last.tokens == steps[-1][0].tokens).all() and last.committed.all() and (last.time == 0).all()
    assert total.nfe == sum(info.nfe for _, info in steps) <= 7 and int(total.committed) == 3 * 28 == total.head_rows
    assert total.network_rows <= 3 * total.nfe and total.fed == total.network_rows * 28
    assert [float(state.time.max()) for state, _ in steps] == pytest.approx([1 - k / 7 for k in range(len(steps))])


def test_info_merges_counts_and_keeps_the_newest_diagnostics():
    first = Info(1, 2, 3, 4, 5, entropy=torch.tensor(0.5), ess=torch.tensor(2.0))
    merged = first.merge(Info(10, 20, 30, 40, torch.tensor(50), entropy=torch.tensor(0.25)))
    assert merged[:4] == (11, 22, 33, 44) and int(merged.committed) == 55
    assert float(merged.entropy) == 0.25 and float(merged.ess) == 2.0
    assert Info().merge(first) == first


def test_a_finished_run_stops_and_costs_no_further_calls():
    steps = list(iterate(toy().denoiser(Absorbing()), FirstHitting(), toy().batch(5), 100, seed=1))
    assert len(steps) == 1 + 8 and sum(info.nfe for _, info in steps) == 4  # it looks every 8 steps
    half = torch.tensor([[True, True, True, False]] * 5)
    given = toy().batch(5)._replace(tokens=torch.zeros(5, 4, dtype=torch.int64), given=half)
    assert sample(toy().denoiser(Absorbing()), FirstHitting(), given, 50)[1].nfe == 1


def test_seeds_of_rows():
    joint, seeds = toy(), row_seeds(7, 6)
    whole, _ = sample(joint.denoiser(Absorbing()), Ancestral(), joint.batch(6), 4, seed=7)
    one, _ = sample(joint.denoiser(Absorbing()), Ancestral(), joint.batch(2), 4, seed=seeds[[4, 1]])
    assert (one.tokens == whole.tokens[[4, 1]]).all()
    drawn = [
        sample(joint.denoiser(Absorbing()), Ancestral(), joint.batch(6), 4, seed=torch.Generator().manual_seed(n))[0]
        for n in (1, 1, 2)
    ]
    assert (drawn[0].tokens == drawn[1].tokens).all() and (drawn[0].tokens != drawn[2].tokens).any()


# -- wrappers ------------------------------------------------------------------------------------------------------


def constant(p=P):
    return FunctionDenoiser(lambda state, step: p.log().expand(*state.tokens.shape, len(p)))


def law_of(denoiser, grid=1, rows=20000):
    one = Toy(P, symbols=5, length=1)
    return one.law(sample(denoiser, Commit(), one.batch(rows), grid, seed=2)[0].tokens)


@pytest.mark.parametrize(
    "denoiser, weights",
    [
        (constant(), P),
        (Temperature(constant(), 0.5), P**2),
        (Temperature(constant(), 2.0), P**0.5),
        (TopK(constant(), 2), P * torch.tensor([0, 1, 0, 1, 0])),
        (TopK(constant(), 9), P),
        (Nucleus(constant(), 0.6), P * torch.tensor([0, 1, 0, 1, 0])),  # .4 + .25 is the first sum to reach .6
        (Nucleus(constant(), 0.7), P * torch.tensor([0, 1, 1, 1, 0])),  # the crossing token is kept
        (Nucleus(constant(), 1.0), P),
        (Nucleus(Temperature(constant(), 0.5), 0.5), P**2 * torch.tensor([0, 1, 0, 0, 0])),
        (Temperature(TopK(constant(), 3), 0.5), P**2 * torch.tensor([0, 1, 1, 1, 0])),
    ],
)
def test_law_of_wrappers(denoiser, weights):
    law = weights / weights.sum()
    found = law_of(denoiser)
    assert total_variation(found, law) < 2 * noise_floor(law, 20000) + 1e-12 and (found[law == 0] == 0).all()


def test_temperature_zero_and_the_steps_own_temperature():
    assert law_of(Temperature(constant(), 0.0))[1] == 1
    assert law_of(Temperature(constant(torch.tensor([0.3, 0.3, 0.1, 0.2, 0.1])), 0.0))[0] == 1  # lowest id of a tie
    assert law_of(Temperature(constant(), 0.0), Grid((1.0, 0.0), temperature=(1.0,)))[1] < 0.5
    assert law_of(Temperature(constant(), 1.0), Grid((1.0, 0.0), temperature=(0.0,)))[1] == 1
    assert law_of(Nucleus(Temperature(constant(), 0.0), 0.9))[1] == 1
    assert Nucleus(Temperature(constant())).reads == ("temperature",)


# -- quotas (algorithms_multimodal 0.1) ------------------------------------------------------------------------------


def hidden_counts(kernel, batch, steps, **settings):
    states = [state for state, _ in iterate(DENOISER, kernel, batch, steps, **settings)]
    return torch.stack([(state.free & ~state.committed).sum(1) for state in states[1:]], 1), states


def test_cosine_table():  # I5
    left, _ = hidden_counts(Commit(Sure(), Quota(CosineMD4())), text(56), 12)
    assert left.tolist() == [[55, 54, 51, 48, 44, 39, 34, 28, 21, 14, 7, 0]] * 3
    assert (-left[0].diff(prepend=torch.tensor([56]))).tolist() == [1, 1, 3, 3, 4, 5, 5, 6, 7, 7, 7, 7]


@pytest.mark.parametrize("steps", [1, 3, 8, 12, 40])
def test_quota_and_committed_tokens_stay(steps):  # I1, I2
    given = torch.zeros(3, 24, dtype=torch.bool)
    given[0, :7], given[1, 3:5] = True, True
    batch = text(24, given=given)._replace(tokens=torch.where(given, 2, VOCAB.mask))
    left, states = hidden_counts(Commit(Random(), Quota(CosineMD4())), batch, steps)
    free = batch.free.sum(1)
    before = free
    for k in range(steps):
        share = math.cos(math.pi / 2 * (k + 1) / steps)
        if k < left.shape[1]:  # the loop stops once everything is committed
            quota = torch.minimum((free * share + 1e-6).floor().long(), before - 1).clamp(min=0)
            assert (left[:, k] == quota).all()
            before = left[:, k]
    assert (left[:, -1] == 0).all()
    for now, later in zip(states, states[1:], strict=False):
        assert later.committed[now.committed].all() and (now.tokens == later.tokens)[now.committed].all()


@pytest.mark.parametrize("length", [1, 7, 49])
def test_one_position_per_round(length):  # I3; floor(n * (1 - k / n)) is where float arithmetic slips
    left, _ = hidden_counts(Commit(Sure("margin")), text(length), length)
    assert left.tolist() == [list(range(length - 1, -1, -1))] * 3


def test_the_order_decides_the_law():  # I4
    pair = Toy(torch.tensor([0.5, 0.1, 0.1, 0.3], dtype=torch.float64), symbols=2, length=2)
    denoiser, rows = pair.denoiser(Absorbing()), 20000

    def law(score):
        return pair.law(sample(denoiser, Commit(score), pair.batch(rows), 2, seed=4)[0].tokens)

    for score in (Random(), Sure("confidence"), Sure("entropy")):
        assert total_variation(law(score), pair.p) < 2 * noise_floor(pair.p, rows)
    peeking = law(UserScore(lambda state, step, index, drawn, noise: drawn.log_prob))
    assert peeking[[0, 3]].tolist() == pytest.approx([0.70, 0.12], abs=0.02)


def test_modalities_are_ranked_apart_unless_jointly():
    timid = FunctionDenoiser(
        lambda state, step: torch.where(TWO.tables().pool[:, None] == 2, 1e-3, 1.0) * scores(state, step)
    )

    def left(kernel):
        states = [state for state, _ in iterate(timid, kernel, two(), 4)]
        hidden = [state.free & ~state.committed for state in states]
        return [(int(h[0, TWO.columns("image")].sum()), int(h[0, TWO.columns("action")].sum())) for h in hidden]

    assert left(Commit(Sure())) == [(20, 8), (15, 6), (10, 4), (5, 2), (0, 0)]
    assert left(Commit(Sure(), jointly=True)) == [(20, 8), (13, 8), (6, 8), (0, 7), (0, 0)]  # the small one starves


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clock", [Shared(), Blocks(3), Windows({"image": (1.0, 0.6), "action": (0.7, 0.0)}), Priority(0.3)]
)
def test_clock_contract(clock):
    batch = two(2)._replace(features={"priority": torch.arange(28).expand(2, 28)})
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    times = torch.stack([clock(batch, float(x)) for x in t])
    assert (times[0] == 0).all() and (times[-1] == 1).all() and (times.diff(dim=0) >= -1e-15).all()
    rate = torch.stack([clock.rate(batch, float(x)).expand(2, 28) for x in t[1:-1]])
    central = (times[2:] - times[:-2]) / (t[2:] - t[:-2])[:, None, None]
    smooth = (rate - central).abs() < 1e-3 * rate.max() + 1e-4
    assert smooth.double().mean() > 0.97  # apart from the corners of a window
    per_row = clock(batch, torch.tensor([0.3, 0.8], dtype=torch.float64))
    assert torch.equal(per_row[0], clock(batch, 0.3)[0]) and torch.equal(per_row[1], clock(batch, 0.8)[1])


def test_windows_finish_one_segment_before_the_next():
    clock = Windows({"image": (1.0, 0.5), "action": (0.5, 0.0)})
    for kernel in (Ancestral(), Commit(Sure()), FirstHitting()):
        states = [state for state, _ in iterate(DENOISER, kernel, two(), 56, clock=clock)]
        image, action = (
            torch.stack([state.committed[:, TWO.columns(name)] for state in states]) for name in ("image", "action")
        )
        assert image[28].all() and not action[28].any() and image[10].any() and not image[10].all() and action[-1].all()


@pytest.mark.parametrize("count, size", [(3, 4), (5, 4), (6, 8), (11, 4)])  # 1 - 4/5 times 5 is not 1 in floats
def test_blocks_are_sampled_in_order(count, size):
    for kernel in (Ancestral(), Commit(Sure()), FirstHitting()):
        run = iterate(DENOISER, kernel, text(count * size - 1), count * size, clock=Blocks(size))
        for k, (state, _) in enumerate(run):
            for block in range(count):
                here = state.committed[:, size * block : size * (block + 1)]
                assert here.all() if k >= size * (block + 1) else True
                assert not here.any() if k <= size * block else True


@pytest.mark.parametrize("steps", [2, 5, 7])
def test_a_block_that_ends_within_a_step_is_finished(steps):
    for kernel in (Ancestral(), Commit(Random()), Commit(Sure()), FirstHitting()):
        states = [state for state, _ in iterate(DENOISER, kernel, text(9, rows=20), steps, clock=Blocks(3))]
        assert (states[-1].tokens != VOCAB.mask).all()
        for state in states:
            assert state.committed[state.time == 0].all()


def test_priority_needs_and_centres_its_feature():
    batch = text(4)._replace(features={"priority": torch.tensor([5.0, 1.0, 3.0, 3.0]).expand(3, 4)})
    assert Priority(0.3)(batch, 0.5)[0].tolist() == pytest.approx([0.2, 0.8, 0.5, 0.5])
    assert torch.equal(Priority(0.0)(batch, 0.37), Shared()(batch, 0.37))
    given = batch._replace(given=torch.tensor([[True, False, False, False]] * 3))
    assert Priority(0.3)(given, 0.5)[0, 1:].tolist() == pytest.approx([0.8, 0.35, 0.35])  # free positions only


# -- kernels side by side --------------------------------------------------------------------------------------------


class Counter:
    """A kernel that moves nothing but a memory of its own."""

    process, unbiased, decide_first, final, reads = Absorbing(), True, True, False, ()

    def __init__(self, name):
        self.name = name

    def init(self, state):
        return state._replace(memory={**state.memory, self.name: torch.zeros(len(state.row))})

    def __call__(self, denoiser, state, step, noise):
        return state._replace(memory={**state.memory, self.name: state.memory[self.name] + 1}), Info()


def test_joint_keeps_what_each_kernel_moved():
    kernel = Joint((Counter("first"), Ancestral(), Counter("second")))
    states = [state for state, _ in iterate(DENOISER, kernel, text(2, rows=1), 40, seed=3)]
    assert states[-1].memory["first"].tolist() == [40] == states[-1].memory["second"].tolist()
    assert [float(state.time[0, 0]) for state in states] == pytest.approx([1 - k / 40 for k in range(41)])
    alone = [
        state for state, _ in iterate(DENOISER, Chain((Counter("first"), Ancestral())), text(2, rows=1), 40, seed=3)
    ]
    assert (alone[-1].tokens == states[-1].tokens).all()
