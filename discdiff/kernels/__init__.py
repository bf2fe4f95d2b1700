"""Kernels: one transition type for steps, re-maskers and correctors."""

from discdiff.kernels.ancestral import Ancestral, sites
from discdiff.kernels.base import Asked, Kernel, arrive, ask, check_grid, own_transform, prior_tokens, select
from discdiff.kernels.chain import Chain
from discdiff.kernels.commit import Commit
from discdiff.kernels.early_end import EarlyEnd
from discdiff.kernels.first_hitting import FirstHitting
from discdiff.kernels.guidance import ClassifierGuidance, FirstOrderGuidance, PosteriorGuidance
from discdiff.kernels.recheck import Discounted, Recheck
from discdiff.kernels.remask import Remask
from discdiff.kernels.remdm_conf import RemaskConf
from discdiff.kernels.replan import Replan
from discdiff.kernels.strategies import DFM, STRATEGIES, Cap, ForwardBackward, Held, Rescale, Strategy, Switch
from discdiff.kernels.valued import Valued

__all__ = [
    "DFM",
    "STRATEGIES",
    "Ancestral",
    "Asked",
    "Cap",
    "Chain",
    "ClassifierGuidance",
    "Commit",
    "Discounted",
    "EarlyEnd",
    "FirstHitting",
    "FirstOrderGuidance",
    "ForwardBackward",
    "Held",
    "Kernel",
    "PosteriorGuidance",
    "Recheck",
    "Remask",
    "RemaskConf",
    "Replan",
    "Rescale",
    "Strategy",
    "Switch",
    "arrive",
    "ask",
    "check_grid",
    "own_transform",
    "prior_tokens",
    "select",
    "sites",
    "Valued",
]
