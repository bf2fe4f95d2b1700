"""What benchmarks.image_generation counts."""

import pytest

from benchmarks.image_generation import DRAWINGS, LED, evaluations


def test_evaluations_per_picture():
    assert evaluations(16, {}) == 16 and evaluations(16, {"guidance": 2.0}) == 32
    within = {"guidance": 2.5, "guided_from": 0.6, "guided_to": 0.2}  # at .5625 to .25 of the times 1, .9375, ...
    assert evaluations(16, within) == 16 + 6 and evaluations(16, {"autoguidance": 2.0, **within}) == 32 + 6
    assert evaluations(16, {"autoguidance": 2.0, "surely": 0.9}, 1.25) == pytest.approx(1.25 * (32 + 10))
    assert evaluations(49, {"surely": 0.9}, 1.5) == pytest.approx(1.5 * 59)


def test_settings_are_told_apart_and_chosen_on_another_drawing():
    assert 0 not in DRAWINGS and len(set(DRAWINGS)) == len(DRAWINGS) > 1
    for settings in LED.values():
        assert settings[""] == {} and len({str(knobs) for knobs in settings.values()}) == len(settings)
