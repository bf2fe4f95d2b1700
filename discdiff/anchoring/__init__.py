"""Posterior sampling given a measurement: anchored sampling (APS) and its rivals, on one base model and one data term."""

from discdiff.anchoring.anchored import Anchored, expected_costs
from discdiff.anchoring.canvas import Canvas
from discdiff.anchoring.chosen import Chosen
from discdiff.anchoring.descent import Descent, Fit
from discdiff.anchoring.gibbs import SplitGibbs
from discdiff.anchoring.selected import Selected, best_of
from discdiff.anchoring.soft import DISTANCES, Measured, SoftDecode
from discdiff.anchoring.star import Relaxed, StarShaped, StarTable
from discdiff.anchoring.steered import Steered

__all__ = [
    "DISTANCES",
    "Anchored",
    "Canvas",
    "Chosen",
    "Descent",
    "Fit",
    "Measured",
    "Relaxed",
    "Selected",
    "SoftDecode",
    "SplitGibbs",
    "StarShaped",
    "StarTable",
    "Steered",
    "best_of",
    "expected_costs",
]
