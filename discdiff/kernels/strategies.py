"""How likely a revealed token is masked again: ReMDM's strategies, for the kernels `Remask` and `RemaskConf`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.processes.base import ratio
from discdiff.types import State


class Moment(NamedTuple):
    """What a strategy knows of a step at n sites, (n,) float64: times t >= s, late = alpha(t) and early = alpha(s)."""

    t: Tensor
    s: Tensor
    late: Tensor
    early: Tensor

    @property
    def limit(self) -> Tensor:
        """The largest re-mask chance that keeps the marginals, min(1, (1 - alpha_s) / alpha_t)."""
        return torch.where(self.late > 0, (1 - self.early) / self.late, 1.0).clamp(max=1)


@dataclass(frozen=True)
class Strategy:
    """How likely a revealed token is masked again (ReMDM's sigma); one of your own gives `strength` and `wanted`.

    strength: a number, or the name of a feature (batch, length) that holds one number per position; most: its largest
    sensible value; vanishes: with ever more steps the last of a run re-mask ever less, so that the law is reached.
    """

    @property
    def strength(self) -> float | str:
        raise TypeError(f"{type(self).__name__} defines no strength")

    @property
    def most(self) -> float:
        return 1.0

    @property
    def vanishes(self) -> bool:
        return True

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        """The chance before it is limited, broadcastable to (n,)."""
        raise TypeError(f"{type(self).__name__} defines no chance")

    def chance(self, at: Moment, strength: Any) -> Tensor:
        """Re-mask chance (n,): `wanted`, at most `at.limit`, and 0 at time 0."""
        wanted = torch.as_tensor(self.wanted(at, strength), dtype=torch.float64, device=at.s.device)
        return torch.where(at.s > 0, torch.minimum(wanted, at.limit), 0.0)

    def check(self, name: str, value: float) -> None:
        """Raise ValueError for a strength out of range."""
        checked(name, value, 0 <= value <= self.most, f"{type(self).__name__} takes a number from 0 to {self.most:g}")


@dataclass(frozen=True)
class Cap(Strategy):
    """min(eta, limit) (ReMDM-cap, arXiv 2503.00307); eta a number in [0, 1] or a feature's name. Raises ValueError."""

    eta: float | str = 0.02

    def __post_init__(self) -> None:
        _check_setting(self, "eta", self.eta)

    @property
    def strength(self) -> float | str:
        return self.eta

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        return strength


@dataclass(frozen=True)
class Rescale(Strategy):
    """eta * limit (ReMDM-rescale, arXiv 2503.00307); eta a number in [0, 1] or a feature's name. Raises ValueError."""

    eta: float | str = 0.02

    def __post_init__(self) -> None:
        _check_setting(self, "eta", self.eta)

    @property
    def strength(self) -> float | str:
        return self.eta

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        return strength * at.limit


@dataclass(frozen=True)
class DFM(Strategy):
    """min(beta (alpha_s - alpha_t) / alpha_t, limit), the corrector of discrete flow matching (ReMDM arXiv 2503.00307).

    beta is a number >= 0 or a feature's name, else ValueError. Without the limit the chance is out of range wherever
    2 alpha_s - alpha_t > 1 (beta 1), so in the last steps of every run.
    """

    beta: float | str = 1.0

    def __post_init__(self) -> None:
        _check_setting(self, "beta", self.beta)

    @property
    def strength(self) -> float | str:
        return self.beta

    @property
    def most(self) -> float:
        return float("inf")

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        return strength * ratio(at.early - at.late, at.late)


@dataclass(frozen=True)
class ForwardBackward(DFM):
    """(alpha_s - alpha_t) / alpha_t within the limit, the forward-backward corrector: `DFM` with beta = 1."""

    beta: float | str = field(default=1.0, init=False)


@dataclass(frozen=True)
class Within(Strategy):
    """A strategy around another: its strength is the inner one's."""

    base: Strategy = field(default_factory=Cap)

    def __post_init__(self) -> None:
        checked("base", self.base, isinstance(self.base, Strategy), "give a strategy, such as Cap(0.02)")

    @property
    def strength(self) -> float | str:
        return self.base.strength

    @property
    def most(self) -> float:
        return self.base.most

    @property
    def vanishes(self) -> bool:
        return self.base.vanishes


@dataclass(frozen=True)
class Switch(Within):
    """`base` at times below t_switch, nothing before (ReMDM-switch). Raises ValueError unless t_switch lies in (0, 1]."""

    t_switch: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checked("t_switch", self.t_switch, 0 < self.t_switch <= 1, "a diffusion time in (0, 1]")

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        return torch.where(at.t < self.t_switch, self.base.chance(at, strength), 0.0)


@dataclass(frozen=True)
class Held(Within):
    """`base` only while time stands still at 0 < s = t < 1: with the clock `Plateau` this is ReMDM-loop.

    The law keeps a bias of the order of the base's chance, however many steps there are.
    """

    @property
    def vanishes(self) -> bool:
        return False

    def wanted(self, at: Moment, strength: Any) -> Tensor:
        return torch.where(at.s == at.t, self.base.chance(at, strength), 0.0)


STRATEGIES: dict[str, type[Strategy]] = {s.__name__: s for s in (Cap, Rescale, ForwardBackward, DFM, Switch, Held)}
"""Strategies by name, as a saved configuration and the command line know them."""


def check_feature(strategy: Strategy, state: State) -> None:
    """Raise ValueError where a strength per position is missing, misshapen or out of range."""
    name = strategy.strength
    if not isinstance(name, str):
        return
    value = state.batch.features.get(name)
    if value is None or value.shape != state.tokens.shape:
        found = {key: tuple(x.shape) for key, x in state.batch.features.items()}
        raise ValueError(f"no feature {name!r} of shape {tuple(state.tokens.shape)}: the batch has {found}")
    free = value[state.free].double()
    for extreme in (free.min(), free.max()) if len(free) else ():
        strategy.check(f"feature {name!r}", float(extreme))


def _check_setting(strategy: Strategy, name: str, value: float | str) -> None:
    if not isinstance(value, str):
        strategy.check(name, value)
