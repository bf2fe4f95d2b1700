"""The shape of what a network is told that is no token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from discdiff.config import checked

_LARGEST = 2**20


@dataclass(frozen=True)
class Told:
    """A feature by its shape without the batch, and the segment whose slots it stands in.

    shape (slots, size), or (size,) for one slot: numbers, a linear map of each slot's. shape (channels, height, width): a
    picture, uint8 or in [0, 1], through convolutions of stride 2 down to `grid` (rows, columns), one slot each. Raises
    ValueError for a shape that is neither, and a picture that is not its grid times a power of 2.
    """

    segment: str
    shape: Sequence[int]
    grid: Sequence[int] = ()

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= _LARGEST for n in self.shape)
        checked("shape", tuple(self.shape), whole and 1 <= len(self.shape) <= 3, "one to three sizes above 0")
        fits = len(self.grid) == (2 if len(self.shape) == 3 else 0)
        checked("grid", tuple(self.grid), fits, "rows and columns of slots for a picture, nothing else")
        if self.grid:
            halved = {(n / g) for n, g in zip(self.shape[1:], self.grid, strict=True)}
            fits = len(halved) == 1 and math.log2(max(halved)).is_integer() and max(halved) > 1
            checked("grid", tuple(self.grid), fits, f"{tuple(self.shape[1:])} halved a few times")

    @property
    def slots(self) -> int:
        """Slots it fills."""
        return math.prod(self.grid) if self.grid else (self.shape[0] if len(self.shape) == 2 else 1)


def told(features: Mapping[str, Any] | None) -> dict[str, Told]:
    """A configuration's entries. Raises ValueError naming the feature that is none."""
    found = {}
    for name, entry in (features or {}).items():
        try:
            found[name] = Told(**entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"feature {name!r} is {entry!r}: {error}") from error
    return found
