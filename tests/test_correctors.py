"""Correctors: what they do to an exact law, by enumeration and by counting."""

import functools

import pytest
import torch
from corrector_toy import (
    DRAWS,
    PLACE,
    chi_square,
    correct,
    drawn_at,
    each_process,
    floors,
    law_at,
    masked,
    mass,
    moved,
    states,
    tilted,
)

from discdiff import (
    Absorbing,
    Ancestral,
    FunctionDenoiser,
    Interpolating,
    MaskOrReplace,
    PerSegment,
    Uniform,
    sample,
)
from discdiff.correctors import Gibbs, Informed, Renoise
from discdiff.testing import Toy, total_variation, toy

# -- Gibbs ------------------------------------------------------------------------------------------------------------


def test_gibbs_keeps_the_law_by_enumeration():
    """T12: the mean over positions of p(x_i | x_-i) leaves p as it is."""
    law = toy()
    p = law.p.view(3, 3, 3, 3)
    after = sum(p.sum(i, keepdim=True) * (p / p.sum(i, keepdim=True)) for i in range(4)) / 4
    assert float((after - p).abs().max()) < 1e-16


@each_process
@pytest.mark.parametrize(("s", "kind"), [(0.5, "own"), (0.5, "cavity"), (0.0, "own"), (0.0, "cavity")])
def test_gibbs_keeps_the_law_at_every_level(process, s, kind):
    """T12: two redraws change a good part of the tokens and leave the joint law of all noisy states."""
    before = drawn_at(process, s)
    after, info = correct(Gibbs(2, process=process), before, s + 0.1, s, kind)
    assert floors(before, law_at(process, toy(), s)) < 1.5
    assert floors(after, law_at(process, toy(), s)) < 1.5
    assert torch.equal(masked(before), masked(after)) and torch.equal(before.time, after.time)
    blind = s == 0 and kind == "own" and isinstance(process, Uniform)  # an own prediction only repeats a clean token
    assert info.nfe == (0 if blind else 2)
    assert (moved(before, after) == 0) if blind else (moved(before, after) > 0.05)


def test_gibbs_controls_fail():
    """Two tokens at once, cavities taken for own predictions, and predictions a little off are all seen."""
    before = drawn_at(Absorbing(), 0.0)
    after, _ = correct(Gibbs(2, parallel=2), before, 0.1, 0.0)
    assert floors(after, law_at(Absorbing(), toy(), 0.0)) > 5 and not Gibbs(parallel=2).unbiased
    before, cavity = drawn_at(Uniform(), 0.2), toy().denoiser(Uniform(), "cavity")
    wrong = FunctionDenoiser(cavity.function, kind="own", needs_time=True)
    for denoiser in (wrong, tilted(cavity)):
        after, _ = correct(Gibbs(4, process=Uniform()), before, 0.3, 0.2, denoiser=denoiser)
        assert floors(after, law_at(Uniform(), toy(), 0.2)) > 2.5


def test_gibbs_mends_a_broken_law():
    """From independent tokens, redraws come ever nearer to the joint, at most two floors away after 24."""
    law = toy()
    marginals = [torch.stack([law.p[law.table[:, i] == v].sum() for v in range(3)]) for i in range(4)]
    product = Toy(torch.stack([marginals[i][law.table[:, i]] for i in range(4)]).prod(0))
    before = drawn_at(Absorbing(), 0.0, law=product)
    truth = law_at(Absorbing(), law, 0.0)
    gaps = [floors(correct(Gibbs(n), before, 0.1, 0.0)[0], truth) for n in (1, 4, 24)]
    print(f"{floors(before, truth):.1f} floors, then", " ".join(f"{g:.1f}" for g in gaps))
    assert floors(before, truth) > gaps[0] > gaps[1] > gaps[2] and gaps[2] < 2


def test_one_segment_with_its_own_process_is_the_process():
    """`PerSegment` of one segment gives the same tokens."""
    for process in (Absorbing(), Uniform(), MaskOrReplace(), Interpolating()):
        before, joined = drawn_at(process, 0.4, 500), PerSegment({"x": process})
        for make in (Gibbs, Informed, Renoise):
            denoiser = toy().denoiser(process)
            one, _ = correct(make(process=process), before, 0.6, 0.4, denoiser=denoiser)
            other, _ = correct(make(process=joined), before, 0.6, 0.4, denoiser=denoiser)
            assert torch.equal(one.tokens, other.tokens) and moved(before, one) > 0


# -- informed ---------------------------------------------------------------------------------------------------------


def informed_law(law: Toy, temperature: float, score: str) -> torch.Tensor:
    """The law after one redraw (k = 1) of an exact sequence, (81,): position ~ softmax(-score / temperature)."""
    p = law.p.view(3, 3, 3, 3)
    given = torch.stack([p / p.sum(i, keepdim=True) for i in range(4)])  # p(x_i | x_-i)
    others = []
    for i in range(4):
        c = given[i].movedim(i, -1)
        best = torch.stack([c[..., [w for w in range(3) if w != v]].amax(-1) for v in range(3)], -1)
        others.append(best.movedim(-1, i))
    value = given.log() if score == "log_prob" else given.log() - torch.stack(others).log()
    chosen = (-value / temperature).softmax(0) * p
    return sum(chosen[i].sum(i, keepdim=True) * given[i] for i in range(4)).reshape(-1)


@pytest.mark.parametrize("score", ["log_prob", "margin"])
@pytest.mark.parametrize(("hide", "kind", "nfe"), [(True, "own", 2), (False, "cavity", 1)])
def test_informed_draws_its_enumerated_law(score, hide, kind, nfe):
    """T12: choosing by the token's own probability changes the law; the change is the enumerated one."""
    law, full = toy(), torch.zeros(256, dtype=torch.float64)
    full[(law.table * PLACE).sum(1)] = informed_law(law, 1.0, score)
    before, truth = drawn_at(Absorbing(), 0.0), law_at(Absorbing(), law, 0.0)
    after, info = correct(Informed(1, score=score, hide=hide), before, 0.1, 0.0, kind)
    print(f"{score}: enumerated TV {total_variation(full, truth):.4f}")
    assert floors(after, full) < 1.5 and info.nfe == nfe
    assert floors(after, truth) > 2.5 and total_variation(full, truth) > 0.03
    assert not Informed().unbiased


def test_hot_informed_is_gibbs():
    """At a high temperature the choice is uniform, and the law stays: what changes it is the choice."""
    before = drawn_at(Absorbing(), 0.0)
    after, _ = correct(Informed(1, temperature=1e9, hide=True), before, 0.1, 0.0)
    assert floors(after, law_at(Absorbing(), toy(), 0.0)) < 1.5 and moved(before, after) > 0.05


def test_own_scores_of_visible_tokens_say_nothing():
    """An exact own prediction repeats a visible token, so the choice is uniform; only `hide` can rank."""
    before = drawn_at(Absorbing(), 0.0)
    after, _ = correct(Informed(1), before, 0.1, 0.0)
    assert floors(after, law_at(Absorbing(), toy(), 0.0)) < 1.5


@each_process
def test_informed_mends_a_broken_law(process):
    """T12: two-step samples come nearer to the joint."""
    law, kind = toy(), "cavity"
    truth = law_at(process, law, 0.0)
    state, _ = sample(law.denoiser(process, kind), Ancestral(process), law.batch(DRAWS), 2, seed=3)
    after, _ = correct(Informed(1, process=process), state, 0.5, 0.0, kind)
    print(f"{floors(state, truth):.1f} -> {floors(after, truth):.1f} floors")
    assert floors(after, truth) < 0.7 * floors(state, truth)


# -- renoise ----------------------------------------------------------------------------------------------------------


def renoised_law(process, law: Toy, s: float, t: float) -> torch.Tensor:
    """Law of the noisy states after noising q_s on to t and denoising every position on its own back to s, (256,)."""
    x, late = states(), law_at(process, law, t)
    live = late > 0
    own = law.posterior(x[live], torch.full((int(live.sum()), 4), t, dtype=torch.float64), process)
    single = process.log_posterior(own, x[live], t, s).exp()
    moves = functools.reduce(torch.mul, (single[:, i][:, x[:, i]] for i in range(4)))
    return late[live] @ moves


@each_process
@pytest.mark.parametrize(("s", "t"), [pytest.param(0.4, 0.7, marks=pytest.mark.slow), (0.0, 0.5)])
def test_renoise_keeps_the_marginals(process, s, t):
    """By enumeration, and by chi-square with a control that fails; the joint is the enumerated one."""
    law = toy()
    truth, expected = law_at(process, law, s), renoised_law(process, law, s, t)
    assert float((mass(expected) - mass(truth)).abs().max()) < 1e-12
    before = drawn_at(process, s, 100_000)
    after, info = correct(Renoise(process=process), before, t, s)
    assert floors(after, expected) < 1.5 and chi_square(after, truth) < 4
    assert moved(before, after) > 0.1 and info.nfe == 1 and torch.equal(after.time, before.time)
    before = drawn_at(process, s, 40_000)
    after, _ = correct(Renoise(process=process), before, t, s, denoiser=tilted(law.denoiser(process)))
    assert chi_square(after, truth) > 8


@each_process
def test_renoise_errs_with_the_square_of_the_step(process):
    law, s = toy(), 0.3
    truth = law_at(process, law, s)
    gaps = [total_variation(renoised_law(process, law, s, s + h), truth) for h in (0.1, 0.05, 0.025)]
    assert 3 < gaps[0] / gaps[1] < 4.5 and 3.4 < gaps[1] / gaps[2] < 4.3


def test_back_is_a_multiple_of_the_step():
    """back 0.5 of a step 0.4 -> 0 noises to 0.2: the enumerated law; back beyond 1 - s stops at 1."""
    before = drawn_at(Absorbing(), 0.0)
    after, _ = correct(Renoise(0.5), before, 0.4, 0.0)
    assert floors(after, renoised_law(Absorbing(), toy(), 0.0, 0.2)) < 1.5
    assert floors(after, renoised_law(Absorbing(), toy(), 0.0, 0.4)) > 3
    after, _ = correct(Renoise(9.0), before, 0.4, 0.0)
    assert floors(after, renoised_law(Absorbing(), toy(), 0.0, 1.0)) < 1.5
