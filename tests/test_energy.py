"""Energy-resampled proposals: the law of k candidates is its enumeration, in every kernel that takes a proposal."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from discdiff import Absorbing, Ancestral, FirstHitting, Interpolating, Remask, Uniform, iterate, sample
from discdiff.clocks import Blocks
from discdiff.correctors import Renoise
from discdiff.denoisers import ClassifierFree, FunctionDenoiser, Temperature
from discdiff.energy import Candidates, Energy, EnergyResampled, TokenEnergy, energies
from discdiff.kernels import Chain, RemaskConf
from discdiff.processes import vq_paper
from discdiff.testing import Toy, check_conformance, noise_floor, total_variation, toy

PAIR = Toy(torch.tensor([8.0, 1, 1, 2, 9, 1, 1, 1, 12], dtype=torch.float64) / 36, symbols=3, length=2)
MASK = 3


def co_ar(joint):
    """coAR of the joint's own factorisation: sum over drawn positions of log q - log p(x_i | x_<i)."""
    p = joint.p.view((joint.symbols,) * joint.length)
    before = [p.sum(dim=tuple(range(i, joint.length))) if i < joint.length else p for i in range(joint.length + 1)]

    class CoAR(Energy):
        def __call__(self, candidates, state, t):
            x = candidates.tokens.unbind(-1)
            log_p = [(before[i + 1][x[: i + 1]] / before[i][x[:i]]).log() for i in range(joint.length)]
            drawn = candidates.drawn[:, None]
            return torch.where(drawn, candidates.log_prob - torch.stack(log_p, -1), 0.0).sum(-1)

    return CoAR()


@dataclass(frozen=True)
class Negated(Energy):
    inner: Energy

    def __call__(self, candidates, state, t):
        return -self.inner(candidates, state, t)


def resampled_law(proposal, energy, k):
    """Sum over k-tuples of prod p(c_j) * w_j / sum w at c_j; proposal, energy (n,)."""
    law, tuples = torch.zeros_like(proposal), torch.cartesian_prod(*[torch.arange(len(proposal))] * k).view(-1, k)
    weight = proposal[tuples].prod(1, keepdim=True) * (-energy[tuples]).softmax(1)
    return law.index_add(0, tuples.flatten(), weight.flatten())


def chain_law(joint, energy, k, steps):
    """The law after `steps` linear steps of the absorbing chain, every transition enumerated."""
    states = list(itertools.product(range(MASK + 1), repeat=joint.length))
    law = torch.zeros(len(states), dtype=torch.float64)
    law[states.index((MASK,) * joint.length)] = 1
    for step in range(steps):
        reveal, after = 1 / (steps - step), torch.zeros_like(law)
        for start, mass in zip(states, law.tolist()):
            hidden = [i for i, symbol in enumerate(start) if symbol == MASK]
            if mass == 0 or not hidden:
                after[states.index(start)] += mass
                continue
            x = torch.tensor([start])
            log_p = joint.posterior(x, torch.full(x.shape, 0.5, dtype=torch.float64), Absorbing())[0]
            fills = list(itertools.product(range(MASK), repeat=len(hidden)))
            whole = x.repeat(len(fills), 1)
            whole[:, hidden] = torch.tensor(fills)
            carried = torch.zeros(whole.shape, dtype=torch.float64)
            carried[:, hidden] = torch.stack([log_p[i, [f[j] for f in fills]] for j, i in enumerate(hidden)], 1)
            drawn = torch.zeros(x.shape, dtype=torch.bool)
            drawn[0, hidden] = True
            found = energy(Candidates(whole[None], carried[None], drawn), None, None)[0]
            clean = resampled_law(carried.sum(1).exp(), found, k)
            for shown in itertools.product((True, False), repeat=len(hidden)):
                chance = math.prod(reveal if s else 1 - reveal for s in shown)
                for fill, p in zip(fills, clean.tolist()):
                    end = list(start)
                    for i, symbol, s in zip(hidden, fill, shown):
                        end[i] = symbol if s else MASK
                    after[states.index(tuple(end))] += mass * chance * p
        law = after
    return torch.stack([law[states.index(tuple(x))] for x in joint.table.tolist()])


def chi_square(counts, law):
    """Chi-square over the cells that hold at least five expected draws, per degree of freedom, in standard deviations."""
    expected = law * counts.sum()
    cells = expected >= 5
    freedom = int(cells.sum()) - 1
    return (float(((counts - expected)[cells] ** 2 / expected[cells]).sum()) - freedom) / math.sqrt(2 * freedom)


def draws(joint, proposal, steps, rows=20000, seed=0):
    kernel = Ancestral(proposal=proposal)
    state, info = sample(joint.denoiser(kernel.process), kernel, joint.batch(rows), steps, seed=seed)
    return joint.law(state.tokens) * rows, info


@pytest.mark.parametrize("k, steps", [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 3)])
def test_the_law_of_k_candidates_is_its_enumeration(k, steps):
    counts, info = draws(PAIR, EnergyResampled(co_ar(PAIR), k), steps)
    law = chain_law(PAIR, co_ar(PAIR), k, steps)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12) and abs(chi_square(counts, law)) < 4
    if k > 1:
        assert 1 < float(info.ess) < k and info.energy_rows == k * info.network_rows
        assert chi_square(draws(PAIR, EnergyResampled(Negated(co_ar(PAIR)), k), steps)[0], law) > 30, "the control"


def test_more_candidates_come_nearer_and_the_wrong_sign_goes_away():
    far = [total_variation(chain_law(PAIR, co_ar(PAIR), k, 1), PAIR.p) for k in (1, 2, 3, 4)]
    wrong = total_variation(chain_law(PAIR, Negated(co_ar(PAIR)), 2, 1), PAIR.p)
    assert far == sorted(far, reverse=True) and wrong > far[0]
    print(f"TV at k = 1..4: {[round(x, 3) for x in far]}, wrong sign at k = 2: {wrong:.3f}")


def test_one_step_with_the_joints_own_factors_reaches_the_joint():
    joint, rows = toy(), 4000
    far = {}
    for k in (1, 8, 256):
        state, info = sample(
            joint.denoiser(Absorbing()), Ancestral(proposal=EnergyResampled(co_ar(joint), k)), joint.batch(rows), 1
        )
        far[k] = total_variation(joint.law(state.tokens), joint.p) / noise_floor(joint.p, rows)
    assert far[1] > 5 and far[1] > 2 * far[8] > 2 * far[256] and far[256] < 1.5


PROCESSES = {"absorbing": Absorbing(), "uniform": Uniform(), "mask_or_replace": vq_paper(), "gidd": Interpolating()}
KERNELS = {
    "ancestral": lambda process, proposal: Ancestral(process, proposal),
    "remask": lambda process, proposal: Remask(process=process, proposal=proposal),
    "chain": lambda process, proposal: Chain((Ancestral(process), Renoise(1.0, process, proposal))),
}
OFTEN = ("absorbing", "uniform")
CASES = [
    *(
        pytest.param(*case, marks=[] if case[1] in OFTEN else pytest.mark.slow)
        for case in itertools.product(KERNELS, PROCESSES)
    ),
    ("remask_conf", "absorbing"),
]
KERNELS["remask_conf"] = lambda process, proposal: RemaskConf(process=process, proposal=proposal)


@pytest.mark.parametrize("kernel, process", CASES)
def test_every_kernel_that_takes_a_proposal(kernel, process):
    """k = 1 and no energy at all change no token; a constant changes none; a constant alone changes no law."""
    joint, make, rows = toy(), KERNELS[kernel], 3000
    process = PROCESSES[process]

    def run(proposal, count=rows):
        return sample(joint.denoiser(process), make(process, proposal), joint.batch(count), 5, seed=3)

    forbidden = TokenEnergy(lambda tokens: 1 / 0)
    plain, _ = sample(
        joint.denoiser(process), make(process, type(Ancestral().proposal)()), joint.batch(rows), 5, seed=3
    )
    for proposal in (EnergyResampled(forbidden, 1), EnergyResampled(forbidden, 4, window=0.0)):
        assert torch.equal(run(proposal)[0].tokens, plain.tokens)
    shifted = co_ar(joint) + TokenEnergy(lambda tokens: torch.full((len(tokens),), 3.0))
    moved, info = run(EnergyResampled(co_ar(joint), 3), 400)
    assert torch.equal(moved.tokens, run(EnergyResampled(shifted, 3), 400)[0].tokens)
    assert not torch.equal(moved.tokens, plain.tokens[:400]) and info.energy_rows >= 3
    flat = EnergyResampled(TokenEnergy(lambda tokens: torch.zeros(len(tokens))), 3)
    law, other = (joint.law(state.tokens) for state in (plain, run(flat)[0]))
    assert total_variation(law, other) < 1.6 * math.sqrt(2) * noise_floor(joint.p, rows)
    check_conformance(make(process, EnergyResampled(TokenEnergy(lambda tokens: tokens.double().cos().sum(1)), 3)))


def test_given_tokens_blocks_guidance_and_temperature():
    joint = toy()
    given = sample(
        joint.denoiser(Absorbing()), Ancestral(proposal=EnergyResampled(co_ar(joint), 64)), joint.batch(4000, {0: 1}), 1
    )[0]
    target = joint.conditional({0: 1})
    assert total_variation(joint.law(given.tokens), target) < 2 * noise_floor(target, 4000)
    seen = []

    def watch(tokens):
        seen.append(tokens)
        return torch.zeros(len(tokens))

    kernel = Ancestral(proposal=EnergyResampled(TokenEnergy(watch), 2))
    sample(joint.denoiser(Absorbing()), kernel, joint.batch(8), 2, clock=Blocks(2))
    mask = joint.layout.vocab.mask
    assert (seen[0][:, 2:] == mask).all() and (seen[0][:, :2] != mask).all(), "positions of later blocks stay masked"
    guided = ClassifierFree(joint.denoiser(Absorbing()), 1.5)
    assert sample(guided, kernel, joint.batch(8, {1: 2}), 3)[1].energy_rows > 0
    seen.clear()
    hot = Temperature(joint.denoiser(Absorbing()), 0.0)
    greedy, info = sample(hot, kernel, joint.batch(8), 2)
    assert float(info.ess) == 2 and all(torch.equal(x[::2], x[1::2]) for x in seen), "at 0 all candidates are one"


def test_candidates_are_one_pass_over_the_logits_and_one_call_of_the_energy():
    joint, calls, logits = toy(), [], []
    base = joint.denoiser(Absorbing())

    def function(state, step):
        prediction = FunctionDenoiser(base.function)(state, step)
        return prediction.then(lambda table, index: logits.append(len(index)) or table)

    def energy(candidates, state, t):
        assert candidates.tokens.shape == (len(state.tokens), 5, 4) and t.shape == state.tokens.shape
        same = (candidates.tokens == state.tokens[:, None]) | candidates.drawn[:, None]
        assert same.all() and (candidates.tokens < 3).all() and not state.committed[candidates.drawn].any()
        expected = (
            joint.posterior(state.batch.symbols(state.tokens), t, Absorbing()).exp()[:, None].expand(-1, 5, -1, -1)
        )
        chance = expected.gather(-1, candidates.tokens[..., None])[..., 0]
        assert torch.allclose(torch.where(candidates.drawn[:, None], chance, 1.0), candidates.log_prob.exp())
        calls.append(candidates.tokens[..., 0].numel())
        return candidates.tokens.double().sum(-1).cos()

    kernel = Ancestral(proposal=EnergyResampled(energy, 5))
    runs = list(iterate(FunctionDenoiser(function), kernel, joint.batch(6), 16, seed=2))
    infos = [info for _, info in runs if info.nfe]
    assert len(calls) == len(logits) == len(infos) and [info.energy_rows for info in infos] == calls
    hidden = [(~before.committed) for (before, _), (_, info) in zip(runs, runs[1:]) if info.nfe]
    moved = [(a.committed != b.committed).any(1) for (a, _), (b, info) in zip(runs, runs[1:]) if info.nfe]
    assert logits == [int((h & m[:, None]).sum()) for h, m in zip(hidden, moved)], (
        "rows in which nothing moves are not asked"
    )
    assert calls == [5 * int(m.sum()) for m in moved] and sum(calls) < 5 * 6 * 16


def test_the_window_is_the_early_part_of_the_run():
    joint, times = toy(), []

    def energy(candidates, state, t):
        times.append(float(t.max()))
        return torch.zeros(candidates.tokens.shape[:2])

    for window in (0.25, 0.5, 1.0):
        times.clear()
        sample(joint.denoiser(Absorbing()), Ancestral(proposal=EnergyResampled(energy, 2, window)), joint.batch(300), 8)
        assert min(times) == 1 - window if window < 1 else min(times) == 0.125
        assert max(times) == 1 and len(times) == (window * 8 + (window < 1))
    mixed = joint.batch(300)
    proposal = EnergyResampled(energy, 2, 0.25)
    plain, _ = sample(joint.denoiser(Uniform()), Ancestral(Uniform()), mixed, 8, seed=1)
    corrected, _ = sample(joint.denoiser(Uniform()), Ancestral(Uniform(), proposal), mixed, 8, seed=1)
    assert not torch.equal(plain.tokens, corrected.tokens)


def test_sums_multiples_and_bad_input():
    joint = toy()
    batch = joint.batch(2)
    candidates = Candidates(torch.arange(24).view(2, 3, 4) % 3, torch.zeros(2, 3, 4), batch.free)
    one = TokenEnergy(lambda tokens: tokens.double().sum(1))
    state = next(iter(iterate(joint.denoiser(Absorbing()), Ancestral(), batch, 1)))[0]
    value = energies(one + 2 * one + one * 0.5, candidates, state, state.time)
    assert torch.equal(value, 3.5 * candidates.tokens.double().sum(-1)) and value.dtype == torch.float64
    assert candidates.rows(torch.tensor([1])).tokens.shape == (1, 3, 4) and candidates.k == 3
    assert torch.equal(candidates.flat(state).tokens.view(2, 3, 4), candidates.tokens)
    for make, message in (
        (lambda: EnergyResampled(one, 0), "k is 0"),
        (lambda: EnergyResampled(one, 2.5), "k is 2.5"),
        (lambda: EnergyResampled(one, 2, 1.5), "window is 1.5"),
        (lambda: EnergyResampled(one, 2, 1.0, 0.0), "temperature is 0.0"),
        (lambda: EnergyResampled(3, 2), "energy is 3"),
        (lambda: 2.0 * one * math.inf, "scale is inf"),
        (lambda: FirstHitting(proposal=EnergyResampled(one, 2)), "factorised"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for broken, message in (
        (lambda c, s, t: torch.zeros(3, 2), r"\(2, 3\)"),
        (lambda c, s, t: 1.0, "float"),
        (lambda c, s, t: torch.full((2, 3), float("nan")), "row 0, candidate 0, is nan"),
        (TokenEnergy(lambda tokens: torch.zeros(2)), "one number for each"),
    ):
        with pytest.raises(ValueError, match=message):
            energies(broken, candidates, state, state.time)
    with pytest.raises(ValueError, match="1e4"):
        sample(
            joint.denoiser(Absorbing()),
            Ancestral(proposal=EnergyResampled(TokenEnergy(lambda x: x.sum(1) / 0))),
            batch,
            1,
        )
