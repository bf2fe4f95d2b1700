"""Schedules: derivative, inverse, end points, unambiguous names and refusals."""

import math
from dataclasses import dataclass

import pytest
import torch

from discdiff.schedules import (
    SCHEDULES,
    CosineMD4,
    CosineMDLM,
    CosineSquaredMDLM,
    Geometric,
    Linear,
    LinearSigma,
    Polynomial,
    Schedule,
)

ALL = [kind() for kind in SCHEDULES.values()] + [
    Linear(end=1e-3),
    Linear(0.99999, 9e-6),
    CosineMDLM(eps=0.05),
    CosineSquaredMDLM(eps=0.0),
    Polynomial(0.7),
    Polynomial(2.5),
    Geometric(1e-4, 20.0),
    LinearSigma(0.01, 4.0),
]
T = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_derivative_and_inverse(schedule):
    h = 1e-5
    central = (schedule.alpha(T + h) - schedule.alpha(T - h)) / (2 * h)
    assert float((central - schedule.dalpha(T)).abs().max()) < 1e-6
    assert float((schedule.t_of_alpha(schedule.alpha(T)) - T).abs().max()) < 1e-9
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float((schedule.t_of_alpha(schedule.alpha(ends)) - ends).abs().max()) < 1e-6


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_values_are_float64_and_fall(schedule):
    for t in (0.3, torch.tensor(0.3), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))):
        for value in (schedule.alpha(t), schedule.dalpha(t), schedule.t_of_alpha(schedule.alpha(t))):
            assert value.dtype == torch.float64 and value.shape == torch.as_tensor(t).shape
    a = schedule.alpha(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert bool((a.diff() < 0).all()) and float(a[0]) > 0.98 and float(a[-1]) >= 0


def test_published_values():
    third = 1 / 3
    expected = {
        "linear": 2 / 3,
        "cos_md4": 0.5,  # 1 - cos(pi / 3)
        "cos_mdlm": 1e-3 + 0.999 * math.cos(math.pi / 6),
        "cos2_mdlm": 1e-3 + 0.999 * 0.75,
        "poly": 8 / 9,
        "geometric": math.exp(-1e-2),
        "linear_sigma": math.exp(-10 / 3),
        "square": 4 / 9,
        "arccos": 2 / math.pi * math.asin(2 / 3),
    }
    assert set(expected) == set(SCHEDULES)
    for name, value in expected.items():
        assert float(SCHEDULES[name]().alpha(third)) == pytest.approx(value, abs=1e-12), name


def test_ids_name_different_curves():
    curves = torch.stack([kind().alpha(T) for kind in SCHEDULES.values()])
    apart = (curves[:, None] - curves[None]).abs().amax(-1) + torch.eye(len(curves), dtype=torch.float64)
    assert float(apart.min()) > 0.05
    assert len(set(SCHEDULES.values())) == len(SCHEDULES)
    assert not any(name in SCHEDULES for name in ("cosine", "cos", "log-linear"))  # words that mean several curves
    assert abs(float(CosineMD4().alpha(0.5) - CosineMDLM().alpha(0.5))) > 0.4


def test_small_remainders_keep_their_digits():
    """Near t = 1 the naive 1 - cos(x) has no digits left; x^2 / 2 is the value there."""
    x = math.pi / 2 * 1e-9
    assert float(CosineMD4().alpha(1 - 1e-9)) == pytest.approx(x * x / 2, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(1.0, 1.2),
        lambda: Linear(0.5, 0.5),
        lambda: Linear(1.5, 0.0),
        lambda: Linear(1.0, -0.1),
        lambda: Linear(float("nan"), 0.0),
        lambda: CosineMDLM(eps=2.0),
        lambda: CosineMDLM(eps=-0.1),
        lambda: Polynomial(0.0),
        lambda: Polynomial(-1.0),
        lambda: Polynomial(float("nan")),
        lambda: Geometric(0.0, 1.0),
        lambda: Geometric(2.0, 1.0),
        lambda: LinearSigma(0.0, -1.0),
        lambda: LinearSigma(1.0, 1.0),
    ],
)
def test_invalid_settings_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_a_schedule_of_your_own_is_checked():
    @dataclass(frozen=True)
    class Wavy(Schedule):
        wave: float = 0.5

        def alpha(self, t):
            t = torch.as_tensor(t, dtype=torch.float64)
            return 1 - t + self.wave * t * (1 - t) * torch.sin(6 * math.pi * t)

        def t_of_alpha(self, a):
            return 1 - torch.as_tensor(a, dtype=torch.float64)

    with pytest.raises(ValueError, match="must fall"):
        Wavy(1.0)
    with pytest.raises(ValueError, match="inverse"):
        Wavy(0.1)
    Wavy(0.0)
    with pytest.raises(TypeError, match="defines no alpha"):
        Schedule()
