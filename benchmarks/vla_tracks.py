"""What `benchmarks.vla` compares: tracks of Meta-World, methods and, per track, the decoders of each method.

The decoders are not the full product, so that a track of three trainings is evaluated in reasonable time: of the masked
policies, rounds by read-outs, the public greedy loop ("maskgit") and secondary re-masking ("dd_vla"); where demonstrations
have several ways, draws as well. "seen": later rounds see the code nearest to the number that was read out; "by match": and
what is most like a label is committed first. Other orders are those of `benchmarks.vla_rounds`. On `image10` the place of
things and of the goal is seen only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.vla.learning import Loss
from tasks.vla.metaworld import EASY10, HARD10, LANG, MULTIMODAL, PROPRIO, Environment, make
from tasks.vla.policy import Decoding, Policy
from tasks.vla.sentences import Instruction, held_out, said, varied

VARIANTS = {  # of a method, and what they are trained on
    "masked_narrow": ("masked", Loss(width=0.02, full=0.0)),  # narrow labels, masked by MaskGIT's ratios alone
    "masked_exact": ("masked", Loss(width=0.02, jitter=0.0, full=0.0)),  # and visible numbers are shown as they are
    "masked_plain": ("masked", Loss(0.0, 0.0, jitter=0.0, full=0.0)),  # and plain cross-entropy, as the public ones
    "autoregressive": ("autoregressive", Loss(jitter=0.0)),  # as it is usual
    "autoregressive_jitter": ("autoregressive", Loss()),
}
METHODS = (
    *("masked", "masked_narrow", "masked_exact", "masked_plain"),
    *("autoregressive", "autoregressive_jitter", "parallel", "flow"),
)
EVALUATION, DEVELOPMENT, HELD_OUT, SWAPPED = "evaluation", "development", "held_out", "swapped"
FIRST = {EVALUATION: 50_000, DEVELOPMENT: 70_000, HELD_OUT: 50_000, SWAPPED: 50_000}  # seeds of the first episode


@dataclass(frozen=True)
class Track:
    """demonstrations: of each task; source: the track whose first episodes they are, "" for its own; trained: the sentences
    of demonstrations; kinds: of evaluations; least: success in percent that the chosen masked decoder is to reach; policy: of
    all methods, which says what they are shown.
    """

    tasks: tuple[str, ...]
    demonstrations: int
    decoders: Mapping[str, Mapping[str, Decoding]]
    source: str = ""
    trained: Instruction = said
    kinds: tuple[str, ...] = (EVALUATION,)
    least: float = 0.0
    policy: Policy = Policy()


def _each(read: str, steps: Sequence[int], name: str = "", **knobs: Any) -> dict[str, Decoding]:
    named = {n: f"{n} step{'s' * (n > 1)}, {name or read}" for n in steps}
    return {named[n]: Decoding(steps=n, read=read, **knobs) for n in steps}


# Greedy, as the public decoders of actions do it by default: arg-max tokens, the likeliest committed first.
_MASKGIT = _each("token", (8,), "maskgit", sampler="maskgit", knobs={"noise": 0.0})
_AGAIN = {
    **_each("expectation", (12,), "dd_vla expectation", sampler="dd_vla"),
    **_each("mode", (12,), "dd_vla mode", sampler="dd_vla"),
}
_BY_MATCH: dict[str, Any] = {"rank": "matched", "nearest": True}
_SAMPLED: dict[str, Any] = {"temperature": 1.0}
_LEFT = {"argmax": Decoding(read="argmax"), "expectation": Decoding(read="expectation")}
_ONE = {"1 pass": Decoding()}
_EULER = {f"{n} Euler step{'s' * (n > 1)}": Decoding(steps=n) for n in (1, 4, 8)}
_TWINS = {"autoregressive": _LEFT, "parallel": _ONE, "flow": _EULER}

STATE = {
    "masked": {
        **_each("matched", (1, 4, 16)),
        **_each("expectation", (1, 4, 8, 16)),
        **_each("expectation", (16,), "expectation, random order", sampler="random"),
        **_each("argmax", (1, 16)),
        **_MASKGIT,
        **_AGAIN,
    },
    "masked_plain": {**_each("expectation", (1,)), **_each("argmax", (1,)), **_MASKGIT},
    **_TWINS,
}
HARD = {
    **STATE,
    "masked": {**STATE["masked"], **_each("matched", (16,), "matched by match", **_BY_MATCH)},
    "autoregressive_jitter": _LEFT,
    "masked_exact": {**_each("expectation", (1, 4, 16)), **_each("argmax", (1, 16)), **_MASKGIT},
}
_READ = {**_each("matched", (1, 4, 16)), **_each("argmax", (1,))}
FEW = {"masked": {**_READ, **_each("expectation", (1, 4, 16)), **_AGAIN}, **_TWINS}
WAYS = {
    "masked": {
        **_each("near", (1, 4, 16), "sampled, read near", **_SAMPLED),
        **_each("near", (16,), "sampled, read near, random order", sampler="random", **_SAMPLED),
        **_each("mode", (1,)),
        **_each("mode", (4, 16), "mode seen", nearest=True),
        **_each("matched", (1,)),
        **_each("matched", (4, 16), "matched by match", **_BY_MATCH),
        **_each("expectation", (1, 16)),
        **_each("mode", (12,), "dd_vla mode", sampler="dd_vla"),
    },
    "masked_exact": {
        **_each("near", (16,), "sampled, read near", **_SAMPLED),
        **_each("mode", (16,), "mode seen", nearest=True),
    },
    "masked_plain": {**_each("token", (1, 16), "sampled token", **_SAMPLED), **_MASKGIT},
    **_TWINS,
    "autoregressive": {**_LEFT, "sampled token": Decoding(read="token", **_SAMPLED)},
}
SAID = {
    "masked": {**_each("matched", (1, 16)), **_each("expectation", (1, 16)), **_each("argmax", (1,))},
    "autoregressive": {"expectation": Decoding(read="expectation")},
    "parallel": _ONE,
    "flow": {"8 Euler steps": Decoding(steps=8)},
}
SEEN = {"masked": _READ, **_TWINS}


def _with_narrow(each: dict[str, Any]) -> dict[str, Any]:
    """With narrow labels, too, which need no other read-out: their means are the numbers they are of, nearly."""
    same = {name: how for name, how in each["masked"].items() if how.read != "matched"}
    return {**each, "masked_narrow": same}


SHARED = tuple(task for tasks in LANG.values() for task in tasks)
TRACKS = {
    "easy10": Track(EASY10, 50, _with_narrow(STATE), least=95.0),
    "hard10": Track(HARD10, 25, _with_narrow(HARD), least=63.0),
    "few5": Track(EASY10, 5, FEW, source="easy10"),
    "few10": Track(EASY10, 10, _with_narrow(FEW), source="easy10"),
    "multimodal": Track(MULTIMODAL, 50, _with_narrow(WAYS)),
    "language": Track(SHARED, 50, _with_narrow(SAID), trained=varied, kinds=(EVALUATION, HELD_OUT, SWAPPED)),
    "image10": Track(EASY10, 50, SEEN, policy=Policy(picture=64, proprio=PROPRIO)),
}
UNIMODAL = ("easy10", "hard10", "few5", "few10")
# LeRobot's, of `benchmarks.vla_peers`, which are told numbers and which sentence of the track it is, no words and no pictures.
PEERS = {"act": {"1 pass": Decoding()}, "diffusion_policy": {"10 DDIM steps": Decoding(steps=10)}}
PEERED = (*UNIMODAL, "multimodal")


def base_of(method: str) -> str:
    """Whose fields of `Decoding` a method takes: of a variant its base, of a peer those of flow."""
    return "flow" if method in PEERS else VARIANTS[method][0] if method in VARIANTS else method


def decoders_of(track: str) -> dict[str, Mapping[str, Decoding]]:
    """By name, of each method of a track and of its peers."""
    return {**TRACKS[track].decoders, **(PEERS if track in PEERED else {})}


def kinds_of(track: str, method: str) -> tuple[str, ...]:
    """The evaluations of a method; on development seeds only where there is something to choose."""
    several = len(decoders_of(track)[method]) > 1
    return (*TRACKS[track].kinds, *((DEVELOPMENT,) if several else ()))


class Swapped:
    """The scene of a task in which the sentence is that of the next task of its scene, an `Environment`: done when that one is.
    unasked: by task and seed, whether the scene's own task was done, too.
    """

    def __init__(
        self, task: str, unasked: dict[tuple[str, int], bool], make: Callable[[str], Environment] = make
    ) -> None:
        self.task, self.unasked, self.seed = task, unasked, 0
        self.shown, self.meant = make(task), make(following(task))
        self.full = np.zeros(0)  # before the first reset

    def reset(self, seed: int) -> np.ndarray:
        self.seed = seed
        self.meant.reset(seed)
        state = self.shown.reset(seed)
        self.full = self.shown.full
        return state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool | None]:
        state, own = self.shown.step(action)
        self.full = self.shown.full
        if own:
            self.unasked[self.task, self.seed] = True
        return state, self.meant.step(action)[1]

    def picture(self, size: int) -> np.ndarray:
        return self.shown.picture(size)

    def close(self) -> None:
        self.shown.close()
        self.meant.close()


def following(task: str) -> str:
    """The next task of a task's scene."""
    scene = next(tasks for tasks in LANG.values() if task in tasks)
    return scene[(scene.index(task) + 1) % len(scene)]


def _swapped(task: str, seed: int) -> str:
    return said(following(task), seed)


SENTENCE: dict[str, Instruction] = {EVALUATION: said, DEVELOPMENT: said, HELD_OUT: held_out, SWAPPED: _swapped}
