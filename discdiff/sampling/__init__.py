"""One loop, one kind of schedule, and the samplers by name."""

from discdiff.sampling.generate import generate, process_of
from discdiff.sampling.grid import Grid, as_grid
from discdiff.sampling.lengths import FreeBlocks, prompts, stride_sample
from discdiff.sampling.loop import iterate, sample
from discdiff.sampling.presets import PRESETS, Preset, Recipe
from discdiff.sampling.sampler import CACHES, Common, Sampler, knobs, preset, sampler

__all__ = [
    "CACHES",
    "PRESETS",
    "Common",
    "FreeBlocks",
    "Grid",
    "Preset",
    "Recipe",
    "Sampler",
    "as_grid",
    "generate",
    "iterate",
    "knobs",
    "preset",
    "process_of",
    "prompts",
    "sample",
    "sampler",
    "stride_sample",
]
