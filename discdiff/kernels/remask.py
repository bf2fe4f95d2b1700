"""Remask: revealed tokens may be taken back, for every process; ReMDM as one mixture of two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from discdiff.config import checked
from discdiff.kernels.ancestral import sites
from discdiff.kernels.base import Kernel, arrive, ask, select
from discdiff.kernels.strategies import (
    DFM,
    STRATEGIES,
    Cap,
    ForwardBackward,
    Held,
    Moment,
    Rescale,
    Strategy,
    Switch,
    check_feature,
)
from discdiff.noise import MASK, WAKE, Noise
from discdiff.processes import Absorbing, Dense, PerSegment, Process
from discdiff.processes.base import ratio
from discdiff.proposals import Factorised, Proposal, needed
from discdiff.types import Alphabet, Info, State, Step

__all__ = [
    "DFM",
    "STRATEGIES",
    "Cap",
    "ForwardBackward",
    "Held",
    "Moment",
    "Remask",
    "Rescale",
    "Strategy",
    "Switch",
    "stay_masked",
    "transition",
]


@dataclass(frozen=True)
class Remask(Kernel):
    """p(x_s | x_t) = kappa q(x_s | x_t, x0) + (1 - kappa) q_s(x_s | x0), x0 ~ proposal: posterior step or renoised guess.

    For `Absorbing` this is ReMDM (arXiv 2503.00307) with sigma = (1 - kappa)(1 - alpha_s), kappa down to its negative
    limit: an unmasked token is masked again with sigma, a masked one revealed with (alpha_s - (1 - sigma) alpha_t) /
    (1 - alpha_t). For the others kappa stays in [0, 1] (the psi-samplers of the public Duo code). Every choice of sigma
    keeps the marginals of single tokens; the joint law is reached as the grid is refined, if the strategy `vanishes`.

    Decides first: the network is asked only where the clean token is needed. Moves also at steps with s = t in (0, 1)
    (the clock `Plateau`). A step's `renoise` replaces the strategy's strength. Raises ValueError for `Dense`, for what
    is no strategy, and at the start of a run for a feature that is missing, misshapen or out of range.
    """

    process: Process = field(default_factory=Absorbing)
    strategy: Strategy = field(default_factory=Cap)
    proposal: Proposal = field(default_factory=Factorised)
    reads: ClassVar[tuple[str, ...]] = ("renoise",)

    def __post_init__(self) -> None:
        check_parts(self.process, self.strategy)

    @property
    def unbiased(self) -> bool:
        return self.strategy.vanishes

    @property
    def decide_first(self) -> bool:
        """Whether the positions that need the network are known before it is asked."""
        return not self.proposal.joint

    def check(self, grid: Any) -> None:
        for value in grid.renoise:
            if value is not None:
                self.strategy.check("renoise", value)

    def init(self, state: State) -> State:
        check_feature(self.strategy, state)
        return state

    def __call__(self, denoiser: Any, state: State, step: Step, noise: Noise) -> tuple[State, Info]:
        moved = transition(self, denoiser, state, step, noise)
        return moved.state, moved.info


class Moved(NamedTuple):
    """A transition's outcome; log_prob (batch, length) of the clean tokens drawn in it, -inf where none was."""

    state: State
    info: Info
    log_prob: Tensor


def transition(
    kernel: Any, denoiser: Any, state: State, step: Step, noise: Noise, share: Tensor | None = None
) -> Moved:
    """One step of the mixture; `share` (batch, length) scales the strategy's chance, position by position."""
    moving = state.free & (step.s < 1) & ((step.s < step.t) | (step.s > 0))
    index, info = select(moving), Info()
    here = _look(kernel, state, step, noise, index, share)
    size, process = here.alphabet.size, kernel.process
    awake = _each(process, here.alphabet, lambda p: _awake(p, here))
    unknown = _each(process, here.alphabet, lambda p: (here.x == size) | _like(here.x, not isinstance(p, Absorbing)))
    asking = needed(kernel.proposal, state, step, index, awake, unknown)
    x0 = torch.where(here.x == size, 0, here.x)  # never looked at where the site sleeps
    log_prob = torch.full(state.tokens.shape, -torch.inf, dtype=torch.float64, device=x0.device)
    wanted = index[asking]
    if len(wanted):
        asked = ask(denoiser, process, state, step, noise, wanted)
        clean = kernel.proposal.draw(asked.prediction, asked.state, asked.index, asked.step, asked.noise)
        x0 = x0.masked_scatter(asking, state.batch.symbols(clean.tokens, wanted))
        log_prob.view(-1)[wanted] = clean.log_prob.double()
        info = clean.note(asked.info)
    symbols = _each(process, here.alphabet, lambda p: _move(p, here, x0))
    done = _each(process, here.alphabet, lambda p: symbols != size if isinstance(p, Absorbing) else here.at.s <= 0)
    tokens = state.tokens.reshape(-1).scatter(0, index, state.batch.ids(symbols, index)).view(state.tokens.shape)
    committed = state.committed.reshape(-1).scatter(0, index, done).view(state.tokens.shape)
    info = info._replace(committed=(committed & ~state.committed).sum())
    return Moved(arrive(state, step)._replace(tokens=tokens, committed=committed), info, log_prob)


class _Sites(NamedTuple):
    """What is known of n sites before the network is asked."""

    x: Tensor
    alphabet: Alphabet
    at: Moment
    chance: Tensor
    uniform: Tensor
    renoised: Tensor


def _look(kernel: Any, state: State, step: Step, noise: Noise, index: Tensor, share: Tensor | None) -> _Sites:
    x, t, s, alphabet = sites(state, step, index)
    late = _each(kernel.process, alphabet, lambda p: p.marginal(t, alphabet.size).keep)
    early = _each(kernel.process, alphabet, lambda p: p.marginal(s, alphabet.size).keep)
    at = Moment(t, s, late, early)
    strength: Any = kernel.strategy.strength
    if step.renoise is not None:
        strength = step.renoise
    elif isinstance(strength, str):
        strength = state.batch.features[strength].reshape(-1)[index].double()
    chance = kernel.strategy.chance(at, strength)
    if share is not None:
        chance = chance * share.reshape(-1)[index]
    renoised = noise.uniform(MASK, index) < ratio(chance, 1 - early)  # 1 - kappa, whose excess over 1 has no effect
    return _Sites(x, alphabet, at, chance, noise.uniform(WAKE, index), renoised)


def _awake(process: Process, here: _Sites) -> Tensor:
    """Where the clean token is needed."""
    x, u, at, size = here.x, here.uniform, here.at, here.alphabet.size
    if isinstance(process, Absorbing):
        return (x == size) & (u >= stay_masked(at, here.chance))
    hold = process.hold(x, at.t, at.s, here.alphabet)
    hold = torch.where((x == size) & (at.s <= 0), 0.0, hold)
    return torch.where(here.renoised, u < at.early, u >= hold)  # noise of q_s(. | x0) is the same for every x0


def _move(process: Process, here: _Sites, x0: Tensor) -> Tensor:
    """Symbols after the step; x0 matters only at awake sites."""
    x, u, at, size = here.x, here.uniform, here.at, here.alphabet.size
    if isinstance(process, Absorbing):
        seen = torch.where(u < here.chance, size, x)
        return torch.where(x == size, torch.where(u >= stay_masked(at, here.chance), x0, x), seen)
    renoised = process.corrupt(x0, at.s, u, here.alphabet)
    symbols = torch.where(here.renoised, renoised, process.step(x, x0, at.t, at.s, u, here.alphabet))
    return torch.where((symbols == size) & (at.s <= 0), x0, symbols)


def stay_masked(at: Moment, chance: Tensor) -> Tensor:
    """(1 - alpha_s - sigma alpha_t) / (1 - alpha_t), what a masked token stays with (ReMDM eq. 9); 0 at time 0."""
    stay = ratio(1 - at.early - chance * at.late, 1 - at.late)
    return torch.where(at.s > 0, stay, 0.0).clamp(0, 1)


def _each(process: Process, alphabet: Alphabet, part: Callable[[Process], Tensor]) -> Tensor:
    """`part(process)`, for a process per segment that of each site's own."""
    return process.merge(alphabet, part) if isinstance(process, PerSegment) else part(process)


def _like(x: Tensor, value: bool) -> Tensor:
    return torch.full_like(x, value, dtype=torch.bool)


def check_parts(process: Process, strategy: Strategy) -> None:
    """Raise ValueError unless the process has closed-form marginals and the strategy is one."""
    parts = process.parts.values() if isinstance(process, PerSegment) else (process,)
    dense = [p for p in parts if isinstance(p, Dense)]
    checked("process", type(process).__name__, not dense, "the dense oracle cannot be renoised; use a closed-form one")
    checked("strategy", strategy, isinstance(strategy, Strategy), "give a strategy, such as Cap(0.02)")
