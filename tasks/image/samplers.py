"""The table of posterior samplers: what each is built from, and the options a command line has for it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.anchoring import (
    Anchored,
    Canvas,
    Descent,
    Measured,
    Relaxed,
    Selected,
    SoftDecode,
    SplitGibbs,
    StarShaped,
    StarTable,
    Steered,
    best_of,
)
from discdiff.config import build, checked
from discdiff.denoisers import Prediction, Wrapper
from discdiff.kernels.base import own_transform
from discdiff.layout import TokenBatch
from discdiff.processes import Absorbing, Process
from discdiff.sampling import Sampler, sampler
from discdiff.sampling.lengths import FreeBlocks
from discdiff.sampling.sampler import Common, knobs, preset
from discdiff.types import Info, State, Step

Run = Callable[..., tuple[State, Info]]  # (denoiser, batch, seeds, callback)
Seen = Callable[[Tensor, Tensor, Tensor], None]
_PLAIN = (bool, int, float, str)


def plain(*parts: type, without: Sequence[str] = ()) -> type:
    """A frozen dataclass of the fields of parts that are numbers, words or tuples of them: what a command line can say."""
    fields = []
    for part in parts:
        hints = typing.get_type_hints(part)
        for f in dataclasses.fields(part):
            inside = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is tuple else (hints[f.name],)
            if f.init and f.name not in without and all(each in _PLAIN for each in inside):
                fields.append((f.name, hints[f.name], dataclasses.field(default=f.default)))
    made = dataclasses.make_dataclass("".join(part.__name__ for part in parts) or "Nothing", fields, frozen=True)
    made.__doc__ = f"Options of {', '.join(part.__name__ for part in parts) or 'nothing'}."
    return made


@dataclass(frozen=True, eq=False)
class Watched(Wrapper):
    """The denoiser as it is; `seen(row (n,), time (n,), embeddings (n, slots, d))` is told what every prediction expects, of
    blocks that have not begun the mean of all codes, and a row's mean time. moving: calls in which no time passes, which
    weigh candidates, are left out: the one that is kept is seen at the next.
    """

    soft: SoftDecode
    process: Process
    seen: Seen
    moving: bool = False

    def __call__(self, state: State, step: Step) -> Prediction:
        prediction = self.inner(state, step)
        canvas = Canvas.of(self.soft, state, step)
        if len(canvas.index) and not (self.moving and not bool((step.s < step.t).any())):
            own = self.inner.kind == "own"
            meant = prediction if own else prediction.then(own_transform(self.process, state, step))
            time = torch.where(state.free, step.t, 0.0).sum(1) / state.free.sum(1).clamp(min=1)
            self.seen(state.row, time, canvas.expect(canvas.prior(meant).exp()))
        return prediction


class Case(NamedTuple):
    """What a run is built from: the model's process and the name of the sampler it has by itself, how codes become data, what
    was measured, the method's options, the sampler's knobs, the seeds of the rows, who watches, and how many codes the model
    makes together, 0 for all.
    """

    process: Process
    usual: str
    soft: SoftDecode
    measured: Measured
    options: Any
    knobs: dict[str, Any]
    seeds: Sequence[int] = (0,)
    seen: Seen | None = None
    block: int = 0

    def part(self, kind: Any, *values: Any, **more: Any) -> Any:
        """A part with what the options say of its fields."""
        said = {f.name for f in dataclasses.fields(self.options)} & {f.name for f in dataclasses.fields(kind)}
        return kind(*values, **{name: getattr(self.options, name) for name in said}, **more)

    def base(self, usual: str = "", cached: bool = True) -> tuple[Sampler, Process]:
        """The sampler that was asked for, or else the usual one, and the process it runs; block by block where the model makes
        blocks, those that are done `cached`. Raises ValueError for a sampler that cannot.
        """
        given = dict(self.knobs)
        name = given.pop("sampler", "") or usual or self.usual
        if self.block:
            able = "block" in {f.name for f in dataclasses.fields(knobs(name))}
            checked("sampler", name, able, f"the model makes blocks of {self.block} codes: take one that has a block")
            given = {"block": self.block, **({"cache": "block"} if cached else {}), **given}
        process = process_for(name, self.process)
        return sampler(name, process, **given), process

    def own(self, kernel: Any) -> Sampler:
        """A sampler of a kernel, with the settings that every sampler takes."""
        given = self.knobs.get("sampler", "")
        checked("sampler", given, given == "", f"{type(kernel).__name__} is a sampler of its own: leave it out")
        cache = {"cache": "block"} if self.block else {}
        common = build(Common, {**cache, **{k: v for k, v in self.knobs.items() if k != "sampler"}})
        return Sampler(kernel, common, FreeBlocks(self.block) if self.block else None)

    def watched(self, run: Sampler, seen: Seen | None = None, moving: bool = False) -> Sampler:
        """The sampler, watched where somebody does, by `seen` in place of the one who does."""
        told = seen or self.seen
        if self.seen is None or told is None:
            return run
        return _around(run, lambda inner: Watched(inner, self.soft, run.kernel.process, told, moving))


def process_for(name: str, process: Process) -> Process:
    """A model's process where a sampler takes it; else masks alone, if the model has seen masks: the network is then asked as
    a mask predictor, as APS asks that of VQ-Diffusion (arXiv 2510.02291).
    """
    try:
        preset(name).build(process)
    except ValueError:
        return Absorbing() if masks(process) else process
    return process


def masks(process: Process) -> bool:
    """Whether a process masks at all."""
    return float(process.marginal(torch.full((), 0.5, dtype=torch.float64), 2).mask) > 0


def _around(run: Sampler, wrap: Callable[[Any], Any]) -> Sampler:
    inner = run.wrap
    return replace(run, wrap=wrap if inner is None else lambda denoiser: wrap(inner(denoiser)))


def _aps(case: Case) -> Run:
    run, process = case.base("confidence" if masks(case.process) else "ancestral")
    own = {"descent": case.part(Descent), "process": process}
    return case.watched(_around(run, lambda inner: case.part(Anchored, inner, case.soft, case.measured, **own)))


def _g2d2(case: Case) -> Run:
    own = {"relaxed": case.part(Relaxed, seed=case.seeds), "process": case.process}
    run = case.own(StarShaped(case.process))
    return case.watched(_around(run, lambda inner: StarTable(inner, case.soft, case.measured, **own)))


def _sgdd(case: Case) -> Run:
    return case.watched(case.own(case.part(SplitGibbs, case.process, case.soft, case.measured)))


def _svdd(case: Case) -> Run:
    run, _ = case.base(cached=False)  # its children are copies of a row, which no cache can store
    kernel = case.part(Selected, run.kernel, case.soft, case.measured)
    return case.watched(replace(run, kernel=kernel), moving=True)


def _gradient(case: Case) -> Run:
    run, process = case.base()
    return case.watched(
        _around(run, lambda inner: case.part(Steered, inner, case.soft, case.measured, process=process))
    )


def _best_of(case: Case) -> Run:
    count, noted = case.options.count, []

    def note(row: Tensor, time: Tensor, embeddings: Tensor) -> None:
        first = row < count  # copies of the first picture
        noted.append((row[first], time[first], embeddings[first]))

    base = case.watched(case.base()[0], note)

    def run(denoiser: Any, batch: TokenBatch, seeds: Sequence[int], callback: Any = None) -> tuple[State, Info]:
        each = [seed + copy * 1_000_003 for seed in seeds for copy in range(count)]  # rows do not share any
        state, info = best_of(base, denoiser, batch, case.soft, case.measured, count, each)
        for row, time, embeddings in noted:  # of the copy that is kept
            kept = row == state.row[0]
            if case.seen is not None:
                case.seen(row[kept] * 0, time[kept], embeddings[kept])
        return state, info

    return run


def _prior(case: Case) -> Run:
    return case.watched(case.base()[0])


@dataclass(frozen=True)
class Method:
    """build: of a `Case`; options: a dataclass of what can be said of it; steps: where nothing else is said, 0 for the
    sampler's own; own: it goes with no sampler by name; ahead: it asks for all open codes at once, which an autoregressive
    model cannot tell; blocks: a model that makes blocks can be sampled by it.
    """

    build: Callable[[Case], Run]
    options: type
    summary: str
    paper: str = ""
    steps: int = 0
    own: bool = False
    ahead: bool = True
    blocks: bool = True


_COUNT = inspect.signature(best_of).parameters["count"].default
_COPIES = dataclasses.make_dataclass("BestOf", [("count", int, dataclasses.field(default=_COUNT))], frozen=True)

METHODS: dict[str, Method] = {
    "aps": Method(_aps, plain(Anchored, Descent), "the table is moved to the measurement", "2510.02291", 15),
    "g2d2": Method(
        _g2d2, plain(Relaxed, without=("seed",)), "a relaxed table, star-shaped noise", "2410.14710", 100, own=True
    ),
    "sgdd": Method(_sgdd, plain(SplitGibbs), "split Gibbs sampling", "2503.01161", 50, own=True, blocks=False),
    "svdd": Method(_svdd, plain(Selected), "of several children one is kept at every step", "2408.08252"),
    "gradient": Method(_gradient, plain(Steered), "one gradient per step tilts the table", "2209.14734"),
    "best_of": Method(_best_of, _COPIES, "the best of several runs", ahead=False),
    "prior": Method(_prior, plain(), "the model alone, whatever was measured", ahead=False),
}
