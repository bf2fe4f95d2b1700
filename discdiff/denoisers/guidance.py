"""Classifier-free guidance: a conditional and an unconditional prediction mixed, the two asked in one network call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.denoisers.draw import Drawn
from discdiff.denoisers.model import Denoiser
from discdiff.denoisers.prediction import Prediction, Transform
from discdiff.denoisers.wrappers import NEG_INF, Wrapper, some_left
from discdiff.layout import TokenBatch
from discdiff.noise import TOKEN, Noise
from discdiff.types import State, Step

LEVELS = ("x0", "posterior")
UNPROMPTED = ("mask", "null", "absent")


@dataclass(frozen=True)
class Unprompted:
    """The state without its prompt: what never moves (given or not noised) in the named segments (() = all) is masked, at
    time 1.

    how: "mask" (LLaDA's unsupervised guidance, 2502.09992); "null", the special NULL, for networks trained with `Dropped`
    (Improved VQ-Diffusion, 2205.16007); or "absent": nobody attends to it.
    """

    segments: tuple[str, ...] = ()
    how: str = "mask"

    def __post_init__(self) -> None:
        checked("how", self.how, self.how in UNPROMPTED, f"choose from {', '.join(UNPROMPTED)}")

    def __call__(self, state: State) -> State:
        vocab = state.batch.layout.vocab
        where = state.valid & ~state.free & state.batch.within(self.segments)
        if self.how == "absent":
            return state.close(where)
        tokens = torch.where(where, vocab.mask if self.how == "mask" else vocab.special("NULL"), state.tokens)
        time = torch.where(where, 1.0, state.time) if self.how == "mask" else state.time
        return state._replace(tokens=tokens, time=time)


@dataclass(frozen=True)
class NullFeatures:
    """The state with features replaced: `NullFeatures({"text": null})`, null (...) the same for every row, or None to
    drop the feature (the two predictions are then two network calls).
    """

    nulls: Mapping[str, Tensor | None]

    def __call__(self, state: State) -> State:
        features = dict(state.batch.features)
        for name, null in self.nulls.items():
            checked("nulls", name, name in features, f"the batch has the features {list(features)}")
            old = features.pop(name)
            if null is not None:
                features[name] = null.to(old).expand_as(old)
        return state._replace(batch=state.batch._replace(features=features))


@dataclass(frozen=True)
class Guided(Prediction):
    """A conditional prediction that carries the unconditional one and the scale, for guidance of the posterior.

    `free` is None where the scale 1 has no use for it. A transform (temperature, truncation) acts on both.
    """

    free: Prediction | None = None
    scale: float = 1.0

    def then(self, transform: Transform) -> Guided:
        free = None if self.free is None else self.free.then(transform)
        return replace(self, transforms=(*self.transforms, transform), free=free)

    def rows(self, index: Tensor) -> Guided:
        free = None if self.free is None else self.free.rows(index)
        return _guided(super().rows(index), free, self.scale)

    def draw(self, index: Tensor, noise: Noise, stream: int = TOKEN, statistics: Sequence[str] = ()) -> Drawn:
        raise ValueError(
            'ClassifierFree(..., level="posterior") guides nothing by itself: use '
            'Ancestral(process, site=PosteriorGuidance(process)), or level="x0"'
        )


@dataclass(frozen=True)
class ClassifierFree(Wrapper):
    """log p = g log c + (1 - g) log u, normalised: g = 1 conditional only, g = 0 unconditional only (arXiv 2207.12598).

    A reference's w is g = 1 + w. `unconditional` takes the condition out of a state; `other` is another denoiser for that
    pass (a weaker network), by default the same one. Both passes are one network call of twice the rows, or two where
    `other` is given, the features differ, or the denoiser keeps a cache of its run; g = 1 and g = 0 make only one pass.
    What either calls impossible stays impossible. A step's own guidance wins over `scale`.

    level "x0" guides the prediction and leaves the process's schedule alone. With "posterior" the kernel mixes the
    composed laws: `Ancestral(process, site=PosteriorGuidance(process))`, which speeds up the schedule (2412.10193).

    Put truncation and temperature outside, `Nucleus(ClassifierFree(model, 2.0))`: inside they would cut each pass by
    itself, and a token that one pass drops is lost. Raises ValueError for a scale that is not finite, an unknown level,
    and denoisers of different kinds.
    """

    scale: float = 2.0
    unconditional: Callable[[State], State] = field(default_factory=Unprompted)
    other: Any = None
    level: str = "x0"
    obeys: ClassVar[tuple[str, ...]] = ("guidance",)

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "a finite number, 1 for the conditional prediction")
        checked("level", self.level, self.level in LEVELS, f"choose from {', '.join(LEVELS)}")
        if self.other is not None and self.other.kind != self.inner.kind:
            raise ValueError(
                f"a prediction of kind {self.inner.kind} cannot be mixed with one of kind {self.other.kind}"
            )

    @property
    def needs_time(self) -> bool:
        return self.inner.needs_time or (self.other is not None and self.other.needs_time)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, *(() if self.other is None else self.other.reads))

    def start(self, batch: TokenBatch) -> Denoiser:
        other = self.other
        if other is None and not _stateless(self.inner, batch):
            other = self.inner  # a run of its own for the unconditional pass: caches are not shared
        if other is not None:
            rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
            time = batch.free.double()
            state = State(batch.tokens, batch.given, batch.valid, ~batch.free, time, rows, batch, {}, {})
            free = self.unconditional(state)
            other = other.start(free.batch._replace(tokens=free.tokens, valid=free.valid))
        return replace(self, inner=self.inner.start(batch), other=other)

    def __call__(self, state: State, step: Step) -> Prediction:
        scale = self.scale if step.guidance is None else step.guidance
        here = state.batch._replace(tokens=state.tokens, valid=state.valid)
        if scale == 1:
            prediction = self.inner(state, step)
            return _guided(prediction, None, 1.0) if self.level == "posterior" else prediction
        if scale == 0:
            hidden = self.unconditional(state)
            prediction = replace((self.other or self.inner)(hidden, _timed(hidden, state, step)), batch=here)
            return _guided(prediction, None, 1.0) if self.level == "posterior" else prediction
        hidden = self.unconditional(state)
        later = _timed(hidden, state, step)
        if self.other is None and _alike(state, hidden):
            both = self.inner(
                _stacked(state, hidden), step._replace(t=_pair(step.t, later.t), s=_pair(step.s, later.s))
            )
            rows = torch.arange(len(state.row), device=state.row.device)
            given, free, cost = both.rows(rows), both.rows(rows + len(rows)), both.info
        else:
            given, free = self.inner(state, step), (self.other or self.inner)(hidden, later)
            both, cost = None, given.info.merge(free.info)
        if self.level == "posterior":
            return _guided(replace(given, cost=cost), replace(free, batch=here), scale)

        def logits(index: Tensor, number: int) -> Tensor:
            if both is None:
                pair = given._compute(index, number), free._compute(index, number)
            else:  # one pass of the head
                pair = both._compute(torch.cat([index, index + state.tokens.numel()]), number).chunk(2)
            return some_left(mix(*pair, scale), index, here, "ClassifierFree")

        latents = {name: x + scale * (given.latents[name] - x) for name, x in free.latents.items()}
        return Prediction(here, logits, latents=latents, cost=cost, temperature=given.temperature)


def mix(given: Tensor, free: Tensor, scale: float) -> Tensor:
    """g c + (1 - g) u of logs (..., K), -inf where either is: 0 * -inf and inf - inf never meet."""
    impossible = (given == NEG_INF) | (free == NEG_INF)
    return torch.lerp(free.to(given.dtype), given, scale).masked_fill(impossible, NEG_INF)


def guidance_schedule(
    name: str, times: Sequence[float], scale: float, t0: float = 0.5, t1: float = 0.0
) -> tuple[float, ...]:
    """The scale of each step of a grid: `replace(grid, guidance=guidance_schedule("ramp", grid.times, 3.0))`.

    "constant": g; "ramp": 1 + (g - 1) (1 - t), from conditional at noise to g at clean; "early": g while t >= t0, then 1;
    "late": 1 while t >= t0, then g; "interval": g while t1 < t <= t0, else 1 (arXiv 2404.07724). Steps at 1 cost one pass.
    Raises ValueError for an unknown name.
    """
    schedules: dict[str, Callable[[float], float]] = {
        "constant": lambda t: scale,
        "ramp": lambda t: 1 + (scale - 1) * (1 - t),
        "early": lambda t: scale if t >= t0 else 1.0,
        "late": lambda t: 1.0 if t >= t0 else scale,
        "interval": lambda t: scale if t1 < t <= t0 else 1.0,
    }
    checked("name", name, name in schedules, f"choose from {', '.join(schedules)}")
    return tuple(float(schedules[name](t)) for t in times[:-1])


def _guided(given: Prediction, free: Prediction | None, scale: float) -> Guided:
    return Guided(**{f.name: getattr(given, f.name) for f in fields(Prediction)}, free=free, scale=scale)


def _stateless(denoiser: Any, batch: TokenBatch) -> bool:
    """Whether a run starts nothing of its own, so that both passes may share a call (a cache has a `run`)."""
    while isinstance(denoiser, Wrapper):
        weaker = getattr(denoiser, "weaker", None)
        if hasattr(denoiser, "run") or (weaker is not None and not _stateless(weaker, batch)):
            return False
        denoiser = denoiser.inner
    return denoiser.start(batch) is denoiser


def _alike(a: State, b: State) -> bool:
    """Whether two states have the same tensors to stack."""
    pairs = ((a.batch.features, b.batch.features), (a.latents, b.latents), (a.memory, b.memory))
    return all(x.keys() == y.keys() and all(x[n].shape == y[n].shape for n in x) for x, y in pairs)


def _stacked(a: State, b: State) -> State:
    """The rows of two states below each other."""
    one, two = a.batch, b.batch
    tensors: dict[str, Any] = {name: torch.cat([getattr(one, name), getattr(two, name)]) for name in one._fields[1:6]}
    features = {name: torch.cat([x, two.features[name]]) for name, x in one.features.items()}
    batch = one._replace(**tensors, features=features, unrestricted=one.unrestricted and two.unrestricted)
    tensors = {name: torch.cat([getattr(a, name), getattr(b, name)]) for name in a._fields[:6]}
    stores = [
        {n: torch.cat([x, y[n]]) for n, x in s.items()} for s, y in ((a.latents, b.latents), (a.memory, b.memory))
    ]
    return State(**tensors, batch=batch, latents=stores[0], memory=stores[1])


def _timed(hidden: State, state: State, step: Step) -> Step:
    """The step for a state some of whose positions were put at another time."""
    return step._replace(t=torch.where(hidden.time != state.time, hidden.time, step.t))


def _pair(time: Any, other: Any) -> Any:
    return torch.cat([time, other.expand_as(time)]) if isinstance(time, Tensor) and time.ndim else time
