"""Energies: how bad whole clean sequences are, (candidates, state, t) -> (batch, k), low is good; their sums and multiples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.types import State


class Candidates(NamedTuple):
    """k clean sequences per row, drawn from a proposal.

    tokens (batch, k, length) int64 global ids, the state's own where nothing was drawn; log_prob (batch, k, length)
    float64, log of the law each token was drawn from, 0 where none was; drawn (batch, length) bool, the same for all k.
    """

    tokens: Tensor
    log_prob: Tensor
    drawn: Tensor

    @property
    def k(self) -> int:
        """Candidates per row."""
        return self.tokens.shape[1]

    def rows(self, index: Tensor) -> Candidates:
        """The candidates of the rows `index`."""
        return Candidates(*(x[index] for x in self))

    def flat(self, state: State) -> State:
        """`state` with every row k times and the candidates as its tokens, (batch * k, length)."""
        return state.repeat(self.k)._replace(tokens=self.tokens.flatten(0, 1))


class Energy:
    """E(x0, x_t, t): `(candidates, state, t) -> (batch, k)`, low is good, exp(-E) up to a factor per row.

    t (batch, length) float64. It sees ids and the layout, so one energy serves every modality. `a + b` and `2 * a` are
    energies, too.
    """

    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no __call__")

    def __add__(self, other: Energy) -> Energy:
        mine, theirs = (e.parts if isinstance(e, Sum) else (e,) for e in (self, other))
        return Sum((*mine, *theirs))

    def __mul__(self, scale: float) -> Energy:
        return Scaled(self, scale)

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Energy):
    """Energies added up: their corrections multiplied."""

    parts: tuple[Energy, ...]

    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        return sum((part(candidates, state, t) for part in self.parts[1:]), self.parts[0](candidates, state, t))


@dataclass(frozen=True)
class Scaled(Energy):
    """scale * energy; a temperature of 1 / scale. Raises ValueError for a scale that is not finite."""

    energy: Energy
    scale: float

    def __post_init__(self) -> None:
        checked("scale", self.scale, math.isfinite(self.scale), "give a finite factor")

    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        return self.scale * self.energy(candidates, state, t)


@dataclass(frozen=True)
class TokenEnergy(Energy):
    """A function of the ids alone, `(n, length) -> (n,)`: a constraint, a classifier, minus a reward.

    What is forbidden gets a large finite energy, such as 1e4.
    """

    function: Callable[[Tensor], Any]

    def __call__(self, candidates: Candidates, state: State, t: Tensor) -> Tensor:
        rows = torch.as_tensor(self.function(candidates.tokens.flatten(0, 1)), device=candidates.tokens.device)
        if rows.shape != (candidates.tokens.shape[0] * candidates.k,):
            wanted = candidates.tokens.shape[0] * candidates.k
            raise ValueError(
                f"the function gives shape {tuple(rows.shape)} for {wanted} sequences: one number for each"
            )
        return rows.double().view(-1, candidates.k)


def energies(energy: Any, candidates: Candidates, state: State, t: Tensor) -> Tensor:
    """`energy(candidates, state, t)` in float64, checked. Raises ValueError for another shape than (batch, k), naming it,
    and for values that are not finite, naming row and candidate.
    """
    out, wanted = energy(candidates, state, t), tuple(candidates.tokens.shape[:2])
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"the energy gives {got} for {wanted[0]} rows of {wanted[1]} candidates: give {wanted}, low is good"
        )
    bad = ~out.isfinite()
    if bool(bad.any()):
        row, number = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"the energy of row {int(state.row[row])}, candidate {number}, is {float(out[row, number])}: "
            "give a large finite one, such as 1e4, to what is forbidden"
        )
    return out.double()
