"""Proposals: how a clean sequence is drawn from predictions, R(x0 | x_t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from discdiff.denoisers import Prediction
from discdiff.noise import TOKEN, Noise
from discdiff.types import State, Step


class Proposed(NamedTuple):
    """tokens (n,) global ids and log_prob (n,) at the asked sites; ess: effective sample size where there is one."""

    tokens: Tensor
    log_prob: Tensor
    ess: Tensor | None = None


class Proposal(Protocol):
    """`draw(prediction, state, index, step, noise) -> Proposed`; `joint` proposals look at all eligible sites at once.

    Candidate j of a joint proposal draws from the stream TOKEN + j, so that candidate 0 is the factorised draw.
    """

    @property
    def joint(self) -> bool: ...

    def draw(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed: ...


@dataclass(frozen=True)
class Factorised:
    """Each site on its own, from its prediction."""

    joint: ClassVar[bool] = False

    def draw(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed:
        drawn = prediction.draw(index, noise, TOKEN)
        return Proposed(drawn.tokens, drawn.log_prob)
