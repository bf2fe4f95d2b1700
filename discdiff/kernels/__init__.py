"""Kernels: one transition type for steps, re-maskers and correctors."""

from discdiff.kernels.ancestral import Ancestral, sites
from discdiff.kernels.base import Asked, Kernel, ask, own_transform, prior_tokens, select
from discdiff.kernels.chain import Chain
from discdiff.kernels.commit import Commit
from discdiff.kernels.first_hitting import FirstHitting

__all__ = [
    "Ancestral",
    "Asked",
    "Chain",
    "Commit",
    "FirstHitting",
    "Kernel",
    "ask",
    "own_transform",
    "prior_tokens",
    "select",
    "sites",
]
