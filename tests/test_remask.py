"""Re-masking kernels: decided first, the promises of a kernel, ReMDM-conf, the plateau; laws are in test_remask_laws."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_decide_first import MIXED, TEXT, denoiser, laws, make, parts, pick
from test_laws import PROCESSES, table_denoiser

from discdiff.clocks import Blocks, Plateau, Shared
from discdiff.denoisers import FunctionDenoiser
from discdiff.kernels.remask import Remask
from discdiff.kernels.remdm_conf import RemaskConf
from discdiff.kernels.strategies import DFM, Cap, ForwardBackward, Held, Moment, Rescale, Strategy, Switch
from discdiff.layout import make_batch
from discdiff.noise import MASK, TOKEN, WAKE, Noise
from discdiff.processes import Absorbing, Dense, PerSegment, Uniform, vq_released
from discdiff.proposals import Factorised
from discdiff.sampling import Grid, iterate, sample
from discdiff.schedules import CosineMD4, Geometric, Linear
from discdiff.testing import check_conformance, toy
from discdiff.types import Step

LOOP = Plateau(0.6, 0.3, 0.7)
CHOSEN = {
    "cap": Cap(0.2),
    "rescale": Rescale(0.6),
    "forward_backward": ForwardBackward(),
    "dfm": DFM(3.0),
    "switch": Switch(Rescale(1.0), 0.6),
    "held": Held(Cap(0.3)),
}
each_strategy = pytest.mark.parametrize("strategy", CHOSEN.values(), ids=CHOSEN.keys())
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def clock_of(strategy, process=None):
    held = isinstance(strategy, Held)
    return replace(LOOP, schedule=getattr(process, "schedule", Linear())) if held else Shared()


def moment(schedule, t, s):
    t, s = (torch.as_tensor(x, dtype=torch.float64) for x in (t, s))
    return Moment(t, s, schedule.alpha(t), schedule.alpha(s))


# -- deciding first ----------------------------------------------------------------------------------------------------


def plain_remask(net, kernel, batch, grid, seed, clock, kind):
    """Every position evaluated at every step; asserts that x0 does not matter where the kernel does not ask for it."""
    start, _ = next(iterate(FunctionDenoiser(lambda state, step: None), kernel, batch, grid, seed=seed))
    x, time, free, noise = batch.symbols(start.tokens), batch.free.double(), batch.free, Noise.seeded(seed, batch.valid)
    awake = []
    for step in grid:
        s, keyed = torch.minimum(time, clock(batch, step.s)), noise.step(step.index)
        moving = free & ((s < time) | ((s > 0) & (s < 1)))
        logits, after, needed = net(x, time), x.clone(), torch.zeros_like(free)
        u, v, w = (keyed.uniform(stream) for stream in (WAKE, TOKEN, MASK))
        for part, size, here in parts(kernel.process, batch):
            now, t, e, a = x[here], time[here], s[here], u[here]
            late, early = part.marginal(t, size).keep, part.marginal(e, size).keep
            law, evidence = laws(part, size, now, t, e)
            prediction = logits[here][:, :size].softmax(-1)
            if kind == "cavity":
                prediction = (prediction * evidence) / (prediction * evidence).sum(-1, keepdim=True)
            edges = prediction.cumsum(-1)
            x0 = (edges <= v[here][:, None] * edges[:, -1:]).sum(-1)
            strength = kernel.strategy.strength if step.renoise is None else step.renoise
            if isinstance(strength, str):
                strength = batch.features[strength][here]
            chance = kernel.strategy.chance(Moment(t, e, late, early), strength)
            renoise = w[here] < torch.where(chance > 0, chance / (1 - early), 0.0)
            rest = part.marginal(e, size)

            def outcome(x0):  # noqa: B023
                if isinstance(part, Absorbing):  # noqa: B023
                    stay = torch.where(e > 0, (1 - early - chance * late) / (1 - late), 0.0)  # noqa: B023
                    shown = torch.where(a >= stay, x0, now)  # noqa: B023
                    return torch.where(now == size, shown, torch.where(a < chance, size, now))  # noqa: B023
                one = law[torch.arange(len(now)), x0]  # noqa: B023
                first = torch.nn.functional.one_hot(now, size + 1) * 4  # noqa: B023
                first = first + torch.nn.functional.one_hot(x0, size + 1) * 2  # noqa: B023
                first[:, size] += 1  # noqa: B023
                moved = pick(one, first.argsort(dim=1, descending=True, stable=True), a)  # noqa: B023
                mass = torch.cat([rest.keep[:, None], rest.mask[:, None], rest.token[:, None].expand(-1, size)], 1)  # noqa: B023
                slot = (mass.cumsum(1) <= a[:, None]).sum(1).clamp(max=size + 1)  # noqa: B023
                noisy = torch.where(slot == 0, x0, torch.where(slot == 1, size, slot - 2))  # noqa: B023
                out = torch.where(renoise, noisy, moved)  # noqa: B023
                return torch.where((out == size) & (e <= 0), x0, out)  # noqa: B023

            every = torch.stack([outcome(torch.full_like(now, k)) for k in range(size)])
            possible = (evidence > 0).T | renoise
            settled = torch.where(possible, every == outcome(x0), True).all(0)
            after[here] = torch.where(moving[here], outcome(x0), now)
            needed[here] = moving[here] & asked_for(part, now, size, a, law, evidence, renoise, early, chance, late, e)
            assert bool(settled[moving[here] & ~needed[here]].all())
        x, time = after, torch.where(free, s, time)
        awake.append(needed)
    return x, torch.stack(awake)


def asked_for(part, now, size, u, law, evidence, renoise, early, chance, late, s):
    """Where the clean token is needed, by the minimum over x0 of the enumerated law."""
    if isinstance(part, Absorbing):
        return (now == size) & ((u >= (1 - early - chance * late) / (1 - late)) | (s <= 0))
    stays = law[torch.arange(len(now)), :, now]
    hold = torch.where(evidence > 0, stays, 1.0).amin(1)
    hold = torch.where((now == size) & (s <= 0), 0.0, hold)
    return torch.where(renoise, u < early, u >= hold)


def compare(kernel, kind="own", layout=TEXT, steps=10, given=False, clock=None, seed=3, features=None, **knobs):
    batch, clock = make(layout, given), clock or clock_of(kernel.strategy, kernel.process)
    if features is not None:
        batch = make_batch(layout, batch.tokens, given=batch.given, features=features)
    grid = Grid.uniform(steps, **knobs)
    model, net, calls = denoiser(kind)
    state, info = sample(model, kernel, batch, grid, seed=seed, clock=clock)
    expected, awake = plain_remask(net, kernel, batch, grid, seed, clock, kind)
    assert torch.equal(state.batch.symbols(state.tokens), expected)
    rows = awake.any(2)
    assert info.head_rows == int(awake.sum()) and info.network_rows == int(rows.sum()) == sum(calls)
    assert info.nfe == int(rows.any(1).sum()) == len(calls)
    assert torch.equal(state.tokens[batch.given], batch.tokens[batch.given]) and bool(state.committed.all())
    return info, batch


@pytest.mark.parametrize("process", [*PROCESSES.values(), Absorbing(Linear(end=0.2)), vq_released()], ids=repr)
@pytest.mark.parametrize("kind", ["own", "cavity"])
def test_tokens_are_those_of_evaluating_everything(process, kind):
    for strategy in CHOSEN.values():
        info, batch = compare(Remask(process, strategy), kind, given=kind == "cavity")
        assert info.head_rows < 10 * int(batch.free.sum())


def test_blocks_segments_and_knobs():
    mixed = PerSegment({"text": Absorbing(), "image": Uniform()})
    for kernel in (Remask(mixed, Rescale(0.5)), Remask(mixed, Cap(0.4)), Remask(Uniform(), Cap(0.4))):
        compare(kernel, layout=MIXED)
        compare(kernel, "cavity", MIXED, given=True, renoise=0.8)
    compare(Remask(mixed, Held(Cap(0.4))), layout=MIXED, clock=LOOP)
    compare(Remask(strategy=Cap(0.3)), clock=Blocks(3), given=True, steps=15)


def test_only_reveals_cost_the_head():
    """For absorbing the head runs at the reveals and nowhere else, the network for the rows that have one."""
    batch = make()
    model, _, calls = denoiser()
    before, taken = None, 0
    for state, info in iterate(model, Remask(strategy=Rescale(0.7)), batch, 12, seed=1):
        if before is not None:
            masked = before.tokens == batch.layout.vocab.mask
            shown = masked & (state.tokens != batch.layout.vocab.mask)
            back = ~masked & (state.tokens == batch.layout.vocab.mask)
            assert info.head_rows == int(shown.sum()) == int(info.committed)
            assert info.network_rows == int(shown.any(1).sum()) == sum(calls)
            assert torch.equal(state.committed, state.tokens != batch.layout.vocab.mask)
            assert torch.equal(state.tokens[~shown & ~back], before.tokens[~shown & ~back])
            taken += int(back.sum())
        before = state
        calls.clear()
    assert taken > 20


@dataclass(frozen=True)
class Together(Factorised):
    """A joint proposal in name: it draws as the factorised one."""

    joint = True


@pytest.mark.parametrize("process", [Absorbing(), Uniform()], ids=repr)
def test_joint_proposals_see_all_unknown_positions(process):
    runs = []
    for proposal in (Factorised(), Together()):
        kernel = Remask(process, Cap(0.3), proposal)
        runs.append(list(iterate(denoiser()[0], kernel, make(), 8, seed=2)))
        assert kernel.decide_first == (not proposal.joint)
    for (before, _), (state, info), (other, more) in zip(runs[1], runs[0][1:], runs[1][1:]):
        assert torch.equal(state.tokens, other.tokens)
        assert more.network_rows == info.network_rows
        unknown = before.tokens == before.batch.layout.vocab.mask
        busy = (unknown & (state.tokens != before.batch.layout.vocab.mask)).any(1, keepdim=True)
        every = (unknown & busy).sum() if isinstance(process, Absorbing) else unknown.shape[1] * info.network_rows
        assert more.head_rows == int(every)


# -- ReMDM-conf --------------------------------------------------------------------------------------------------------


def deficit(kernel, rows=2000, steps=20):
    """How far the unmasked share falls short of alpha in mid-run, positions of equal confidence."""
    batch = toy().batch(rows)
    flat = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 3))
    runs = list(iterate(flat, kernel, batch, steps, seed=1))
    return max(k / steps - float(state.committed.double().mean()) for k, (state, _) in enumerate(runs)), runs


def test_conf_falls_short_and_catches_up():
    """T10: ReMDM-conf does not keep the marginals; the same chance spent by `Remask` does."""
    away, runs = deficit(RemaskConf(strategy=Cap(0.8)))
    control, _ = deficit(Remask(strategy=Cap(0.2)))
    print(f"deficit {away:.3f}, Remask {control:.3f}")
    assert away > 0.1 and abs(control) < 0.02 and bool(runs[-1][0].committed.all())
    assert not RemaskConf().unbiased and RemaskConf().decide_first and not RemaskConf().final


def test_conf_takes_back_the_unsure():
    law = toy()
    runs = [
        state for state, _ in iterate(law.denoiser(Absorbing()), RemaskConf(strategy=Cap(0.6)), law.batch(1500), 16)
    ]
    for state in runs:
        psi = state.memory["psi"]
        assert psi.dtype == torch.float64 and torch.equal(psi < torch.inf, state.committed)
        assert bool(((psi > 0) & (psi <= 1))[state.committed].all())
    gone = torch.cat([a.memory["psi"][a.committed & ~b.committed] for a, b in zip(runs, runs[1:])])
    stayed = torch.cat([a.memory["psi"][a.committed & b.committed] for a, b in zip(runs, runs[1:])])
    assert len(gone) > 300 and float(gone.mean()) < float(stayed.mean()) - 0.02


def test_conf_shares_one_chance_among_a_row():
    """With equal confidences each of n revealed tokens goes back with chance sigma / n."""
    batch = toy().batch(40_000)
    state, _ = next(iterate(FunctionDenoiser(lambda state, step: None), RemaskConf(strategy=Cap(0.5)), batch, 4))
    seen = torch.tensor([[True, True, True, False]]).expand(len(batch.tokens), -1)
    psi = torch.where(seen, 0.4, torch.inf).double()
    time = torch.full(seen.shape, 0.5, dtype=torch.float64)
    state = state._replace(tokens=torch.where(seen, 1, batch.tokens), committed=seen, time=time, memory={"psi": psi})
    flat = FunctionDenoiser(lambda state, step: torch.zeros(*state.tokens.shape, 3))
    step = Step(0, time, time)  # time stands still: nothing is revealed
    after, info = RemaskConf(strategy=Cap(0.5))(flat, state, step, Noise.seeded(0, batch.valid))
    back = (seen & ~after.committed).double().mean(0)
    assert info.nfe == 0 and float((back[:3] - 0.5 / 3).abs().max()) < 0.01
    assert bool((after.tokens == batch.tokens)[seen & ~after.committed].all())
    assert torch.equal(after.memory["psi"] < torch.inf, after.committed)


# -- the plateau -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), CosineMD4(), Linear(end=1e-3), Geometric(0.3, 5.0)], ids=repr)
def test_plateau_is_a_clock(schedule):
    clock, batch = Plateau(0.55, 0.05, 0.7, schedule), toy().batch(2)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    reached = torch.stack([clock(batch, float(t)) for t in times])[:, 0, 0]
    assert float(reached[0]) == 0 and float(reached[-1]) == 1 and bool((reached.diff() >= 0).all())
    on = (times > 0.05) & (times <= 0.55)
    assert float((schedule.alpha(reached[on]) - 0.7).abs().max()) < 1e-12 and len(reached[on].unique()) == 1
    assert bool((reached[(times > 0.56) & (times < 1)] > reached[on][0]).all())
    for t in (0.02, 0.3, 0.8):
        slope = (clock(batch, t + 1e-6) - clock(batch, t - 1e-6)) / 2e-6
        inside = (clock(batch, t) > 0) & (clock(batch, t) < 1)
        assert float((clock.rate(batch, t) - slope)[inside].abs().amax() if bool(inside.any()) else 0) < 1e-5
    assert clock(batch, torch.tensor([0.3, 0.8])).shape == batch.tokens.shape


def test_the_masked_share_follows_the_plateau():
    """ReMDM-loop: reveals, then an exchange of tokens at a constant share, then reveals again."""
    law, steps, rows, taken = toy(), 30, 5000, {"plateau": 0, "else": 0}
    kernel, clock = Remask(strategy=Held(Cap(0.2))), Plateau(0.61, 0.19, 0.7)
    before = None
    denoise = table_denoiser(kernel.process, law)
    for k, (state, _) in enumerate(iterate(denoise, kernel, law.batch(rows), steps, seed=3, clock=clock)):
        run = 1 - k / steps
        alpha = 1 - float(clock(state.batch, run)[0, 0])
        assert float(state.committed.double().mean()) == pytest.approx(alpha, abs=4.5 * (0.25 / rows / 4) ** 0.5)
        if before is not None:
            held = bool((before.time == state.time).all())
            assert held == (run > 0.19 and run + 1 / steps < 0.61)
            taken["plateau" if held else "else"] += int((before.committed & ~state.committed).sum())
        before = state
    assert taken["else"] == 0 and taken["plateau"] > rows
    assert bool(before.committed.all())


# -- settings, features and promises -----------------------------------------------------------------------------------

EVERYWHERE = {
    **PROCESSES,
    "geometric": Absorbing(Geometric(0.3, 5.0)),
    "vq_released": vq_released(),
    "per_segment": PerSegment({"left": Absorbing(), "right": Uniform()}),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_conformance_of_processes(name):
    check_conformance(Remask(EVERYWHERE[name], Rescale(0.6)), Grid.uniform(5))
    check_conformance(Remask(EVERYWHERE[name], Held(Cap(0.4))), Grid.uniform(8, renoise=0.3), clock=LOOP)


@each_strategy
@pytest.mark.parametrize("name", ["absorbing", "per_segment"])
def test_conformance_of_strategies(name, strategy):
    check_conformance(Remask(EVERYWHERE[name], strategy), 8, clock=clock_of(strategy))
    if name == "absorbing":
        check_conformance(RemaskConf(EVERYWHERE[name], strategy), 8, clock=clock_of(strategy))


def test_conformance_of_conf():
    for process in (Absorbing(CosineMD4()), Absorbing(Geometric(0.3, 5.0))):
        check_conformance(RemaskConf(process, Rescale(0.9)), Grid.uniform(9))


def test_given_positions_never_move_on_the_plateau():
    batch = make(given=True)
    clock = Plateau(0.6, 0.1, 0.8)
    for kernel in (Remask(strategy=Held(Rescale(1.0))), RemaskConf(strategy=Rescale(1.0)), Remask(Uniform(), Cap(1.0))):
        for state, _ in iterate(denoiser()[0], kernel, batch, 25, seed=6, clock=clock):
            assert torch.equal(state.tokens[batch.given], batch.tokens[batch.given])
            assert bool(state.committed[batch.given].all())


def test_a_step_overrides_the_strength():
    def tokens(strategy, grid):
        return sample(denoiser()[0], Remask(strategy=strategy), make(), grid, seed=1)[0].tokens

    for kind in (Cap, Rescale, DFM):
        assert torch.equal(tokens(kind(0.1), Grid.uniform(9, renoise=0.7)), tokens(kind(0.7), 9))
        assert not torch.equal(tokens(kind(0.1), 9), tokens(kind(0.7), 9))
    assert torch.equal(tokens(ForwardBackward(), Grid.uniform(9, renoise=2.0)), tokens(DFM(2.0), 9))
    half = Grid(tuple(1 - k / 9 for k in range(10)), renoise=(None, 0.7) * 4 + (None,))
    assert not torch.equal(tokens(Cap(0.1), half), tokens(Cap(0.1), 9))
    with pytest.raises(ValueError, match="renoise is 1.5.*Rescale"):
        tokens(Rescale(0.1), Grid.uniform(9, renoise=1.5))


def test_a_strength_per_position():
    shape = make().tokens.shape
    column = torch.arange(shape[1]).expand(shape)
    eta = torch.where(column % 2 == 0, 0.0, 0.9)
    for process in (Absorbing(), Uniform()):
        compare(Remask(process, Rescale("eta")), features={"eta": eta})
    batch = make_batch(TEXT, make().tokens, features={"eta": eta})
    runs = [s.committed for s, _ in iterate(denoiser()[0], Remask(strategy=Rescale("eta")), batch, 12)]
    back = sum((a & ~b).sum(0) for a, b in zip(runs, runs[1:]))
    assert int(back[::2].sum()) == 0 and int(back[1::2].min()) > 0
    same = make_batch(TEXT, make().tokens, features={"eta": torch.full(shape, 0.25)})
    both = [
        sample(denoiser()[0], Remask(strategy=Switch(Cap(value), 0.8)), rows, 9)[0].tokens
        for value, rows in (("eta", same), (0.25, make()))
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Cap(-0.1), "eta is -0.1.*0 to 1"),
        (lambda: Cap(float("nan")), "eta is nan"),
        (lambda: Rescale(1.5), "eta is 1.5.*0 to 1"),
        (lambda: DFM(-1.0), "beta is -1.0"),
        (lambda: Switch(Cap(), 0.0), "t_switch is 0.0"),
        (lambda: Switch(0.5), "base is 0.5"),
        (lambda: Held("cap"), "base is 'cap'"),
        (lambda: Remask(strategy=0.02), "strategy is 0.02"),
        (lambda: Remask(Dense.of(Uniform(), 3, 4)), "process is 'Dense'"),
        (lambda: Remask(PerSegment({"x": Dense.of(Uniform(), 3, 4)})), "dense oracle"),
        (lambda: RemaskConf(Uniform()), "process is 'Uniform'.*Absorbing"),
        (lambda: RemaskConf(strategy="cap"), "strategy is 'cap'"),
        (lambda: Plateau(0.05, 0.55), "plateau from 0.05 to 0.55"),
        (lambda: Plateau(1.0, 0.5), "plateau from 1.0"),
        (lambda: Plateau(alpha_on=1.0), "alpha_on 1.0"),
        (lambda: Plateau(alpha_on=0.9, schedule=Geometric(0.3, 5.0)), "alpha_on 0.9"),
    ],
)
def test_bad_settings_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("kernel", [Remask(strategy=Cap("eta")), RemaskConf(strategy=Held(Cap("eta")))], ids=repr)
def test_bad_features_are_refused_before_the_first_call(kernel):
    model, _, calls = denoiser()
    shape = make().tokens.shape
    wrong = ({}, {"eta": torch.zeros(shape[0], 3)}, {"eta": torch.full(shape, 1.5)}, {"eta": torch.full(shape, -0.1)})
    for features in (*wrong, {"eta": torch.full(shape, torch.nan)}):
        with pytest.raises(ValueError, match="eta"):
            sample(model, kernel, make_batch(TEXT, make().tokens, features=features), 4)
    assert not calls


def test_a_strategy_of_your_own():
    @dataclass(frozen=True)
    class Early(Strategy):
        strength: float = 5.0
        most = 10.0

        def wanted(self, at, strength):
            return strength * at.t**2

    compare(Remask(strategy=Early()))
    with pytest.raises(TypeError, match="no chance"):
        Strategy().chance(moment(Linear(), 0.5, 0.4), 0.1)
