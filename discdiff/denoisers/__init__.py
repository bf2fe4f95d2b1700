"""Denoisers, their lazy predictions, and wrappers around them."""

from discdiff.denoisers.draw import STATISTICS, Drawn, draw, inverse_cdf, rank
from discdiff.denoisers.model import Denoiser, FunctionDenoiser, ModelDenoiser
from discdiff.denoisers.prediction import Prediction, table
from discdiff.denoisers.wrappers import Nucleus, Temperature, TopK, Wrapper

__all__ = [
    "STATISTICS",
    "Denoiser",
    "Drawn",
    "FunctionDenoiser",
    "ModelDenoiser",
    "Nucleus",
    "Prediction",
    "Temperature",
    "TopK",
    "Wrapper",
    "draw",
    "inverse_cdf",
    "rank",
    "table",
]
