"""Distilled samplers: grids learned from a run of many steps, and the schedules they are to beat."""

from discdiff.distill.base import Fitted
from discdiff.distill.euler import Euler, euler_rates
from discdiff.distill.fitting import FITTERS, LEARNED, OBJECTIVES, SCALES, fit
from discdiff.distill.paths import PathErrors, measure
from discdiff.distill.search import HAND_MADE, hand_made, jump_your_steps
from discdiff.distill.settings import fit_settings
from discdiff.distill.terms import DISTANCES
from discdiff.distill.tuning import discrepancy, tune

__all__ = [
    "DISTANCES",
    "FITTERS",
    "HAND_MADE",
    "LEARNED",
    "OBJECTIVES",
    "SCALES",
    "Euler",
    "Fitted",
    "PathErrors",
    "discrepancy",
    "euler_rates",
    "fit",
    "fit_settings",
    "hand_made",
    "jump_your_steps",
    "measure",
    "tune",
]
