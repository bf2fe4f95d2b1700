"""One loop and one kind of schedule for every sampler."""

from discdiff.sampling.grid import Grid, as_grid
from discdiff.sampling.loop import iterate, sample

__all__ = ["Grid", "as_grid", "iterate", "sample"]
