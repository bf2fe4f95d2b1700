"""The result of a fit, and the checks every fit shares."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from discdiff.sampling.grid import Grid


class Fitted(NamedTuple):
    """grid: the learned schedule. loss: its training objective, untouched: that of the schedule before, at the same
    states (those of the last round); loss never exceeds untouched. trace: (untouched, loss) of every round.
    """

    grid: Grid
    loss: float
    untouched: float
    trace: tuple[tuple[float, float], ...] = ()


def known(name: str, names: tuple[str, ...], what: str) -> None:
    """Raise ValueError for a name that is none of `names`, saying the nearest."""
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown {what} {name!r}{hint} Known: {', '.join(names)}")


def whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number, at least {least}")
