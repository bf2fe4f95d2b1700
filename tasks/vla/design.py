"""What a policy is made of: its settings, how it decodes, the scale of its states, its layout and its network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discdiff.config import checked, to_dict
from discdiff.layout import Layout, Modality, Segment, VocabLayout
from discdiff.models import DiscDiffConfig
from discdiff.scores.values import SPREADS
from tasks.common.words import Lexicon
from tasks.vla.continuous import CONTINUOUS, NOISY
from tasks.vla.episodes import Episode
from tasks.vla.spoken import Spoken
from tokenizers_vq.action.normalise import MODES

METHODS = ("masked", "autoregressive", *CONTINUOUS)
SAY, STATE, VIEW, ACTION = "instruction", "state", "view", "action"
GRID = (4, 4)  # slots of a picture
SIZES = ("hidden_size", "num_layers", "num_heads")
READ = ("matched", "expectation", "mode", "argmax", "near", "token")
UNUSED = {  # fields of `Decoding`, by method
    "masked": (),
    "autoregressive": ("sampler", "steps", "grid", "rank", "nearest", "knobs"),
    "parallel": ("sampler", "steps", "grid", "read", "window", "rank", "nearest", "temperature", "knobs"),
    "flow": ("sampler", "grid", "read", "window", "rank", "nearest", "temperature", "knobs"),
}


@dataclass(frozen=True)
class Policy:
    """method: masked diffusion of tokens; the twins on the same trunk are autoregressive tokens, parallel L1 (OpenVLA-OFT,
    arXiv 2502.19645) and flow (flow matching). chunk: actions made at once; codebook_size: levels of a number; packed: one
    slot per step of a chunk, not per number (masked); proprio: leading numbers of the state that it is told, 0 for all;
    picture: width of the picture it is shown, 0 for none; words: of an instruction at most, 0 for those of the longest one
    it is trained on; hidden_size, num_layers, num_heads: its size. base: a folder or hub name of a text checkpoint, masked
    diffusion or stock, whose network, size, tokenizer and words it begins with, "" for a network of its own. scaling: of
    actions to [-1, 1], by the "range" of the demonstrations, its "quantile" (1 and 99 %, what lies beyond is cut) or
    "mean_std"; raw: dimensions of them that lie in [-1, 1] and stay as they are, such as a gripper's.
    """

    method: str = "masked"
    chunk: int = 8
    codebook_size: int = 256
    packed: bool = True
    proprio: int = 0
    picture: int = 0
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    words: int = 0
    base: str = ""
    scaling: str = "range"
    raw: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checked("method", self.method, self.method in METHODS, f"choose from {', '.join(METHODS)}")
        checked("chunk", self.chunk, self.chunk >= 1, "at least one action")
        checked("proprio", self.proprio, self.proprio >= 0, "numbers of the state, 0 for all")
        checked("words", self.words, self.words >= 0, "words of an instruction, 0 for those of the longest one")
        fits = self.picture == 0 or (self.picture >= 16 and self.picture & (self.picture - 1) == 0)
        checked("picture", self.picture, fits, "0, or a power of 2 from 16 on")
        object.__setattr__(self, "raw", tuple(self.raw))
        checked("scaling", self.scaling, self.scaling in MODES, f"choose from {', '.join(MODES)}")
        checked("base", self.base, not self.base or self.method == "masked", "masked policies begin with a checkpoint")
        for name in SIZES if self.base else ():
            usual = type(self).__dataclass_fields__[name].default
            checked(
                name, getattr(self, name), getattr(self, name) == usual, f"it is that of {self.base!r}: leave it out"
            )


@dataclass(frozen=True)
class Decoding:
    """sampler: a name of `discdiff.PRESETS`; steps: rounds (flow: of Euler's method); read: the number of a committed token,
    `Valued`'s "matched" (to the soft labels that the policy learned; of hard ones the expectation), "expectation", "mode",
    "argmax", "near" or "token"; window: of "mode" and "near", in normalised units; rank: "" for the order of the sampler, or
    `Concentrated`'s "matched" (first what is most like a soft label), "deviation", "mode" or "expectation" (first what has
    its likely numbers close together); nearest: later rounds see the code nearest to that number; temperature: of the draw, 0
    for the likeliest; knobs: of the sampler; grid: name of the policy's learned times, which replace equal rounds, "" for none.
    """

    sampler: str = "confidence"
    steps: int = 1
    read: str = "matched"
    window: float = 0.05
    rank: str = ""
    nearest: bool = False
    temperature: float = 0.0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    grid: str = ""

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 1, "at least one round")
        checked("read", self.read, self.read in READ, f"choose from {', '.join(READ)}")
        checked("rank", self.rank, self.rank in ("", *SPREADS), f"leave it out, or choose from {', '.join(SPREADS)}")
        checked("window", self.window, 0 < self.window < math.inf, "above 0, in normalised units")
        checked("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or above")
        twice = sorted({"steps", "temperature"} & set(self.knobs))
        checked("knobs", twice, not twice, "they have fields of their own")
        own = sorted({"score", "noise"} & set(self.knobs)) if self.rank else []
        checked("knobs", own, not own, f"rank {self.rank!r} is another order: leave out one or the other")
        alike = self.sampler == "edlm" and self.temperature == 0
        checked("temperature", self.temperature, not alike, "an energy would choose among equal candidates: give 1")

    def check(self, method: str) -> None:
        """Raise ValueError for a field that a method does not take and that is not as it is by default."""
        plain = Decoding()
        for name in UNUSED[method]:
            usual = getattr(plain, name)
            checked(
                name, getattr(self, name), getattr(self, name) == usual, f"{method} takes none: leave it at {usual!r}"
            )


@dataclass(frozen=True)
class Scale:
    """What the state is divided by: middle and spread (dim,) of demonstrations; what hardly moves is not blown up."""

    middle: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("middle", "spread"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))

    @classmethod
    def of(cls, state: np.ndarray) -> Scale:
        """Of states (frames, dim), which may have units of their own: mean, and deviation or, where that is below 1e-6 of the
        largest deviation or of the dimension's own numbers, 1.
        """
        deep = state.astype(np.float64)
        spread = deep.std(0)
        floor = 1e-6 * np.maximum(np.abs(deep).max(0), spread.max())
        return cls(tuple(deep.mean(0)), tuple(np.where(spread > floor, spread, 1.0)))

    def __call__(self, state: Tensor) -> Tensor:
        """States (n, dim) to about [-1, 1], cut at 5."""
        middle, spread = (torch.tensor(x, dtype=torch.float64) for x in (self.middle, self.spread))
        return ((state.double() - middle) / spread).clamp(-5, 5).float()


def layout_of(settings: Policy, dim: int, lexicon: Lexicon | Spoken, text: VocabLayout | None = None) -> Layout:
    """[instruction | state | view | action]; only the actions are noised, and nothing before them sees them. text: the
    vocabulary of a checkpoint, to which the actions are appended.
    """
    vocab = (text or VocabLayout(lexicon.size)).extend(Modality(ACTION, settings.codebook_size, dim))
    segments = [Segment(SAY, "text", (lexicon.length,), noised=False), Segment(STATE, "text", (1,), noised=False)]
    if settings.picture:
        segments.append(Segment(VIEW, "text", (GRID[0] * GRID[1],), noised=False))
    segments.append(Segment(ACTION, ACTION, (settings.chunk,), axes="t"))
    causal = settings.method == "autoregressive"
    packed = not causal and (settings.packed or settings.method in CONTINUOUS)
    return Layout(vocab, tuple(segments), attention="causal" if causal else "prefix", packed=packed)


def features_of(settings: Policy, layout: Layout, states: int) -> dict[str, Any]:
    """What the network is told that is no token; states: numbers of a state."""
    features: dict[str, Any] = {STATE: {"segment": STATE, "shape": [states]}}
    if settings.picture:
        size = settings.picture
        features[VIEW] = {"segment": VIEW, "shape": [3, size, size], "grid": list(GRID)}
    if settings.method == "flow":
        features[NOISY] = {"segment": ACTION, "shape": [settings.chunk, layout.depth(layout.segments[-1])]}
    return features


def config_of(settings: Policy, layout: Layout, states: int) -> DiscDiffConfig:
    """The configuration of a network of its own."""
    dim, features = layout.depth(layout.segments[-1]), features_of(settings, layout, states)
    return DiscDiffConfig(
        vocab=json.loads(layout.vocab.to_json()), layout=to_dict(layout), hidden_size=settings.hidden_size,
        num_layers=settings.num_layers, num_heads=settings.num_heads, initializer_range=settings.hidden_size**-0.5,
        max_length=len(layout.tables().lead), max_depth=dim if layout.packed else 1, features=features,
        time_conditioning=settings.method == "flow", shift=settings.method == "autoregressive",
    )  # fmt: skip


def told_state(episode: Episode, settings: Policy) -> np.ndarray:
    """The part of an episode's states that the policy is told."""
    return episode.state[:, : settings.proprio or None]
