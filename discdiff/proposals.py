"""Proposals: how a clean sequence is drawn from predictions, R(x0 | x_t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from discdiff.denoisers import Prediction
from discdiff.noise import TOKEN, Noise
from discdiff.types import Info, State, Step


class Proposed(NamedTuple):
    """tokens (n,) global ids and log_prob (n,) at the asked sites; ess: effective sample size where there is one;
    energy_rows: whole candidates that an energy scored.
    """

    tokens: Tensor
    log_prob: Tensor
    ess: Tensor | None = None
    energy_rows: int = 0

    def note(self, info: Info) -> Info:
        """The info of the network call with what the draw adds to it."""
        return info._replace(entropy=-self.log_prob.mean(), ess=self.ess, energy_rows=self.energy_rows)


class Proposal:
    """`draw(prediction, state, index, step, noise) -> Proposed`; a `joint` one looks at all unknown sites of a row at once.

    Candidate j of a joint proposal draws from the stream TOKEN + j, so that candidate 0 is the factorised draw.
    """

    @property
    def joint(self) -> bool:
        return False

    def together(self, state: State, step: Step) -> Tensor:
        """Rows (batch,) whose sites are drawn together in this step, bool; the others are asked for what moves only."""
        return torch.full_like(state.row, self.joint, dtype=torch.bool)

    def draw(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed:
        raise TypeError(f"{type(self).__name__} defines no draw")


@dataclass(frozen=True)
class Factorised(Proposal):
    """Each site on its own, from its prediction."""

    def draw(self, prediction: Prediction, state: State, index: Tensor, step: Step, noise: Noise) -> Proposed:
        drawn = prediction.draw(index, noise, TOKEN)
        return Proposed(drawn.tokens, drawn.log_prob)


def needed(proposal: Proposal, state: State, step: Step, index: Tensor, awake: Tensor, unknown: Tensor) -> Tensor:
    """Which of the sites `index` (n,) the network is asked for, bool: the `awake` ones, and where the row is drawn together
    and has one of those, all that are `unknown`.
    """
    if not proposal.joint:
        return awake
    row = torch.div(index, state.tokens.shape[1], rounding_mode="floor")
    busy = torch.zeros_like(state.row).index_add_(0, row, awake.long()) > 0
    return awake | (unknown & (busy & proposal.together(state, step))[row])
