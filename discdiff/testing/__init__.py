"""Laws and conformance checks that a user can run on parts of their own."""

from discdiff.testing.conformance import check_conformance, check_sampler, conformance_layout
from discdiff.testing.toy import Toy, check_kernel, noise_floor, total_variation, toy

__all__ = [
    "Toy",
    "check_conformance",
    "check_kernel",
    "check_sampler",
    "conformance_layout",
    "noise_floor",
    "total_variation",
    "toy",
]
