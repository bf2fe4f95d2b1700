"""Denoisers, their lazy predictions, and wrappers around them."""

from discdiff.denoisers.autoguided import Autoguided
from discdiff.denoisers.caches import (
    ApproximateDualCached,
    ApproximatePrefixCached,
    BlockCached,
    PrefixCached,
    SkipUnchanged,
)
from discdiff.denoisers.constraints import Allowed, Banned, template
from discdiff.denoisers.draw import LOG_PROBS, STATISTICS, Drawn, draw, inverse_cdf, rank
from discdiff.denoisers.ends import EndPolicy
from discdiff.denoisers.guidance import ClassifierFree, Guided, NullFeatures, Unprompted, guidance_schedule, mix
from discdiff.denoisers.log_score import LogScore
from discdiff.denoisers.model import Denoiser, FunctionDenoiser, ModelDenoiser
from discdiff.denoisers.prediction import Prediction, table
from discdiff.denoisers.trained import denoiser_of, process_of
from discdiff.denoisers.wrappers import Nucleus, Sharpen, Temperature, TopK, Wrapper, some_left

__all__ = [
    "LOG_PROBS",
    "STATISTICS",
    "Allowed",
    "ApproximateDualCached",
    "ApproximatePrefixCached",
    "Banned",
    "BlockCached",
    "Autoguided",
    "ClassifierFree",
    "Denoiser",
    "Drawn",
    "EndPolicy",
    "FunctionDenoiser",
    "Guided",
    "LogScore",
    "ModelDenoiser",
    "Nucleus",
    "NullFeatures",
    "Prediction",
    "PrefixCached",
    "Sharpen",
    "SkipUnchanged",
    "Temperature",
    "TopK",
    "Unprompted",
    "Wrapper",
    "denoiser_of",
    "draw",
    "guidance_schedule",
    "inverse_cdf",
    "mix",
    "process_of",
    "rank",
    "some_left",
    "table",
    "template",
]
