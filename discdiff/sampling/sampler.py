"""Sampler: everything a run needs but the model and the batch; `sampler` builds the named presets."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from discdiff.clocks import Clock
from discdiff.config import build, checked
from discdiff.denoisers import Autoguided, ClassifierFree, Nucleus, Temperature, TopK, Unprompted, denoiser_of
from discdiff.denoisers.caches import (
    ApproximateDualCached,
    ApproximatePrefixCached,
    BlockCached,
    PrefixCached,
    SkipUnchanged,
)
from discdiff.denoisers.guidance import UNPROMPTED, guidance_schedule
from discdiff.kernels import Kernel
from discdiff.kernels.early_end import EarlyEnd
from discdiff.layout import TokenBatch
from discdiff.processes import Absorbing, Process
from discdiff.sampling import loop
from discdiff.sampling.grid import Grid
from discdiff.sampling.presets import LIMIT, PRESETS, Preset
from discdiff.types import Info, State

CACHES: dict[str, Any] = {
    "none": None,
    "prefix": PrefixCached,
    "block": BlockCached,
    "approximate_prefix": ApproximatePrefixCached,
    "approximate_dual": ApproximateDualCached,
    "unchanged": SkipUnchanged,
}
"""Caches by name; the approximate ones change tokens."""

FEWEST = 32  # steps of a sampler that only approaches the law: fewer would reveal a short hole's tokens independently


@dataclass(frozen=True)
class Common:
    """What every sampler takes. steps: 0 is one per free position of the row with most, and at least 32 where steps only
    approach the law.

    temperature: of the predictions, 0 is the likeliest token; top_k 0 and nucleus 1 truncate nothing. guidance: scale g of
    log p = g log c + (1 - g) log u, u without the prompt: `unprompted` "mask", "null" or "absent"; prompt: the segments it is
    in, with commas, "" for all, so that known parts of what is made are not taken away with it; it acts while
    guided_to < t <= guided_from. weaker: a weaker network or denoiser, told the same, that `Autoguided` leads away from by the
    scale `autoguidance`. cache: "none", or one of CACHES. end: name of the special token behind which a row is closed, such as
    "EOS"; "" goes on.
    """

    steps: int = 0
    temperature: float = 1.0
    top_k: int = 0
    nucleus: float = 1.0
    guidance: float = 1.0
    unprompted: str = "mask"
    prompt: str = ""
    guided_from: float = 1.0
    guided_to: float = 0.0
    weaker: Any = None
    autoguidance: float = 2.0
    cache: str = "none"
    end: str = ""

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 0, "0 (one per free position) or more")
        checked("temperature", self.temperature, self.temperature >= 0, "0 (the likeliest token) or more")
        checked("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more")
        checked("nucleus", self.nucleus, 0 < self.nucleus <= 1, "a share in (0, 1]")
        checked("guidance", self.guidance, math.isfinite(self.guidance), "a finite scale, 1 for no guidance")
        checked("unprompted", self.unprompted, self.unprompted in UNPROMPTED, f"choose from {', '.join(UNPROMPTED)}")
        times = (self.guided_from, self.guided_to)
        checked("guided_from, guided_to", times, 0 <= times[1] < times[0] <= 1, "times in [0, 1], the second lower")
        used = times == (1, 0) or self.guidance != 1
        checked("guided_from, guided_to", times, used, "there is no guidance: give its scale, too")
        known = self.weaker is None or hasattr(self.weaker, "start") or hasattr(self.weaker, "config")
        checked("weaker", self.weaker, known, "give a network or a denoiser, which only Python can")
        checked("autoguidance", self.autoguidance, math.isfinite(self.autoguidance), "a finite scale, 1 for none")
        led = self.weaker is not None or self.autoguidance == 2.0
        checked("autoguidance", self.autoguidance, led, "there is no weaker network: give it, too")
        checked("cache", self.cache, self.cache in CACHES, f"choose from {', '.join(CACHES)}")

    def around(self, kernel: Kernel) -> Kernel:
        """The kernel, closing rows behind their end token where asked."""
        return EarlyEnd(kernel, self.end) if self.end else kernel

    def inside(self, denoiser: Any) -> Any:
        """The denoiser with its cache, then guidance by a weaker one, then by a missing prompt."""
        denoiser = self._cached(denoiser)
        if self.weaker is not None:
            weaker = self.weaker if hasattr(self.weaker, "start") else denoiser_of(self.weaker)
            denoiser = Autoguided(denoiser, self._cached(weaker), self.autoguidance)
        if self.guidance == 1:
            return denoiser
        segments = tuple(name.strip() for name in self.prompt.split(",") if name.strip())
        return ClassifierFree(denoiser, self.guidance, Unprompted(segments, self.unprompted))

    def _cached(self, denoiser: Any) -> Any:
        return denoiser if self.cache == "none" else CACHES[self.cache](denoiser)

    def timed(self, grid: Grid) -> Grid:
        """The grid, told when guidance acts. Raises ValueError where it says so itself."""
        if (self.guided_from, self.guided_to) == (1, 0):
            return grid
        checked("guided_from, guided_to", self.guided_from, not grid.guidance, "the grid has a guidance of its own")
        scales = guidance_schedule("interval", grid.times, self.guidance, self.guided_from, self.guided_to)
        return dataclasses.replace(grid, guidance=scales)

    def outside(self, denoiser: Any) -> Any:
        """The denoiser with temperature, then top-k, then nucleus around it."""
        denoiser = Temperature(denoiser, self.temperature) if self.temperature != 1 else denoiser
        denoiser = TopK(denoiser, self.top_k) if self.top_k else denoiser
        return Nucleus(denoiser, self.nucleus) if self.nucleus < 1 else denoiser


@dataclass(frozen=True)
class Sampler:
    """A kernel, its clock, what is wrapped around the denoiser, and the settings every sampler takes.

    `grid` replaces the equal steps. `fewest`: steps where `common.steps` is 0 and fewer positions are free.
    """

    kernel: Kernel
    common: Common = Common()
    clock: Clock | None = None
    wrap: Callable[[Any], Any] | None = None
    grid: Grid | None = None
    fewest: int = 1

    def iterate(
        self, denoiser: Any, batch: TokenBatch, seed: loop.Seed = 0, ahead: bool = False
    ) -> Iterator[tuple[State, Info]]:
        """The run, state by state; see `discdiff.iterate`."""
        grid = self.grid or Grid.uniform(self.common.steps or max(int(batch.free.sum(1).max()), self.fewest))
        grid = self.common.timed(grid)
        inner = self.common.inside(denoiser)
        inner = inner if self.wrap is None else self.wrap(inner)
        kernel, outer = self.common.around(self.kernel), self.common.outside(inner)
        return loop.iterate(outer, kernel, batch, grid, seed=seed, clock=self.clock, ahead=ahead)

    def __call__(
        self,
        denoiser: Any,
        batch: TokenBatch,
        seed: loop.Seed = 0,
        callback: Callable[[State, Info], None] | None = None,
    ) -> tuple[State, Info]:
        """The last state and what the whole run cost; see `discdiff.sample`."""
        return loop.last(self.iterate(denoiser, batch, seed, ahead=callback is None), callback)


def preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError naming the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown sampler {name!r}{hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]


@functools.cache
def knobs(name: str) -> type:
    """Frozen dataclass of everything the preset can be told: the settings every sampler takes, then its own knobs."""
    chosen = preset(name)
    common = [
        (f.name, _kind(f.default), dataclasses.field(default=chosen.defaults.get(f.name, f.default)))
        for f in dataclasses.fields(Common)
    ]
    own = [
        (p.name, _kind(p.default), dataclasses.field(default=p.default))
        for p in list(inspect.signature(chosen.build).parameters.values())[1:]
    ]
    check = {"__post_init__": lambda settings: _split(settings)}
    kind = dataclasses.make_dataclass(name, [*common, *own], namespace=check, frozen=True)
    kind.__doc__ = f"{chosen.summary} ({chosen.paper}); {chosen.law}"
    return kind


def sampler(name: str, process: Process | None = None, grid: Grid | None = None, **values: Any) -> Sampler:
    """The preset `name` for a process (absorbing unless given) with knobs of your own.

    `sampler("remdm_cap", eta=0.04, steps=64, nucleus=0.9)`. Raises ValueError for an unknown sampler or knob, naming the
    nearest, for an impossible value, and where the preset needs another process.
    """
    chosen = preset(name)
    common, own = _split(build(knobs(name), values))
    recipe = chosen.build(Absorbing() if process is None else process, **own)
    fewest = FEWEST if chosen.law == LIMIT else 1
    return Sampler(recipe.kernel, common, recipe.clock, recipe.wrap, grid, fewest)


def _kind(default: Any) -> Any:
    return Any if default is None else type(default)


def _split(settings: Any) -> tuple[Common, dict[str, Any]]:
    """The settings every sampler takes, checked, and the preset's own knobs."""
    own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return Common(**{f.name: own.pop(f.name) for f in dataclasses.fields(Common)}), own
