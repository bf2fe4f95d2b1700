"""Metrics: likelihood bounds with their standard error, the diversity of samples, distances between sets of features and
between pictures.
"""

from discdiff.metrics.features import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    frechet_distance,
    memorised,
    nearest_distances,
    precision_recall,
)
from discdiff.metrics.likelihood import Estimate, estimate, nelbo, reconstruction, row_nats, row_uniform
from discdiff.metrics.pictures import feature_distance, psnr, ssim
from discdiff.metrics.text import distinct, unigram_entropy

__all__ = [
    "DensityCoverage",
    "Estimate",
    "PrecisionRecall",
    "density_coverage",
    "distinct",
    "estimate",
    "feature_distance",
    "frechet_distance",
    "memorised",
    "nearest_distances",
    "nelbo",
    "precision_recall",
    "psnr",
    "reconstruction",
    "row_nats",
    "row_uniform",
    "ssim",
    "unigram_entropy",
]
