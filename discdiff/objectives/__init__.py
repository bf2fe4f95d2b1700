"""Objectives: the bounds models are trained on, with the head run only where a position carries loss."""

from discdiff.objectives.blocks import BlockElbo, BlockTimes, doubled
from discdiff.objectives.dropped import Dropped
from discdiff.objectives.elbo import Autoregressive, Elbo
from discdiff.objectives.heads import cross_entropy, density, gather
from discdiff.objectives.jitter import Jitter
from discdiff.objectives.linear_cross_entropy import linear_cross_entropy
from discdiff.objectives.ordinal import Ordinal, ordinal

__all__ = [
    "Autoregressive",
    "BlockElbo",
    "BlockTimes",
    "Dropped",
    "Elbo",
    "Jitter",
    "Ordinal",
    "cross_entropy",
    "density",
    "doubled",
    "gather",
    "linear_cross_entropy",
    "ordinal",
]
