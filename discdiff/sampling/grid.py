"""Grid: the step schedule of a run as plain data, JSON in and out; learned samplers write it, `sample` reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discdiff.types import Step

_KNOBS = ("rate", "score_power", "temperature", "renoise", "guidance")
_LARGEST = 64 << 20  # bytes of a saved grid


@dataclass(frozen=True)
class Grid:
    """Times 1 >= t_0 > t_1 > ... > t_M >= 0 and, per step, optional settings that override the parts' own.

    Raises ValueError for times that do not fall, leave [0, 1] or are not finite, and for settings of a wrong length.
    """

    times: tuple[float, ...]
    rate: tuple[float | None, ...] = ()
    score_power: tuple[float | None, ...] = ()
    temperature: tuple[float | None, ...] = ()
    renoise: tuple[float | None, ...] = ()
    guidance: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        times = tuple(float(_number("times", t)) for t in self.times)
        object.__setattr__(self, "times", times)
        if len(times) < 2 or not all(math.isfinite(t) and 0 <= t <= 1 for t in times):
            raise ValueError(f"grid times {_short(times)}: give at least two finite times in [0, 1]")
        for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
            if not s < t:
                raise ValueError(f"grid times must fall: step {i} goes from {t} to {s}")
        for name in _KNOBS:
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if values and len(values) != len(self):
                raise ValueError(f"{name} has {len(values)} values for {len(self)} steps: give one per step, or none")
            if any(
                v is not None and (not math.isfinite(_number(name, v)) or (v < 0 and name != "guidance"))
                for v in values
            ):
                raise ValueError(f"{name} {_short(values)}: every value must be finite and not negative")

    @classmethod
    def uniform(cls, steps: int, start: float = 1.0, end: float = 0.0, **knobs: float | None) -> Grid:
        """`steps` equal steps from `start` to `end`; a knob given as a number holds for every step."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{steps!r} steps: a run needs a whole number of steps, at least 1")
        unknown = set(knobs) - set(_KNOBS)
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)}: a step knows {', '.join(_KNOBS)}")
        times = [start + (end - start) * i / steps for i in range(steps)]
        return cls((*times, end), **{name: (value,) * steps for name, value in knobs.items()})  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.times) - 1

    def __iter__(self) -> Iterator[Step]:
        for i in range(len(self)):
            knobs = (getattr(self, name)[i] if getattr(self, name) else None for name in _KNOBS)
            yield Step(i, self.times[i], self.times[i + 1], *knobs)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the settings this grid gives."""
        return tuple(name for name in _KNOBS if any(v is not None for v in getattr(self, name)))

    def to_json(self) -> str:
        """As JSON; settings not given are left out."""
        return json.dumps({"times": self.times, **{name: getattr(self, name) for name in self.used}})

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """From `to_json`. Raises ValueError for malformed JSON or an unknown key."""
        try:
            data: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a grid: {error}") from error
        if not isinstance(data, dict) or "times" not in data or set(data) - set(cls.__dataclass_fields__):
            keys = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"not a grid: it holds {keys}, a grid has times and optionally {', '.join(_KNOBS)}")
        for name, values in data.items():
            if not isinstance(values, list):
                raise ValueError(f"not a grid: {name} is {values!r:.60}, give a list")
        try:
            return cls(**{name: tuple(values) for name, values in data.items()})
        except TypeError as error:
            raise ValueError(f"not a grid: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """From a file. Raises ValueError naming it where it cannot be read or holds no grid."""
        try:
            if Path(path).stat().st_size > _LARGEST:
                raise ValueError(f"{Path(path).stat().st_size} bytes are no grid")
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(path)!r}: {error}") from error


def as_grid(grid: Grid | int | Sequence[float]) -> Grid:
    """A grid as it is, a number of equal steps, or a sequence of times."""
    if isinstance(grid, Grid):
        return grid
    return Grid.uniform(grid) if isinstance(grid, int) else Grid(tuple(grid))


def _number(name: str, value: Any) -> Any:
    """The value. Raises ValueError for what is no number, and for integers beyond any float."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} holds {value!r:.60}: give numbers") from error
    return value


def _short(values: Sequence[Any]) -> str:
    return str(tuple(values[:6])) + ("..." if len(values) > 6 else "")
