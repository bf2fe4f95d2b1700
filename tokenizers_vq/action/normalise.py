"""Statistics of actions per dimension, and the map to [-1, 1] and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.config import checked

MODES = {"quantile": ("q01", "q99"), "range": ("min", "max"), "mean_std": ("mean", "std")}
CLIPS = ("clip", "error")
FLOOR = 1e-6  # a dimension whose span is below this share of its scale counts as constant
DEVIATIONS = 3.0  # of "mean_std", what maps to 1
SLACK = 1e-5  # beyond [-1, 1], of rounding: neither counted nor refused


@dataclass(frozen=True)
class ActionStatistics:
    """1st and 99th percentile, extremes, mean and deviation of every dimension, and mask: False for one that is left raw.

    The fields are the keys of OpenVLA's dataset_statistics.json. Raises ValueError for lists of other lengths, numbers
    that are not finite, and extremes in the wrong order.
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        for f in fields(self):
            kind = bool if f.name == "mask" else float
            object.__setattr__(self, f.name, tuple(kind(v) for v in getattr(self, f.name)))
            value = getattr(self, f.name)
            checked(f.name, value, len(value) == self.dim > 0, f"one number for each of the {self.dim} dimensions")
            checked(f.name, value, all(math.isfinite(v) for v in value), "finite numbers")
        for low, high in (("q01", "q99"), ("min", "max")):
            ordered = all(a <= b for a, b in zip(getattr(self, low), getattr(self, high), strict=True))
            checked(low, getattr(self, low), ordered, f"at most {high}, {getattr(self, high)}")

    @property
    def dim(self) -> int:
        """Dimensions of an action."""
        return len(self.mask)

    @classmethod
    def of(cls, actions: Any, mask: Any = None, raw: tuple[int, ...] = ()) -> ActionStatistics:
        """Of actions (..., dim); mask (...) bool: which of them are data; raw: dimensions to leave as they are.

        Raises ValueError for numbers that are not finite and where there are none.
        """
        x = torch.as_tensor(actions).double()
        x = x.reshape(-1, x.shape[-1]) if mask is None else x[torch.as_tensor(mask)]
        checked("actions", tuple(x.shape), len(x) > 0, "at least one action")
        check_finite(x)
        dim = x.shape[1]
        checked("raw", raw, all(0 <= i < dim for i in raw), f"dimensions 0..{dim - 1}")
        low, high = np.quantile(x.numpy(), (0.01, 0.99), axis=0)
        found = {"q01": low, "q99": high, "min": x.amin(0), "max": x.amax(0)}
        found |= {"mean": x.mean(0), "std": x.std(0, correction=0)}
        return cls(**{n: tuple(v.tolist()) for n, v in found.items()}, mask=tuple(i not in raw for i in range(dim)))

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ActionStatistics:
        """From an "action" entry of a statistics file; a missing mask means that no dimension is raw, keys that are none of
        ours are left out. Raises ValueError for a missing key.
        """
        missing = [f.name for f in fields(cls) if f.name not in entry and f.name != "mask"]
        checked("statistics", sorted(entry), not missing, f"the keys {missing} are missing")
        named = {f.name: entry[f.name] for f in fields(cls) if f.name in entry}
        return cls(**{"mask": (True,) * len(entry["q01"]), **named})

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by key."""
        return {name: list(value) for name, value in asdict(self).items()}


def read_statistics(file: str | Path, key: str | None = None, part: str = "action") -> ActionStatistics:
    """Of a dataset_statistics.json, {key: {part: statistics}}; key may be left out where there is one only.

    Raises ValueError naming the keys for an unknown or ambiguous one, and for a file that cannot be read.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        entries = {name: entry[part] for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no statistics file {{dataset: {{{part!r}: ...}}}}: {error!r}") from error
    if key is None and len(entries) != 1:
        raise ValueError(f"{str(file)!r} has statistics of {sorted(entries)}: say whose by key")
    if key is not None and key not in entries:
        raise ValueError(f"{str(file)!r} has no {key!r}, only {sorted(entries)}")
    return ActionStatistics.from_dict(entries[next(iter(entries)) if key is None else key])


def write_statistics(file: str | Path, statistics: Mapping[str, ActionStatistics], part: str = "action") -> None:
    """The same file, from statistics by key."""
    content = {key: {part: each.to_dict()} for key, each in statistics.items()}
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class Normalised(NamedTuple):
    """values in [-1, 1]; clipped: which of them lay beyond."""

    values: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Normaliser:
    """y = (x - middle) / half per dimension, [low, high] to [-1, 1]; y = x where statistics.mask is False.

    mode: low and high are "quantile" (q01, q99), "range" (min, max) or "mean_std" (mean -+ 3 std). clip: what lies beyond
    is cut to [-1, 1] and reported, or refused ("error"). half is never below 1e-6 of the scale, which is the largest of
    |low|, |high| and the spans of all dimensions: a constant dimension comes back as its constant. One whose quantiles
    agree though its extremes do not, such as a gripper that hardly moves, takes the extremes.
    """

    statistics: ActionStatistics
    mode: str = "quantile"
    clip: str = "clip"

    def __post_init__(self) -> None:
        checked("mode", self.mode, self.mode in MODES, f"choose from {', '.join(MODES)}")
        checked("clip", self.clip, self.clip in CLIPS, f"choose from {', '.join(CLIPS)}")

    @cached_property
    def affine(self) -> tuple[Tensor, Tensor]:
        """middle and half (dim,), float64; 0 and 1 of raw dimensions."""
        of = asdict(self.statistics)
        known = {name: torch.tensor(of[name], dtype=torch.float64) for name in of if name != "mask"}
        raw = ~torch.tensor(self.statistics.mask)
        low, high = (known[name] for name in MODES[self.mode])
        if self.mode == "mean_std":
            low, high = low - DEVIATIONS * high, low + DEVIATIONS * high
        elif self.mode == "quantile":
            hidden = high - low <= FLOOR * (known["max"] - known["min"])
            low, high = torch.where(hidden, known["min"], low), torch.where(hidden, known["max"], high)
        spans = (high - low).masked_fill(raw, 0)
        scale = torch.maximum(torch.maximum(low.abs(), high.abs()), spans.max())
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        middle, half = (low + high) / 2, torch.maximum(high - low, FLOOR * scale) / 2
        return middle.masked_fill(raw, 0), half.masked_fill(raw, 1)

    def normalise(self, actions: Tensor) -> Normalised:
        """Actions (..., dim) to [-1, 1], float32. Raises ValueError for numbers that are not finite, another number of
        dimensions and, with clip "error", what lies beyond.
        """
        dim = self.statistics.dim
        checked("actions", tuple(actions.shape), actions.shape[-1] == dim, f"the statistics have {dim} dimensions")
        check_finite(actions)
        middle, half = (v.to(actions.device) for v in self.affine)
        y = (actions.double() - middle) / half
        beyond = y.abs() > 1 + SLACK
        if self.clip == "error" and bool(beyond.any()):
            worst = int(beyond.flatten(0, -2).any(0).nonzero()[0])
            bounds = float(middle[worst] - half[worst]), float(middle[worst] + half[worst])
            raise ValueError(
                f"actions: {int(beyond.sum())} values lie beyond the range of the statistics, such as those of dimension "
                f'{worst} beyond {bounds[0]:.4g}..{bounds[1]:.4g}: clip="clip" cuts and counts them'
            )
        return Normalised(y.clamp(-1, 1).float(), beyond)

    def restore(self, y: Tensor) -> Tensor:
        """The way back, differentiable: y (..., dim) to actions."""
        middle, half = (v.to(y.device) for v in self.affine)
        return (y.double() * half + middle).to(y.dtype)


def check_finite(x: Tensor) -> None:
    """Raise ValueError naming the first number that is not finite."""
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"actions: {int(bad.sum())} numbers are not finite, the first at {where}: leave such rows out")
