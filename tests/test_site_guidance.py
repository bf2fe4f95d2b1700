"""Guidance of the composed one-site law: posterior-level (T18) and by classifiers, against enumerated laws."""

from dataclasses import replace

import pytest
import torch

from discdiff import Absorbing, Ancestral, Commit, FunctionDenoiser, Grid, Interpolating, PerSegment, Uniform, sample
from discdiff.denoisers import ClassifierFree, Guided
from discdiff.kernels.base import Asked
from discdiff.kernels.guidance import ClassifierGuidance, FirstOrderGuidance, PosteriorGuidance
from discdiff.testing import Toy, check_conformance, noise_floor, total_variation
from discdiff.testing.conformance import _batch, _hashed
from tests.test_guidance import COND, FREE, INF, JOINT, NULL, ONE, Two, geometric, labelled, state_of, step_of

# -- level of the posterior (T18) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, expected", [(0.0, 0.1), (1.0, 0.1), (2.0, 0.164), (4.0, 0.498)])
def test_posterior_level_speeds_up_the_schedule(scale, expected):
    gain = float((COND**scale * FREE ** (1 - scale)).sum())
    assert 0.1 * gain / (0.1 * gain + 0.9) == pytest.approx(expected, abs=5e-4)
    state = state_of(labelled(2))
    step, seen = step_of(state, 1.0, 0.9), []

    def watch(log_p, asked):
        seen.append((PosteriorGuidance()(log_p, asked)).softmax(-1))
        return log_p

    guided = ClassifierFree(FunctionDenoiser(Two()), scale, NULL, level="posterior")
    sample(guided, Ancestral(site=watch), labelled(2), Grid((1.0, step.s[0, 0])), seed=3)
    law = seen[0][0]
    assert float(1 - law[3]) == pytest.approx(expected, abs=5e-4)
    assert torch.allclose(law[:3] / law[:3].sum(), geometric(scale))
    for level, site, share in (("posterior", PosteriorGuidance(), expected), ("x0", None, 0.1)):
        run, info = sample(
            replace(guided, level=level), Ancestral(site=site), labelled(20000), Grid((1.0, 0.9)), seed=3
        )
        shown = run.committed[:, 0]
        assert float(shown.double().mean()) == pytest.approx(share, abs=0.011) and info.nfe == 1
        assert total_variation(ONE.law(run.tokens[shown]), geometric(scale)) < 0.03


def test_posterior_level_by_the_formula_of_every_process():
    for process in (Absorbing(), Uniform(), Interpolating()):
        state = state_of(labelled(3))._replace(tokens=torch.tensor([[0], [2], [1]]))
        if isinstance(process, Absorbing):
            state = state._replace(tokens=torch.full((3, 1), state.batch.layout.vocab.mask))
        step, index = step_of(state, 0.7, 0.4), torch.arange(3)
        prediction = ClassifierFree(FunctionDenoiser(Two()), 2.5, NULL, level="posterior")(state, step)
        assert isinstance(prediction, Guided) and isinstance(prediction.rows(torch.tensor([1])), Guided)
        x = state.batch.symbols(state.tokens)[:, 0]
        laws = [process.log_posterior(p.log().expand(3, 3), x, step.t[:, 0], step.s[:, 0]) for p in (COND, FREE)]
        asked = Asked(prediction, state, step, None, index, None)
        found = PosteriorGuidance(process)(laws[0], asked).softmax(-1)
        expected = (laws[0].exp() ** 2.5 * laws[1].exp() ** -1.5).nan_to_num(0.0, posinf=0.0)
        assert torch.allclose(found, expected / expected.sum(-1, keepdim=True))


def test_posterior_level_refuses_what_it_cannot_mix():
    kernel = Ancestral(site=PosteriorGuidance())
    with pytest.raises(ValueError, match='level="posterior"'):
        sample(ClassifierFree(FunctionDenoiser(Two()), 2.0, NULL), kernel, labelled(3), 2)
    guided = ClassifierFree(FunctionDenoiser(Two()), 2.0, NULL, level="posterior")
    for unguided in (Ancestral(), Commit()):
        with pytest.raises(ValueError, match="guides nothing by itself"):
            sample(guided, unguided, labelled(3), 2)
    with pytest.raises(ValueError, match="rate or score_power"):
        sample(guided, kernel, labelled(3), Grid((1.0, 0.0), rate=(0.5,)))


# -- classifiers -----------------------------------------------------------------------------------------------------

ODD = (JOINT.table[:, 0] + JOINT.table[:, 2] + JOINT.table[:, 3]) % 2 == 1
CHANCE = torch.where(ODD, 0.95, 0.05).double()  # p(y | x0)
CLASS = Toy(JOINT.p * CHANCE / (JOINT.p @ CHANCE))  # p(x0 | y)


def bayes(state):
    """Exact log p(y | x_t): the chance over the completions."""
    x = state.batch.symbols(state.tokens)[:, None]
    mass = ((x == 3) | (x == JOINT.table)).all(-1) * JOINT.p
    return ((mass @ CHANCE) / mass.sum(-1)).log()


def test_the_exact_classifier_gives_the_conditional_law_of_every_state():
    axes = torch.cartesian_prod(*[torch.arange(4)] * 4)
    batch = JOINT.batch(len(axes))
    tokens = batch.ids(axes)
    state = state_of(batch)._replace(tokens=tokens, committed=tokens != batch.layout.vocab.mask)
    index = (~state.committed).view(-1).nonzero()[:, 0]
    step, process = step_of(state, 0.8, 0.5), Absorbing()
    x = state.batch.symbols(state.tokens).view(-1)[index]
    laws = []
    for one in (JOINT, CLASS):
        log_x0 = one.denoiser(process)(state, step).log_probs(index)
        laws.append(process.log_posterior(log_x0, x, torch.full(x.shape, 0.8), torch.full(x.shape, 0.5)))
    asked = Asked(None, state, step, None, index, None)
    guided = {g: ClassifierGuidance(bayes, g, rows=100)(laws[0], asked).softmax(-1) for g in (0.0, 1.0, 2.0)}
    assert torch.allclose(guided[1.0], laws[1].exp(), atol=1e-12) and len(index) == 256
    assert torch.equal(guided[0.0], laws[0].softmax(-1))
    assert float((guided[2.0] - laws[1].exp()).abs().max()) > 0.1
    assert torch.allclose(
        ClassifierGuidance(bayes)(laws[0], asked._replace(step=step._replace(guidance=2.0))).softmax(-1), guided[2.0]
    )


def test_the_exact_classifier_samples_the_class():
    rows = 600
    kernel = Ancestral(site=ClassifierGuidance(bayes))
    guided, info = sample(JOINT.denoiser(kernel.process), kernel, JOINT.batch(rows), 24, seed=5)
    composed = Ancestral(site=lambda log_p, asked: log_p)
    direct, _ = sample(CLASS.denoiser(kernel.process), composed, JOINT.batch(rows), 24, seed=5)
    free, _ = sample(JOINT.denoiser(kernel.process), composed, JOINT.batch(rows), 24, seed=5)
    assert torch.equal(guided.tokens, direct.tokens)  # the same law at each site, hence the same tokens
    far = {
        name: total_variation(JOINT.law(run.tokens), CLASS.p) / noise_floor(CLASS.p, rows)
        for name, run in (("g", guided), ("free", free))
    }
    assert far["g"] < 1.5 and far["free"] > 3


@pytest.mark.parametrize("process", [Absorbing(), Uniform(), Interpolating(), "mixed"], ids=str)
def test_first_order_is_exact_for_a_linear_classifier(process):
    process = PerSegment({"left": Absorbing(), "right": Uniform()}) if process == "mixed" else process
    batch = _batch()
    total = batch.layout.vocab.total
    weight = 2 * torch.randn(
        batch.layout.length, total, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    place = torch.arange(batch.layout.length)

    def exact(state):
        return weight[place, state.tokens].sum(1)

    def linear(inputs, state):
        return (inputs * weight).sum((1, 2))

    table = torch.eye(total, dtype=torch.float64)
    sites = {
        "exact": ClassifierGuidance(exact, 1.3),
        "first": FirstOrderGuidance(linear, table, 1.3),
        "curved": FirstOrderGuidance(lambda inputs, state: linear(inputs, state).tanh() * 3, table, 1.3),
        "none": FirstOrderGuidance(linear, table, 0.0),
    }
    with torch.inference_mode():
        runs = {
            name: sample(_hashed(), Ancestral(process, site=site), batch, 5, seed=1)[0].tokens
            for name, site in sites.items()
        }
    assert torch.equal(runs["exact"], runs["first"])
    assert not torch.equal(runs["exact"], runs["curved"]) and not torch.equal(runs["exact"], runs["none"])


@pytest.mark.parametrize("process", [Absorbing(), Uniform()], ids=lambda p: type(p).__name__)
def test_classifier_conformance(process):
    def by_slot(state):
        score = (state.tokens * (state.batch.slot + 1)) % 7
        return -torch.where(state.valid, score, 0).sum(1).double() / 7

    check_conformance(Ancestral(process, site=ClassifierGuidance(by_slot, rows=50)))
    table = (
        torch.arange(640, dtype=torch.float64)[:, None] * 37 % 11
    ) / 8  # whole eighths: sums are exact in any shape
    linear = FirstOrderGuidance(lambda inputs, state: (inputs[..., 0] * state.valid).sum(1), table)
    check_conformance(Ancestral(process, site=linear))


def test_calls_of_the_classifier_and_where_it_says_never():
    rows, seen = 7, []

    def picky(state):
        seen.append(len(state.row))
        return torch.where((state.tokens == 0).any(1), -INF, 0.0)

    kernel = Ancestral(site=ClassifierGuidance(picky, rows=10))
    state, _ = sample(JOINT.denoiser(kernel.process), kernel, JOINT.batch(rows), 1, seed=1)
    assert sum(seen) == rows + rows * 4 * 3 and max(seen) == 10  # once per row, then 4 positions x 3 symbols
    assert not (state.tokens == 0).any()
    silent = Ancestral(site=ClassifierGuidance(lambda state: torch.full((len(state.row),), -INF)))
    plain = Ancestral(site=lambda log_p, asked: log_p)
    runs = [sample(JOINT.denoiser(kernel.process), one, JOINT.batch(9), 3, seed=2)[0].tokens for one in (silent, plain)]
    assert torch.equal(*runs)
    small = Ancestral(site=FirstOrderGuidance(lambda inputs, state: inputs.sum((1, 2)), torch.eye(3)))
    with pytest.raises(ValueError, match="embedding"):
        sample(JOINT.denoiser(kernel.process), small, JOINT.batch(2), 2)


def test_refused():
    for make, message in (
        (lambda: ClassifierGuidance(None, INF), "inf"),
        (lambda: ClassifierGuidance(None, rows=0), "rows"),
        (lambda: FirstOrderGuidance(None, torch.eye(3), float("nan")), "nan"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
