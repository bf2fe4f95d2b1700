"""Schedules: Euler steps (T16), the path error and its best grid, hand-made and searched times, total variation on the toy."""

import itertools

import pytest
import torch

from discdiff import Absorbing, Ancestral, CosineMD4, FunctionDenoiser, Grid, Linear, MaskOrReplace, Uniform, sample
from discdiff.distill import HAND_MADE, Euler, euler_rates, hand_made, jump_your_steps, measure
from discdiff.testing import noise_floor, total_variation, toy

JOINT = toy()
PROCESSES = {"absorbing": Absorbing(), "uniform": Uniform(), "mask_or_replace": MaskOrReplace()}
EACH = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
DRAWS = 20000


def law(process, grid, kernel=None, seed=999, draws=DRAWS):
    state, _ = sample(JOINT.denoiser(process), kernel or Ancestral(process), JOINT.batch(draws), grid, seed=seed)
    return JOINT.law(state.batch.symbols(state.tokens))


def test_euler_and_analytic_steps_coincide_for_the_log_linear_schedule_only():
    log_linear = Absorbing(Linear(end=1e-3))
    assert euler_rates(log_linear, 8).rate == pytest.approx([1.0] * 8, abs=1e-12)
    cosine = Absorbing(CosineMD4())
    a = cosine.schedule.alpha
    analytic = float((a(0.8) - a(0.9)) / (1 - a(0.9)))
    rate = euler_rates(cosine, (1.0, 0.9, 0.8, 0.0)).rate[1]
    assert (rate * analytic, analytic) == (pytest.approx(0.0249, abs=5e-5), pytest.approx(0.0371, abs=5e-5))
    assert euler_rates(cosine, Grid((1.0, 0.5, 0.0), rate=(2.0, None))).rate[0] == pytest.approx(
        2 * euler_rates(cosine, (1.0, 0.5, 0.0)).rate[0]
    )
    with pytest.raises(ValueError, match="site=Euler"):
        euler_rates(Uniform(), 4)


@EACH
def test_an_euler_step_leaves_at_the_reverse_rate(process):
    """The composed law against the definition, (t - s) Q_t(y -> x) q_t(y) / q_t(x), by matrices of a short time."""
    seen = []

    def site(log_p, asked):
        out = Euler(process)(log_p, asked)
        seen.append((asked.state.batch.symbols(asked.state.tokens).reshape(-1)[asked.index], out.exp(), log_p.exp()))
        return out

    grid = Grid((1.0, 0.6, 0.6 - 1e-5, 0.0))
    sample(JOINT.denoiser(process), Ancestral(process, site=site), JOINT.batch(50), grid)
    x, euler, analytic = seen[1]
    assert torch.allclose(euler.sum(-1), torch.ones(()).double(), atol=1e-12) and float(euler.min()) >= 0
    away = torch.ones_like(euler).scatter(1, x[:, None], 0).bool()
    assert torch.allclose(euler[away], analytic[away], rtol=1e-3, atol=1e-12)  # one generator behind both
    _, long, short = seen[0]
    linear = isinstance(process, Absorbing)  # there the two coincide at any length
    assert torch.allclose(long, short, rtol=1e-2) == linear


def test_an_euler_site_is_the_euler_rate_of_an_absorbing_process():
    process = Absorbing(CosineMD4())
    by_site = law(process, 4, Ancestral(process, site=Euler(process)))
    by_rate = law(process, euler_rates(process, 4))
    assert total_variation(by_site, by_rate) < 2.2 * noise_floor(JOINT.p, DRAWS)
    assert total_variation(by_site, law(process, 4)) > 2.5 * noise_floor(JOINT.p, DRAWS)


@EACH
def test_steps_of_a_fine_grid_converge_with_euler_too(process):
    kernel = Ancestral(process, site=Euler(process))
    few, many = (total_variation(law(process, n, kernel, draws=3000), JOINT.p) for n in (3, 24))
    assert many < 0.6 * few


@EACH
def test_the_best_path_is_the_least_of_all_and_beats_every_other_grid_in_its_bound(process):
    errors = measure(JOINT.denoiser(process), process, JOINT.batch(200), 8)
    for steps in (1, 2, 3, 4):
        inner = itertools.combinations(errors.times[1:-1], steps - 1)
        least = min(errors.error(Grid((1.0, *times, 0.0))) for times in inner)
        assert errors.error(errors.best(steps)) == pytest.approx(least, abs=1e-12)
    assert errors.best(8).times == errors.times and errors.error(errors.best(8)) == pytest.approx(0.0, abs=1e-9)
    for name in HAND_MADE:
        other = errors.nearest(hand_made(name, 4, process))
        assert errors.error(errors.best(4)) <= errors.error(other) + 1e-12


@EACH
def test_the_measured_cost_bounds_the_divergence_of_the_laws(process):
    """KL(law of the fine run || law of a coarse one) <= D of the coarse grid, near equality for one step."""
    errors = measure(JOINT.denoiser(process), process, JOINT.batch(1000), 16)
    fine = law(process, 16)
    for steps in (1, 4):
        q = law(process, steps, seed=5).clamp(min=0.2 / DRAWS)
        exact, bound = float(torch.xlogy(fine, fine / q).sum()), errors.error(Grid.uniform(steps))
        assert exact < bound + 0.02
        if steps == 1:
            assert exact > 0.7 * bound


def test_the_measured_cost_is_the_dependence_of_what_is_revealed_together():
    """D[1, 0] of an absorbing process with exact predictions is the total correlation, less that inside fine steps."""
    marginals = torch.stack([torch.bincount(JOINT.table[:, i], JOINT.p, 3) for i in range(4)])
    entropies = -(marginals * marginals.log()).sum()
    total = float(entropies + (JOINT.p * JOINT.p.log()).sum())
    errors = measure(JOINT.denoiser(Absorbing()), Absorbing(), JOINT.batch(3000), 48)
    assert errors.error(Grid((1.0, 0.0))) == pytest.approx(total, rel=0.05)


def test_one_row_may_be_revealed_before_the_fine_run_ends():
    """Late fine states then have no hidden site; they cost nothing."""
    errors = [measure(JOINT.denoiser(Absorbing()), Absorbing(), JOINT.batch(1), 32, seed=seed) for seed in range(4)]
    assert all(each.cost.isfinite().all() for each in errors)
    assert sum(each.error(Grid((1.0, 0.0))) for each in errors) > 0


def test_hand_made_curves_and_their_errors():
    assert hand_made("uniform", 4).times == pytest.approx(Grid.uniform(4).times)
    assert hand_made("cosine", 4).times[1] == pytest.approx(0.92388, abs=1e-5)
    cosine = Absorbing(CosineMD4())  # a schedule that is the cosine itself needs equal steps
    assert hand_made("cosine", 4, cosine).times == pytest.approx(Grid.uniform(4).times, abs=1e-9)
    for name in HAND_MADE:
        assert len(hand_made(name, 5, Uniform())) == 5
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        hand_made("cosin", 4)
    errors = measure(JOINT.denoiser(Absorbing()), Absorbing(), JOINT.batch(4), 4)
    with pytest.raises(ValueError, match="nearest"):
        errors.error(Grid((1.0, 0.3, 0.0)))
    with pytest.raises(ValueError, match="measure with more"):
        errors.best(5)


@EACH
def test_searched_times(process):
    denoiser, batch = JOINT.denoiser(process), JOINT.batch(200)
    for steps in (1, 3, 4):
        grid = jump_your_steps(denoiser, process, batch, steps, 16, evaluations=5)
        assert len(grid) == steps and Grid.from_json(grid.to_json()) == grid
    errors = measure(denoiser, process, JOINT.batch(300), 16)
    assert errors.error(errors.nearest(grid)) < errors.error(Grid.uniform(4))


def test_bad_input_of_the_search():
    def never(state, step):
        raise AssertionError("the network was asked")

    for run in (jump_your_steps, measure):
        with pytest.raises(ValueError, match="is 0: give a whole number"):
            run(FunctionDenoiser(never), Absorbing(), JOINT.batch(2), 0)
        with pytest.raises(ValueError, match="nothing to sample"):
            run(FunctionDenoiser(never), Absorbing(), JOINT.batch(2, given=dict.fromkeys(range(4), 0)), 4)


OFTEN = [Absorbing(), *(pytest.param(process, marks=pytest.mark.slow) for process in (Uniform(), MaskOrReplace()))]


@pytest.mark.parametrize("process", OFTEN, ids=repr)
def test_learned_times_on_held_out_seeds(process):
    """Total variation to the joint at 2, 4 and 8 steps: learned against uniform, cosine and searched (printed by -s)."""
    denoiser, floor = JOINT.denoiser(process), noise_floor(JOINT.p, DRAWS)
    errors = measure(denoiser, process, JOINT.batch(1200), 32, seed=1)
    for steps in (2, 4, 8):
        grids = {name: hand_made(name, steps, process) for name in ("uniform", "cosine", "square_root")}
        if steps < 8:
            grids["searched"] = jump_your_steps(denoiser, process, JOINT.batch(300), steps, 8, seed=1, evaluations=5)
        grids["learned"] = errors.best(steps)
        found = {name: total_variation(law(process, grid), JOINT.p) for name, grid in grids.items()}
        print(type(process).__name__, steps, {name: round(x, 4) for name, x in found.items()}, f"floor {floor:.4f}")
        assert found["learned"] < found["uniform"] - 0.002 and found["learned"] < found["cosine"] - 0.02
        assert found["learned"] < min(found.values()) + 0.01  # nothing else is clearly better
        if isinstance(process, Uniform):
            assert found["learned"] == min(found.values())
