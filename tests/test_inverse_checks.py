"""Noise, flags and refusals of measurement operators."""

import math

import pytest
import torch
from inverse_toy import CASES, JOINTS, rows
from motion_toy import BONES

from discdiff.cli import parse
from discdiff.config import from_dict, to_dict
from discdiff.metrics import psnr
from tasks.inverse import (
    OPERATORS,
    BandLimit,
    BoxInpainting,
    Clipping,
    Gap,
    Gaussian,
    GaussianBlur,
    HighDynamicRange,
    JointSubset,
    KeyFrames,
    Masked,
    MotionBlur,
    NonlinearBlur,
    Poisson,
    RandomInpainting,
    SuperResolution,
    check,
    measure,
)


@pytest.fixture(params=CASES, ids=list(CASES))
def operator(request):
    return CASES[request.param]


@pytest.mark.parametrize("noise", [Gaussian(0.2), Poisson(30.0)])
def test_noise_has_its_law_and_belongs_to_its_row(noise):
    y = torch.linspace(-1, 1, 5).repeat(1, 3000).view(1, 1, 120, 125).expand(2, -1, -1, -1)
    state = torch.get_rng_state()
    found = noise(y, 5)
    assert torch.equal(torch.get_rng_state(), state)
    for k, value in enumerate(torch.linspace(-1, 1, 5).tolist()):
        drawn = found.flatten()[k::5].double()
        spread = 0.2 if isinstance(noise, Gaussian) else 2 * math.sqrt((value + 1) / 2 / 30)
        assert float(drawn.mean()) == pytest.approx(value, abs=4 * spread / math.sqrt(len(drawn)) + 1e-6)
        assert float(drawn.std()) == pytest.approx(spread, rel=0.05, abs=1e-6)
    assert not torch.equal(found[0], found[1]) and not torch.equal(noise(y, 6), found)
    seeds = [11, 12]
    assert torch.equal(noise(y, seeds).flip(0), noise(y, seeds[::-1]))
    assert torch.equal(noise(y[:1], seeds[1:]), noise(y, seeds)[1:])


def test_counts_have_poissons_law():
    mean = 3.7
    counts = (Poisson(10.0)(torch.full((1, 20000), 2 * mean / 10 - 1).double(), 1) + 1) / 2 * 10
    assert torch.allclose(counts, counts.round(), atol=1e-9)
    told = torch.tensor([math.exp(-mean) * mean**n / math.factorial(n) for n in range(10)])
    found = torch.bincount(counts.round().long().flatten(), minlength=10)[:10] / 20000
    assert float((found - told).abs().max()) < 0.015


def test_measure_adds_noise_only_to_what_is_measured(operator):
    x = rows(operator)
    y = measure(operator, x, Gaussian(0.1), seed=3)
    assert torch.equal(measure(operator, x), operator(x)) and not torch.equal(y, operator(x))
    check(operator, x, y)
    if isinstance(operator, Masked):
        assert torch.equal(y == 0, ~operator.kept(tuple(x.shape), x.device).expand(x.shape))
    else:
        assert float(psnr(y, operator(x)).mean()) == pytest.approx(26.02, abs=1)  # 20 log10(2 / 0.1)


def test_flags_and_settings_are_the_fields():
    made = parse("restore", ["--share", "0.5", "--seed", "3"], {"operator": OPERATORS["random_inpainting"]})
    assert made["operator"] == RandomInpainting(0.5, 3)
    made = parse("restore", ["--box", "0,0,0.5,1"], {"operator": OPERATORS["box_inpainting"]})
    assert made["operator"] == BoxInpainting((0.0, 0.0, 0.5, 1.0))
    made = parse("restore", ["--joints", "0,2", "--count", "5"], {"operator": OPERATORS["joint_subset"]})
    assert made["operator"] == JointSubset((0, 2), 5)
    kinds = {kind.__name__: kind for kind in OPERATORS.values()}
    for operator in CASES.values():
        if not isinstance(operator, NonlinearBlur):
            assert from_dict(to_dict(operator), kinds) == operator


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: SuperResolution(0), "factor is 0"),
        (lambda: GaussianBlur(8), "size is 8"),
        (lambda: GaussianBlur(9, 0.0), "sigma is 0.0"),
        (lambda: MotionBlur(9, 1.5), "intensity is 1.5"),
        (lambda: RandomInpainting(1.0), "share is 1.0"),
        (lambda: BoxInpainting((0.5, 0, 0.4, 1)), "box is"),
        (lambda: HighDynamicRange(0.5), "factor is 0.5"),
        (lambda: NonlinearBlur(), "network is ''"),
        (lambda: BandLimit(high=4000.0), "high is 4000.0"),
        (lambda: BandLimit(low=1000.0), "low is 1000.0"),
        (lambda: Clipping(0.0), "level is 0.0"),
        (lambda: Gap(0.2, 0.1), "start < stop"),
        (lambda: JointSubset((22,)), "0..21"),
        (lambda: JointSubset((0,), groups=("rotations",)), "no rotation"),
        (lambda: JointSubset.named(BONES, ("tail",)), "tail"),
        (lambda: KeyFrames(0), "at least one"),
        (lambda: Gaussian(-1.0), "sigma is -1.0"),
        (lambda: Poisson(0.0), "photons is 0.0"),
        (lambda: Poisson()(torch.full((1, 4), -3.0)), "Gaussian"),
    ],
)
def test_impossible_settings_are_errors(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "operator, x, y, said",
    [
        (GaussianBlur(), torch.zeros(2, 28, 28), None, "batch, channels, height, width"),
        (GaussianBlur(), torch.zeros(0, 1, 28, 28), None, "not empty"),
        (GaussianBlur(), 2 * torch.ones(2, 1, 28, 28), None, r"in \[-1, 1\]"),
        (GaussianBlur(), torch.zeros(2, 1, 28, 28, dtype=torch.uint8), None, "give floats"),
        (GaussianBlur(), torch.full((2, 1, 28, 28), math.nan), None, "finite"),
        (SuperResolution(), torch.zeros(2, 1, 30, 28), None, "multiples of factor = 4"),
        (SuperResolution(), torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 28, 28), r"it makes \(2, 1, 7, 7\)"),
        (SuperResolution(), torch.zeros(2, 1, 28, 28), torch.zeros(1, 1, 7, 7), r"it makes \(2, 1, 7, 7\)"),
        (SuperResolution(), torch.zeros(1, 1, 8, 8), torch.full((1, 1, 2, 2), math.inf), "finite"),
        (RandomInpainting(0.9), torch.zeros(1, 1, 2, 2), None, "drops all 4"),
        (BoxInpainting((0.2, 0.2, 0.8, 0.8)), torch.zeros(1, 1, 2, 2), None, "touches all"),
        (NonlinearBlur(lambda x: x[:1]), torch.zeros(2, 1, 4, 4), None, None),
        (NonlinearBlur(lambda x: x / 0), torch.zeros(2, 1, 4, 4), None, "its result"),
        (Gap(), torch.zeros(1, 1000), None, "inside of 0.125 s"),
        (JOINTS, torch.zeros(1, 9, 263), None, "11 joints"),
        (KeyFrames(0, (9,)), torch.zeros(1, 9, 5), None, "a motion has 9"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(operator, x, y, said):
    if said is None:  # one row is what it gives of one row; of two it is told
        check(operator, x)
        with pytest.raises(ValueError, match="a tensor of 2 rows"):
            operator(x)
        return
    with pytest.raises(ValueError, match=said):
        check(operator, x, y)
