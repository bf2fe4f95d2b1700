"""log Z between its bounds, and the bound of the corrected sampler against its enumeration on the exact toy."""

import itertools
import math

import pytest
import torch
from energy_toy import CUBE, MASK, TOY, every_candidate, exact_law, random_law, state_of, toy_log_probs

import discdiff.energy.likelihood as module
from discdiff.denoisers import FunctionDenoiser, Temperature, TopK
from discdiff.energy.autoregressive import AutoregressiveEnergy
from discdiff.energy.base import TokenEnergy, energies
from discdiff.energy.likelihood import draw_candidates, log_partition, marginal_nelbo
from discdiff.energy.resampled import EnergyResampled
from discdiff.kernels import Ancestral
from discdiff.layout import make_batch
from discdiff.maskers import Bernoulli
from discdiff.noise import Noise
from discdiff.processes import Absorbing
from discdiff.sampling import sample
from discdiff.types import Step

NLL = -TOY.p.log()
COAR = AutoregressiveEnergy(toy_log_probs)
ODD = TokenEnergy(lambda tokens: 1.5 * (tokens.double() * torch.tensor([1.0, 2.0, 3.0, 5.0])).sum(1).cos() + 0.7)


def marginal(x):
    return torch.stack([CUBE.sum([j for j in range(4) if j != i]).log() for i in range(4)]).expand(len(x), 4, 3)


PROPOSALS = {"exact": exact_law, "marginal": marginal, "random": random_law}


def denoiser(law):
    return FunctionDenoiser(lambda state, step: law(state.tokens))


def hidden_sets():
    """(positions, chance times weight n / count of the exact bound) of every set that may be hidden."""
    for size in range(1, 5):
        for unknown in itertools.combinations(range(4), size):
            yield list(unknown), 1 / size / math.comb(4, size)


def place(tokens):
    return (tokens * 3 ** torch.arange(3, -1, -1)).sum(-1)


def enumerated(energy, law):
    """For each of the 81 sequences: the sampler's bound, and the integral of the paper's joint expression."""
    bound, joint = torch.zeros(2, 81, dtype=torch.float64)
    for unknown, weight in hidden_sets():
        state, candidates = every_candidate(unknown, law)
        value = energies(energy, candidates, state, state.time)
        score = candidates.log_prob.sum(-1) - value
        log_z = score.logsumexp(1, keepdim=True)
        at = place(candidates.tokens)
        joint[at] += weight * (log_z - score)
        for i in unknown:
            same = candidates.tokens[:, :, None, i] == candidates.tokens[:, None, :, i]
            chance = torch.where(same, score[:, None], -torch.inf).logsumexp(-1) - log_z
            bound[at] -= weight * chance
    return bound, joint


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_joint_expression_is_the_autoregressive_likelihood(name):
    """T15: for coAR it is the NLL of every sequence with any proposal, so it says nothing of the sampler."""
    bound, joint = enumerated(COAR, PROPOSALS[name])
    assert float((joint - NLL).abs().max()) < 1e-9
    assert float(TOY.p @ bound) > float(TOY.p @ NLL) + 0.1, "a perfect autoregressive model, deaf to the right"
    full, weighed = enumerated(AutoregressiveEnergy(toy_log_probs, False), PROPOSALS[name])
    assert float((full - NLL).abs().max()) < 1e-9, "with AR the marginals are exact, so the bound is tight"
    assert float(TOY.p @ weighed) < float(TOY.p @ NLL) - 0.1, "here the joint expression is no bound at all"


def rows_of_the_toy(rows):
    """Sequences in the toy's own proportions, as nearly as `rows` allows, mixed; and which they are."""
    at = torch.searchsorted(TOY.p.cumsum(0), (torch.arange(rows).double() + 0.5) / rows)
    at = at[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    return make_batch(TOY.layout, TOY.table[at]), at


@pytest.mark.parametrize("name", ["exact", "marginal"])
@pytest.mark.parametrize("energy", [COAR, ODD], ids=["coar", "odd"])
def test_the_estimate_covers_the_enumerated_bound(energy, name):
    law = PROPOSALS[name]
    batch, at = rows_of_the_toy(1500)
    found = marginal_nelbo(
        denoiser(law), energy, [batch.rows(part) for part in torch.arange(1500).chunk(2)], n=48, seed=1
    )
    exact = float(enumerated(energy, law)[0][at].mean())
    plain = float(enumerated(TokenEnergy(lambda x: torch.zeros(len(x))), law)[0][at].mean())
    print(name, energy, exact, found)
    assert found.n == 48 and found.estimate.rows == 1500 and found.estimate.draws == 1
    assert abs(found.estimate.mean - exact) < 3 * found.estimate.stderr < 0.5
    assert abs(found.plain.mean - plain) < 3 * found.plain.stderr
    assert abs(exact - plain) > 5 * found.estimate.stderr, "the correction is visible"
    assert found.lower.mean < found.estimate.mean < found.upper.mean
    assert found.lower.mean - 3 * found.lower.stderr < exact < found.upper.mean + 3 * found.upper.stderr


def test_the_two_sides_close_in_and_a_known_partition_function_helps():
    batch, _ = rows_of_the_toy(300)
    gaps = {}
    for n in (4, 16, 64):
        found = marginal_nelbo(denoiser(marginal), COAR, [batch], n=n)
        known = marginal_nelbo(denoiser(marginal), COAR, [batch], n=n, log_z=0.0)
        gaps[n] = found.upper.mean - found.lower.mean
        assert found.lower.mean < known.lower.mean < known.upper.mean < found.upper.mean
        assert found.plain == known.plain
    assert gaps[4] > 2 * gaps[16] > 4 * gaps[64] > 0
    many, at = rows_of_the_toy(2000)
    exact = float(enumerated(COAR, marginal)[0][at].mean())
    few = marginal_nelbo(denoiser(marginal), COAR, [many], n=2, log_z=0.0)
    assert few.upper.mean > exact + 5 * few.upper.stderr, "with log Z known one side is a bound at every n"
    assert few.estimate.mean < few.upper.mean


def test_constant_and_wild_energies():
    batch, _ = rows_of_the_toy(300)
    none = marginal_nelbo(denoiser(exact_law), TokenEnergy(lambda x: torch.full((len(x),), 3.0)), [batch], n=2, draws=2)
    for side in none[:3]:  # a constant energy corrects nothing
        assert side.mean == pytest.approx(none.plain.mean, abs=1e-12) and side.draws == 2
    wild = marginal_nelbo(denoiser(exact_law), 200 * ODD, [batch], n=2)
    assert wild.lower.mean < 0 < wild.estimate.mean < wild.upper.mean, "an estimate without sense is visible as such"
    moved = marginal_nelbo(
        denoiser(exact_law), 2 * ODD + TokenEnergy(lambda x: torch.full((len(x),), 9.0)), [batch], n=4
    )
    for side, other in zip(moved[:4], marginal_nelbo(denoiser(exact_law), 2 * ODD, [batch], n=4)):
        assert side.mean == pytest.approx(other.mean, abs=1e-11)


def test_noise_is_the_rows_own():
    """Batches of any size, pieces of any size and the other masker of the same bound; another seed differs."""
    batch, _ = rows_of_the_toy(60)
    whole = marginal_nelbo(denoiser(marginal), ODD, [batch], n=4, seed=5)
    split = marginal_nelbo(
        denoiser(marginal), ODD, [batch.rows(torch.arange(7)), batch.rows(torch.arange(7, 60))], n=4, seed=5
    )
    assert whole.estimate.mean == pytest.approx(split.estimate.mean, abs=1e-12)
    assert marginal_nelbo(denoiser(marginal), ODD, [batch], n=4, seed=6) != whole
    many, at = rows_of_the_toy(3000)
    other = marginal_nelbo(denoiser(exact_law), COAR, [many], n=24, log_z=0.0, masker=Bernoulli())
    exact = float(enumerated(COAR, exact_law)[0][at].mean())
    assert abs(other.estimate.mean - exact) < 3 * other.estimate.stderr < 0.6


def test_small_pieces_give_the_same(monkeypatch):
    batch, _ = rows_of_the_toy(20)
    calls = []

    def counted(tokens):
        calls.append(len(tokens))
        return ODD.function(tokens)

    whole = marginal_nelbo(denoiser(marginal), TokenEnergy(counted), [batch], n=4)
    base, sites = calls
    monkeypatch.setattr(module, "_POSITIONS", 3 * 4 * 4)  # three sites at a time
    calls.clear()
    pieces = marginal_nelbo(denoiser(marginal), TokenEnergy(counted), [batch], n=4)
    for side, other in zip(pieces[:4], whole[:4]):
        assert side.mean == pytest.approx(other.mean, abs=1e-12)
    assert base == 20 * 4 and sum(calls) == base + sites and max(calls[1:]) == 12


def groups_of(state, law, energy, groups, n, seed=0):
    many = state.rows(torch.zeros(groups, dtype=torch.int64))
    prediction = denoiser(law)(many, Step(0, many.time, torch.zeros_like(many.time)))
    candidates = draw_candidates(prediction, many, Noise.seeded(seed, many.valid), n)
    return energies(energy, candidates, many, many.time)


@pytest.mark.parametrize("unknown", [[0, 1, 2, 3], [1, 3]], ids=str)
def test_bounds_enclose_log_z_and_close_in(unknown):
    state, candidates = every_candidate(unknown, exact_law)
    exact = float((candidates.log_prob.sum(-1) - ODD(candidates, state, state.time)).logsumexp(1)[0])
    assert abs(exact) > 0.05
    widths = []
    for n in (2, 8, 32, 128):
        values = groups_of(state, exact_law, ODD, 60000 // n, n)
        found = log_partition(values)
        assert (found.lower.n, found.lower.groups) == (found.upper.n, found.upper.groups) == (n, 60000 // n)
        assert found.lower.value - 3 * found.lower.stderr < exact < found.upper.value + 3 * found.upper.stderr
        if n < 32:  # significantly so, in expectation
            assert found.lower.value + 3 * found.lower.stderr < exact < found.upper.value - 3 * found.upper.stderr
        print(n, exact, found)
        widths.append(found.upper.value - found.lower.value)
        moved = log_partition(values + 2.5)
        for side, other in zip(found, moved):
            assert other.value == pytest.approx(side.value - 2.5, abs=1e-11)
            assert other.stderr == pytest.approx(side.stderr, abs=1e-11)
    assert widths[1] > 3 * widths[2] > 9 * widths[3] > 0
    one = -values[
        :, 0
    ].mean()  # the released code's log Zhat of one negative: far too low, so its perplexities are, too
    assert float(one) < exact - 0.3 and float(one) < found.lower.value - 0.3


def test_leaving_one_out_loses_no_digit():
    """One candidate may outweigh all others: what is left without it is not a difference."""
    values = torch.tensor([[-800.0, 3.0, 4.0, 900.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    direct = []
    for row in values:
        rest = [(-row[[j for j in range(4) if j != i]]).logsumexp(0) - math.log(3) for i in range(4)]
        direct.append(7 * ((-row).logsumexp(0) - math.log(4)) - 6 * torch.stack(rest).mean())
    found = log_partition(values)
    assert found.upper.value == pytest.approx(float(torch.stack(direct).mean()), rel=1e-14)
    for side in log_partition(values[1:]):
        assert side.value == pytest.approx(0, abs=1e-13) and side.stderr == math.inf


def test_the_bound_holds_for_the_samplers_own_law():
    """At many steps and candidates what coAR-corrected sampling gives is no better than its bound, and far from the NLL."""
    kernel = Ancestral(proposal=EnergyResampled(COAR, 16))
    state, _ = sample(TOY.denoiser(Absorbing()), kernel, TOY.batch(8000), 24, seed=0)
    law = TOY.law(state.tokens)
    seen = law > 0.002
    cross = float((TOY.p * -law.log())[seen].sum())
    bound = enumerated(COAR, exact_law)[0]
    assert cross < float((TOY.p * bound)[seen].sum())
    assert cross > float((TOY.p * NLL)[seen].sum()) + 0.01


def test_bad_input():
    batch, _ = rows_of_the_toy(4)
    good = denoiser(exact_law)
    hole = batch._replace(tokens=batch.tokens.index_fill(1, torch.tensor([2]), MASK))
    for make, message in (
        (lambda: log_partition(torch.zeros(3)), r"\(3,\)"),
        (lambda: log_partition(torch.zeros(3, 1)), "n >= 2"),
        (lambda: log_partition(torch.zeros(3, 2, dtype=torch.int64)), "int64"),
        (lambda: log_partition(torch.tensor([[0.0, math.inf]])), "not finite"),
        (lambda: marginal_nelbo(good, COAR, [batch], n=1), "n is 1"),
        (lambda: marginal_nelbo(good, COAR, [batch], draws=0), "draws is 0"),
        (lambda: marginal_nelbo(good, 3, [batch]), "energy is 3"),
        (lambda: marginal_nelbo(good, COAR, [batch], log_z=math.nan), "log_z is nan"),
        (lambda: marginal_nelbo(good, COAR, []), "no rows"),
        (lambda: marginal_nelbo(good, COAR, [hole]), "row 0, position 2 holds the mask"),
        (lambda: marginal_nelbo(Temperature(good, 0.0), COAR, [batch]), "temperature 1"),
        (lambda: marginal_nelbo(TopK(good, 1), COAR, [batch]), "no chance"),
        (lambda: marginal_nelbo(good, TokenEnergy(lambda x: torch.full((len(x),), math.nan)), [batch]), "nan"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    given = torch.ones(4, 4, dtype=torch.bool)
    nothing = marginal_nelbo(good, COAR, [make_batch(TOY.layout, batch.tokens, given=given)])
    assert nothing.estimate.mean == nothing.upper.mean == 0
    one = state_of(TOY.batch(1))
    assert draw_candidates(good(one, Step(0, 1.0, 0.0)), one, Noise.seeded(0, one.valid), 5).tokens.shape == (1, 5, 4)
